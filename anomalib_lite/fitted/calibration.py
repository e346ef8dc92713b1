"""From anomaly scores to p-values and alarms with a stated false-alarm rate, from good images only.

In: one score per good image that the scorer has not learnt from. Out: conformal p-values of new images, and
an alarm threshold. The guarantee is marginal: over draws of calibration and new images together, a good
image alarms with at most the false-alarm rate, as long as new good images are exchangeable with the
calibration ones (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Angelopoulos and
Bates, Foundations and Trends in Machine Learning 16 (2023)). It is exact for images held out of the fit.
Scores of `CrossFit` come from scorers fitted on fewer images than the final one, so there it
holds approximately (cross-conformal prediction, Vovk, Annals of Mathematics and Artificial Intelligence 74
(2015)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

Floats = NDArray[np.float64]


class FoldScorer(Protocol):
    """What `CrossFit` needs of a scorer."""

    def fit(self, X: Any, groups: Any) -> Any: ...

    def score(self, X: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of good images and the false-alarm rate asked for: p-values, alarms, and what they guarantee.

    Parameters
    ----------
    scores : (n,) anomaly scores of good images, each as if unseen in the fit; kept sorted, as float64.
    false_alarm_rate : share of good images that may alarm, in (0, 1). The smallest rate that n images support is
        1 / (n + 1). Below that `guarantee_met` is False and the alarm falls back to this smallest rate.
    withheld : why nothing is promised whatever the number of images, such as several pictures of one part, or "".

    Raises
    ------
    ValueError
        If there are no scores, one is not finite, or the rate is not in (0, 1).

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
    withheld: str = ""

    def __post_init__(self) -> None:
        scores = np.sort(_finite_vector(self.scores, "calibration scores"))
        if scores.size == 0:
            raise ValueError("no calibration score: at least one good image is needed")
        rate = float(self.false_alarm_rate)
        if not 0.0 < rate < 1.0:
            raise ValueError(f"false_alarm_rate is {rate}: need a share in (0, 1), such as 0.01 for 1 %")
        if not isinstance(self.withheld, str):
            raise ValueError(f"withheld is {self.withheld!r}: a reason in words, or none")
        scores.setflags(write=False)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "false_alarm_rate", rate)

    @property
    def n(self) -> int:
        """Number of calibration images."""
        return self.scores.size

    @property
    def smallest_rate(self) -> float:
        """Smallest false-alarm rate that n images support, which is also the smallest p-value."""
        return 1 / (self.n + 1)

    @property
    def guarantee_met(self) -> bool:
        """Whether the false-alarm rate asked for is promised: enough images, none recognised by another."""
        return not self.withheld and self.smallest_rate <= self.false_alarm_rate

    @property
    def guaranteed_rate(self) -> float:
        """Bound on the mean false-alarm rate of the threshold: the largest p-value that alarms.

        The largest multiple of 1 / (n + 1) up to the rate asked for; above that rate only if
        `guarantee_met` is False.
        """
        return (self._allowed() + 1) / (self.n + 1)

    @property
    def threshold(self) -> float:
        """The calibration score that an image must exceed: an alarm is score > threshold, strictly.

        Exactly the same as p <= guaranteed_rate, ties included: a score equal to the threshold does not
        alarm.
        """
        # p <= (k + 1) / (n + 1)  <=>  #{s_i >= s} <= k  <=>  s > the (k + 1)-th largest s_i.
        return float(self.scores[self.n - 1 - self._allowed()])

    def p_values(self, scores: ArrayLike) -> Floats:
        """Conformal p-values (m,) of anomaly scores (m,); see `conformal_p_values`."""
        return conformal_p_values(self.scores, scores)

    def alarms(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Which of the anomaly scores (m,) exceed the threshold, (m,) bool."""
        return self.p_values(scores) <= self.guaranteed_rate

    def tolerance_rate(self, confidence: float = 0.95) -> float:
        """False-alarm rate that the threshold keeps with this confidence over draws of calibration images.

        The mean guarantee hides an unlucky calibration set; this does not. Over such draws the true rate
        above the (k + 1)-th largest of n scores follows Beta(k + 1, n - k), and less with ties (Wilks,
        Annals of Mathematical Statistics 12 (1941); Vovk, Machine Learning 92 (2013)). With the largest
        score as threshold, 1 % at 95 % confidence takes 299 images, 2 % takes 149 and 5 % takes 59.

        Examples
        --------
        >>> round(Calibration(np.arange(299.0), false_alarm_rate=0.001).tolerance_rate(), 4)
        0.01
        """
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence is {confidence}: need a share in (0, 1), such as 0.95")
        k = self._allowed()
        return float(betaincinv(k + 1, self.n - k, confidence))

    def explain(self) -> str:
        """What the threshold guarantees, and what guaranteeing the rate asked for takes, in plain English."""
        target, tolerated = f"{100 * self.false_alarm_rate:.3g} %", f"{100 * self.tolerance_rate():.3g} %"
        guarantee = (
            f"on average at most {100 * self.guaranteed_rate:.3g} % of good images do, as long as they come "
            f"from the same process as the {self.n} calibration images. With 95 % confidence the rate of "
            f"this very threshold is at most {tolerated}."
        )
        if self.withheld:
            return (
                f"An image alarms when it scores above {self.threshold:.6g}, but no false-alarm rate is promised: "
                f"{self.withheld}. A picture that was scored as if new has been recognised by the others of its part, "
                "so other parts will alarm more often. Learn one picture of each part, or fit each alone if these are "
                "products that differ"
            )
        if self.guarantee_met:
            return f"An image alarms when it scores above {self.threshold:.6g} (target {target}); {guarantee}"
        return (
            f"A false-alarm rate of {target} takes at least {images_needed(self.false_alarm_rate)} good "
            f"images to guarantee, and there are {self.n}. Until then an image alarms when it scores above "
            f"all of them ({self.threshold:.6g}); {guarantee}"
        )

    def settings(self) -> dict[str, Any]:
        """All but the scores, JSON-able: ``Calibration(scores, **settings)`` is the same calibration."""
        return {"false_alarm_rate": self.false_alarm_rate, "withheld": self.withheld}

    def at_rate(self, false_alarm_rate: float) -> Calibration:
        """The same scores, for another rate."""
        return replace(self, false_alarm_rate=false_alarm_rate)

    def _allowed(self) -> int:
        """How many calibration scores may reach an alarming score: k of `threshold`."""
        # Compared as p-values are, by the float c / (n + 1), so that rounding cannot set the two apart.
        steps = np.arange(1, self.n + 1) / (self.n + 1)
        return max(int(np.searchsorted(steps, self.false_alarm_rate, side="right")) - 1, 0)


@dataclass(frozen=True)
class Drift:
    """Result of `drift`: a small p-value says that good images now score above the calibration ones."""

    statistic: float  # largest excess of small p-values over their expected share, in [0, 1]
    p_value: float


def conformal_p_values(calibration_scores: ArrayLike, scores: ArrayLike) -> Floats:
    """Share of good images that score at least as high, the new one counted in: (1 + #{s_i >= s}) / (n + 1).

    A new image that is exchangeable with the calibration images has P(p <= a) <= a for every a, also with
    ties, which count against the alarm.

    Parameters
    ----------
    calibration_scores : (n,) anomaly scores of good images, higher = more anomalous.
    scores : (m,) anomaly scores of new images on the same scale. Infinite scores are allowed here.

    Returns
    -------
    (m,) p-values, multiples of 1 / (n + 1); small = anomalous.

    Raises
    ------
    ValueError
        If either is not a vector, a calibration score is not finite, or a score is NaN.

    Examples
    --------
    >>> conformal_p_values([1.0, 2.0, 3.0], [0.0, 2.0, 9.0]).tolist()
    [1.0, 0.75, 0.25]
    """
    known = np.sort(_finite_vector(calibration_scores, "calibration scores"))
    new = np.asarray(scores, dtype=np.float64)
    if new.ndim != 1:
        raise ValueError(f"scores of shape {new.shape}: need a vector")
    if np.isnan(new).any():
        raise ValueError(f"scores has NaN at position {int(np.argmax(np.isnan(new)))}; scores must be numbers")
    at_least = known.size - np.searchsorted(known, new, side="left")  # #{s_i >= s}
    return (1 + at_least) / (known.size + 1)


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


class CrossFit:
    """Scorers fitted with one fold of images left out each, to score every image as if it were new.

    Costs `n_folds` fits on (n_folds - 1) / n_folds of the rows each. All rows of an image stay in one fold,
    since the patches of one image know each other. More folds come closer to the final scorer, which sees
    all images.

    Parameters
    ----------
    make_scorer : returns an unfitted scorer with fit(X, groups) and score(X) -> (n,).
    n_folds : at least 2; with fewer images than folds every image is left out once.
    random_state : seed of the assignment of images to folds.

    Raises
    ------
    ValueError
        If n_folds < 2.

    Examples
    --------
    >>> class DistanceToMean:
    ...     def fit(self, X, groups):
    ...         self.mean_ = X.mean(axis=0)
    ...         return self
    ...     def score(self, X):
    ...         return np.linalg.norm(X - self.mean_, axis=1)
    >>> X, groups = np.array([[0.0], [2.0], [4.0]]), np.array([0, 1, 2])
    >>> CrossFit(DistanceToMean).fit(X, groups).score_excluding(X, groups).tolist()
    [3.0, 0.0, 3.0]
    """

    def __init__(self, make_scorer: Callable[[], FoldScorer], n_folds: int = 5, random_state: int = 0):
        if n_folds < 2:
            raise ValueError(f"n_folds is {n_folds}: at least 2 folds are needed to leave one out")
        self.make_scorer = make_scorer
        self.n_folds = n_folds
        self.random_state = random_state

    def fit(self, X: ArrayLike, groups: ArrayLike) -> CrossFit:
        """Fit one scorer per fold on rows (n, d) of the other folds; `groups` (n,) is the image of each row.

        Raises
        ------
        ValueError
            If there is only one image, or `groups` does not match X.
        """
        rows, image = _rows_and_groups(X, groups)
        images, of_row, n_rows = np.unique(image, return_inverse=True, return_counts=True)
        if images.size < 2:
            raise ValueError(
                f"{images.size} image given: two images are needed to score one without having learnt from it"
            )
        fold = _balanced_folds(n_rows, self.n_folds, self.random_state)  # (n_images,)
        scorers = {}
        for left_out in np.unique(fold):  # with fewer images than folds some are empty
            seen = fold[of_row] != left_out
            scorers[int(left_out)] = self.make_scorer().fit(rows[seen], image[seen])
        self.scorers_ = scorers
        self.fold_of_ = dict(zip(images.tolist(), fold.tolist(), strict=True))
        return self

    def score_excluding(self, X: ArrayLike, groups: ArrayLike) -> Floats:
        """Scores (n,) of rows (n, d), each by the scorer that has not seen its image.

        Raises
        ------
        ValueError
            If `groups` does not match X, or a scorer returns a wrong shape.
        """
        rows, image = _rows_and_groups(X, groups)
        # An image that was in no fold is new to every scorer.
        fold = np.array([self.fold_of_.get(group, 0) for group in image.tolist()])
        scores = np.empty(image.size, dtype=np.float64)
        for left_out in np.unique(fold):
            held_out = fold == left_out
            fold_scores = np.asarray(self.scorers_[int(left_out)].score(rows[held_out]), dtype=np.float64)
            if fold_scores.shape != (held_out.sum(),):
                raise ValueError(f"scorer returned shape {fold_scores.shape} for {held_out.sum()} rows")
            scores[held_out] = fold_scores
        return scores


def drift(p_values: ArrayLike, n_calibration: int) -> Drift:
    """Test whether p-values of new good images are too small to be exchangeable with the calibration images.

    One-sided two-sample Kolmogorov-Smirnov test. All p-values share one calibration set, so they are not
    independent and a one-sample test against the uniform distribution would cry drift ever more often as
    images come in; the size of the calibration set bounds what can be seen. Defective images among the new
    ones look like drift.

    Parameters
    ----------
    p_values : (m,) from `Calibration.p_values`, of new images presumed good.
    n_calibration : `Calibration.n`.

    Raises
    ------
    ValueError
        If there are no p-values, one is outside [0, 1], or n_calibration < 1.

    Examples
    --------
    >>> drift(np.arange(1, 101) / 100, n_calibration=99).p_value
    1.0
    >>> drift(np.arange(1, 101) / 400, n_calibration=99).p_value < 1e-6
    True
    """
    ordered = np.sort(_finite_vector(p_values, "p_values"))
    m = ordered.size
    if m == 0 or n_calibration < 1:
        raise ValueError(f"{m} p-values and {n_calibration} calibration images: at least one of each is needed")
    if ordered[0] < 0.0 or ordered[-1] > 1.0:
        raise ValueError(f"p-values from {ordered[0]} to {ordered[-1]}: need shares in [0, 1], not scores")
    excess = float(max(np.max(np.arange(1, m + 1) / m - ordered), 0.0))  # sup over a of share(p <= a) - a
    # Limit of the one-sided two-sample statistic (Smirnov, 1939).
    return Drift(excess, math.exp(-2 * excess**2 * m * n_calibration / (m + n_calibration)))


def _rows_and_groups(X: ArrayLike, groups: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    rows, image = np.asarray(X), np.asarray(groups)
    if image.ndim != 1 or rows.ndim < 1 or image.size != rows.shape[0]:
        raise ValueError(f"groups {image.shape} and X {rows.shape}: need the image of every row")
    return rows, image


def _finite_vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} of shape {vector.shape}: need a vector")
    if not np.isfinite(vector).all():
        position = int(np.argmin(np.isfinite(vector)))
        raise ValueError(f"{name}: {vector[position]} at position {position}; every value must be finite")
    return vector


def _balanced_folds(n_rows: NDArray[np.intp], n_folds: int, random_state: int) -> NDArray[np.intp]:
    """Fold of every image: largest first, each into the fold with the fewest rows, equals in random order."""
    shuffled = np.random.default_rng(random_state).permutation(n_rows.size)
    fold_of_image = np.empty(n_rows.size, dtype=np.intp)
    filled = np.zeros(n_folds, dtype=np.int64)
    for index in shuffled[np.argsort(-n_rows[shuffled], kind="stable")]:
        fold_of_image[index] = np.argmin(filled)
        filled[fold_of_image[index]] += n_rows[index]
    return fold_of_image
