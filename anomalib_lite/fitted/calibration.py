"""From anomaly scores to p-values and alarms with a stated false-alarm rate, from good images only.

In: one score per good image that the scorer has not learnt from. Out: conformal p-values of new images, and
an alarm threshold. What is promised is marginal: over draws of calibration and new images together, a good
image alarms with at most the false-alarm rate, as long as new good images are exchangeable with the
calibration ones (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Angelopoulos and
Bates, Foundations and Trends in Machine Learning 16 (2023)).

*Exactly* so for images held out of the fit (``calibration="split"``, `Detector.recalibrate`). For scores of images that
were left out fold by fold (``"cross"``) *approximately*: a rate of at most twice the promised one and a little more is
proven (CV+ and jackknife+, Barber, Candès, Ramdas and Tibshirani, Annals of Statistics 49 (2021), theorem 4), and
what is observed lies close to the promise itself (``benchmarks/coverage.py``).

Several pictures of one part, or of one day, are one group. One of them, drawn at random, stands for it, and n counts
groups: a picture of a new group is exchangeable with those (Dunn, Wasserman and Ramdas, JASA 118 (2023), "subsampling
once"). Sharing the weight of a group among its pictures instead (Lee, Barber and Willett, arXiv 2306.06342 (2023)) is
valid too, but stricter than asked: at a rate of 1 / (n + 1) not one picture of any group may lie above its threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalib_lite.fitted.coverage import coverage_verdict

Floats = NDArray[np.float64]

GOOD, LOOK_AGAIN, ALARM = "good", "look again", "alarm"
NO_VERDICT = "no verdict"  # of an image that cannot be judged
_USUAL_RATE = 0.05  # told too, where the rate that was asked for takes many more images


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of good images and the false-alarm rate asked for: p-values, alarms, and what they guarantee.

    Parameters
    ----------
    scores : (m,) anomaly scores of good images, each as if unseen in the fit; kept sorted, as float64.
    false_alarm_rate : share of good images that may alarm, in (0, 1). The smallest rate that n groups support is
        1 / (n + 1). Below that `guarantee_met` is False and the alarm falls back to this smallest rate.
    groups : int (m,), optional
        Images of one part or day; default: each image is a group of its own.
    withheld : why nothing is promised whatever the number of images, such as several pictures of one part, or "".
    exact : whether the images were held out of the fit altogether; False: left out fold by fold.
    fixed : an alarm threshold set by hand; then `false_alarm_rate` is the rate it stands for.
    look_again : a threshold below that of the alarm, from which on an image is to be looked at again; None for none.

    Raises
    ------
    ValueError
        If there are no scores, one is not finite, groups do not match, the rate is not in (0, 1), or `look_again` is
        above the alarm threshold.

    Examples
    --------
    >>> calibration = Calibration(np.arange(1.0, 100.0), false_alarm_rate=0.05)
    >>> calibration.threshold, calibration.alarms([95.0, 95.1]).tolist()
    (95.0, [False, True])
    >>> calibration.p_values([95.1, 200.0]).tolist()
    [0.05, 0.01]
    """

    scores: Floats
    false_alarm_rate: float
    groups: NDArray[np.int64] = None  # type: ignore[assignment]  # None: each its own, see below
    withheld: str = ""
    exact: bool = False
    fixed: float | None = None
    look_again: float | None = None
    _known: Floats = field(init=False, repr=False)  # (n,), ascending: of every group the score that stands for it

    def __post_init__(self) -> None:
        scores = _finite_vector(self.scores, "calibration scores")
        if scores.size == 0:
            raise ValueError("no calibration score: at least one good image is needed")
        groups = np.arange(scores.size) if self.groups is None else np.asarray(self.groups)
        if groups.shape != scores.shape or groups.dtype.kind not in "iu":
            raise ValueError(f"{scores.size} calibration scores and groups {groups.shape}: a whole number for each")
        if not isinstance(self.withheld, str):
            raise ValueError(f"withheld is {self.withheld!r}: a reason in words, or none")
        order = np.argsort(scores, kind="stable")
        scores, groups = scores[order], groups[order].astype(np.int64)
        # The first of every group in an order drawn at random.
        drawn = np.random.default_rng(0).permutation(scores.size)
        known = np.sort(scores[drawn[np.unique(groups[drawn], return_index=True)[1]]])
        for name, array in (("scores", scores), ("groups", groups), ("_known", known)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for name in ("fixed", "look_again"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"a threshold of {value}: give a score, such as {scores[-1]:.4g}")
        if self.fixed is not None:
            object.__setattr__(self, "false_alarm_rate", self._level_above(self.fixed))
        rate = float(self.false_alarm_rate)
        if not 0.0 < rate <= 1.0 or (rate == 1.0 and self.fixed is None):
            raise ValueError(f"false_alarm_rate is {rate}: need a share in (0, 1), such as 0.01 for 1 %")
        object.__setattr__(self, "false_alarm_rate", rate)
        if self.look_again is not None and self.look_again > self.threshold:
            raise ValueError(
                f"look_again={self.look_again:.6g} is above the alarm threshold {self.threshold:.6g}; an image is "
                "looked at again below an alarm"
            )

    @property
    def n(self) -> int:
        """Number of groups: of calibration images, where none belong together."""
        return int(self._known.size)

    @property
    def n_images(self) -> int:
        """Number of calibration images."""
        return self.scores.size

    @property
    def known_(self) -> Floats:
        """The scores (n,), ascending, that stand for their groups: those that p-values are counted among."""
        return self._known

    @property
    def smallest_rate(self) -> float:
        """Smallest false-alarm rate that n groups support, which is also the smallest p-value."""
        return 1 / (self.n + 1)

    @property
    def guarantee_met(self) -> bool:
        """Whether the false-alarm rate asked for is promised: enough groups, none recognised by another."""
        return not self.withheld and self.smallest_rate <= self.false_alarm_rate

    @property
    def guaranteed_rate(self) -> float:
        """Bound on the mean false-alarm rate of the threshold: the largest p-value that alarms.

        The largest that n groups allow up to the rate asked for; above that rate only if `guarantee_met` is False.
        """
        return self.false_alarm_rate if self.fixed is not None else float(self._levels()[self._last() + 1])

    @property
    def threshold(self) -> float:
        """The score that an image must exceed: an alarm is score > threshold, strictly.

        Where the rate is supported and the threshold not fixed by hand, it is a calibration score, and exceeding it
        exactly the same as p <= guaranteed_rate, ties included: a score equal to the threshold does not alarm.
        """
        if self.fixed is not None:
            return float(self.fixed)
        if self.smallest_rate > self.false_alarm_rate:  # nothing is promised, and no picture of any group may alarm
            return float(self.scores[-1])
        return float(self._known[self._last()])

    def p_values(self, scores: ArrayLike) -> Floats:
        """Conformal p-values (m,) of anomaly scores (m,): small = anomalous.

        Share of good images (one of each group) that score at least as high, the new one counted in:
        (1 + #{s_i >= s}) / (n + 1). Ties count against the alarm. Infinite scores are allowed here.

        Raises
        ------
        ValueError
            If scores are no vector, or one is NaN.
        """
        new = np.asarray(scores, dtype=np.float64)
        if new.ndim != 1:
            raise ValueError(f"scores of shape {new.shape}: need a vector")
        if np.isnan(new).any():
            raise ValueError(f"scores has NaN at position {int(np.argmax(np.isnan(new)))}; scores must be numbers")
        return self._levels()[np.searchsorted(self._known, new, side="left")]

    def alarms(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Which of the anomaly scores (m,) exceed the threshold, (m,) bool."""
        return np.asarray(scores, dtype=np.float64) > self.threshold

    def tolerance_rate(self, confidence: float = 0.95) -> float:
        """False-alarm rate that the threshold keeps with this confidence over draws of calibration images.

        The mean guarantee hides an unlucky calibration set; this does not. Over such draws the true rate
        above the (k + 1)-th largest of n scores follows Beta(k + 1, n - k), and less with ties (Wilks,
        Annals of Mathematical Statistics 12 (1941); Vovk, Machine Learning 92 (2013)). With the largest
        score as threshold, 1 % at 95 % confidence takes 299 images, 2 % takes 149 and 5 % takes 59. Of groups of
        several images n counts groups. For a threshold set by hand after looking at the scores it is no promise.

        Examples
        --------
        >>> round(Calibration(np.arange(299.0), false_alarm_rate=0.001).tolerance_rate(), 4)
        0.01
        """
        from scipy.special import betaincinv

        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence is {confidence}: need a share in (0, 1), such as 0.95")
        k = round(self.guaranteed_rate * (self.n + 1)) - 1
        return float(betaincinv(k + 1, self.n - k, confidence)) if k < self.n else 1.0

    def explain(self, p_values: ArrayLike | None = None) -> str:
        """What the threshold guarantees, and what guaranteeing the rate asked for takes, in plain English.

        With `p_values` (m,) of new images that are known to be good, also whether it held, in either direction.
        """
        text = self._explained()
        if p_values is None or not np.size(p_values):
            return text
        held = coverage_verdict(p_values, rates=(self.guaranteed_rate,), smallest_rate=self.smallest_rate)
        told = held.explain()
        return f"{text.removesuffix('.')}. On new good images: {told[:1].lower()}{told[1:]}"

    def _explained(self) -> str:
        target, tolerated = f"{100 * self.false_alarm_rate:.3g} %", f"{100 * self.tolerance_rate():.3g} %"
        who = f"{self.n} calibration images"
        if self.n < self.n_images:
            who = f"{self.n} groups of {self.n_images} calibration images"
        average = f"at most {100 * self.guaranteed_rate:.3g} % of good images do"
        guarantee = (
            f"on average {average if self.exact else 'about ' + average[8:]}, as long as they come "
            f"from the same process as the {who}. With 95 % confidence the rate of "
            f"this very threshold is at most {tolerated}."
        )
        again = ""
        if self.look_again is not None:
            share = 100 * self._level_above(self.look_again)
            again = f" Above {self.look_again:.6g} it is to be looked at again; about {share:.3g} % of good ones are."
        if self.withheld:
            return (
                f"An image alarms when it scores above {self.threshold:.6g}, but no false-alarm rate is promised: "
                f"{self.withheld}. A picture that was scored as if new has been recognised by the others of its part, "
                "so other parts will alarm more often. Say which pictures belong together (groups=), or fit each "
                "alone if these are products that differ"
            )
        if self.fixed is not None:
            return (
                f"An image alarms when it scores above {self.threshold:.6g}, which was set by hand; of good images "
                f"about {target} do, as long as they come from the same process as the {who}.{again}"
            )
        if self.guarantee_met:
            return f"An image alarms when it scores above {self.threshold:.6g} (target {target}); {guarantee}{again}"
        needed, things = images_needed(self.false_alarm_rate), "groups" if self.n < self.n_images else "good images"
        missing = f"{needed - self.n} more for {target}"
        if self.false_alarm_rate < _USUAL_RATE and (fewer := images_needed(_USUAL_RATE) - self.n) > 0:
            missing = f"{fewer} more for {100 * _USUAL_RATE:.3g} %, {missing}"
        return (
            f"A false-alarm rate of {target} takes at least {needed} {things} to guarantee, and there are {self.n}: "
            f"{missing}. Until then an image alarms when it scores above all of them ({self.threshold:.6g}); "
            f"{guarantee}{again}"
        )

    def settings(self) -> dict[str, Any]:
        """All but scores and groups, JSON-able: ``Calibration(scores, groups=groups, **settings)`` is the same."""
        names = ("false_alarm_rate", "withheld", "exact", "fixed", "look_again")
        return {name: getattr(self, name) for name in names}

    def at_rate(self, false_alarm_rate: float, *, look_again: float | None = None) -> Calibration:
        """The same scores, for another rate; `look_again` is a second, larger rate."""
        if look_again is not None and look_again < false_alarm_rate:
            raise ValueError(
                f"look_again={look_again} is to be larger than the alarm's rate, {false_alarm_rate}: more images are "
                "looked at again than alarm"
            )
        lower = None if look_again is None else self.at_rate(look_again).threshold
        return replace(self, false_alarm_rate=false_alarm_rate, fixed=None, look_again=lower)

    def at_threshold(self, threshold: float, *, look_again: float | None = None) -> Calibration:
        """The same scores, with a threshold set by hand; `look_again` is a second, lower one."""
        return replace(self, fixed=float(threshold), look_again=look_again)

    def _levels(self) -> Floats:
        """p-values (n + 1,): entry i of a score above i of those that stand for their groups, and no more of them."""
        return np.arange(self.n + 1, 0, -1) / (self.n + 1)

    def _level_above(self, threshold: float) -> float:
        """The p-value of a score just above a threshold."""
        return float(self._levels()[np.searchsorted(self._known, threshold, side="right")])

    def _last(self) -> int:
        """Position of the threshold among the scores that stand for their groups."""
        # s > the largest score that is not rare enough  <=>  p(s) <= rate; where none is rare enough, that is the top.
        return int((self._levels()[:-1] > self.false_alarm_rate).sum()) - 1


def images_needed(false_alarm_rate: float) -> int:
    """Number of calibration images from which on a false-alarm rate can be guaranteed: 1 / (n + 1) <= rate.

    Examples
    --------
    >>> images_needed(0.01)
    99
    """
    if not 0.0 < false_alarm_rate < 1.0:
        raise ValueError(f"false_alarm_rate is {false_alarm_rate}: need a share in (0, 1), such as 0.01 for 1 %")
    n = max(math.ceil(1 / false_alarm_rate) - 2, 0)  # one less than the answer, lest 1 / rate was rounded up
    while 1 / (n + 1) > false_alarm_rate:
        n += 1
    return n


def _finite_vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} of shape {vector.shape}: need a vector")
    if not np.isfinite(vector).all():
        position = int(np.argmin(np.isfinite(vector)))
        raise ValueError(f"{name}: {vector[position]} at position {position}; every value must be finite")
    return vector
