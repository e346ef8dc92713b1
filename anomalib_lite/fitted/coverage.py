"""Whether a promised false-alarm rate held on new good images, in either direction, and in words.

P-values of new good images in; per rate the observed false alarms, the binomial band of the promised rate, and on which
side of it they lie, out. More alarms than the band: the threshold does not hold. Fewer: it is stricter than was asked,
and defects that could have been found are missed.

With few calibration images the true rate of a sound threshold differs from fit to fit, so that the band is wider
(beta-binomial, Vovk, Machine Learning 92 (2013)): by the binomial alone, at 5 % and 100 good images, 29 % of sound fits
on 20 calibration images would be called broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Direction = Literal["within", "above", "below"]

MEANING: dict[Direction, str] = {
    "above": "more than promised: outside the band of chance",
    "below": "fewer than promised: the threshold is stricter than asked and gives away recall",
}
"""What it says of a threshold that the false alarms lie outside the band."""

_SHORT: dict[Direction, str] = {
    "above": "more alarms than promised: the threshold does not hold",
    "below": "fewer alarms than promised: recall is given away",
}


@dataclass(frozen=True)
class RateCoverage:
    """What one promised rate did on good images: how many alarmed, and the counts that chance allows, both included."""

    rate: float
    false_alarms: int
    n_good: int
    band: tuple[int, int]

    @property
    def observed(self) -> float:
        """Share of the good images that alarmed."""
        return self.false_alarms / self.n_good

    @property
    def direction(self) -> Direction:
        """On which side of the band the count lies."""
        return direction_of(self.false_alarms, self.band)


@dataclass(frozen=True)
class Coverage:
    """What `coverage_verdict` found.

    Attributes
    ----------
    n_good : good images whose p-values were given
    at_rates : one `RateCoverage` per rate that has a threshold, in the order asked
    unsupported : rates asked for below the smallest that the calibration images support
    """

    n_good: int
    at_rates: tuple[RateCoverage, ...]
    unsupported: tuple[float, ...] = ()

    def explain(self) -> str:
        """One or two sentences: what the rates out of their band say, or that all lie within."""
        parts = [
            f"{_SHORT[direction]} ({self._counts(found)})"
            for direction in ("above", "below")
            if (found := [at for at in self.at_rates if at.direction == direction])
        ]
        if not parts and self.at_rates:
            parts = [f"as many alarms as promised, give or take chance ({self._counts(self.at_rates)})"]
        text = "; ".join(parts)
        sentences = [f"{text[0].upper()}{text[1:]}."] if text else []
        if self.unsupported:
            named = ", ".join(f"{100 * rate:.3g} %" for rate in self.unsupported)
            sentences.append(f"The calibration images are too few for a threshold at {named}.")
        return " ".join(sentences)

    def _counts(self, found: Sequence[RateCoverage]) -> str:
        counts = ", ".join(f"{at.false_alarms} at {100 * at.rate:.3g} %" for at in found)
        return f"of {self.n_good} good images {counts}"


def coverage_verdict(
    p_values: ArrayLike, rates: Sequence[float] = (0.05, 0.1, 0.2), *, smallest_rate: float = 0.0
) -> Coverage:
    """Compare the false alarms of good images with the rates promised.

    Parameters
    ----------
    p_values : (n,) of good images that were neither learnt from nor calibrated on.
    rates : false-alarm rates in (0, 1) to look at.
    smallest_rate : `Calibration.smallest_rate`; below it no p-value can fall, so rates below are set aside. It says how
        many images calibrate, and so how wide chance is; 0 for as many as one likes.

    Raises
    ------
    ValueError
        If there are no p-values, one is not in [0, 1], or a rate is not in (0, 1).

    Examples
    --------
    >>> coverage_verdict([0.5] * 100).explain()
    'Fewer alarms than promised: recall is given away (of 100 good images 0 at 5 %, 0 at 10 %, 0 at 20 %).'
    >>> [at.direction for at in coverage_verdict([0.01] * 15 + [0.5] * 85).at_rates]
    ['above', 'within', 'within']
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"p-values of shape {values.shape}: need a vector, of one good image at least")
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise ValueError("p-values must be shares in [0, 1], not scores")
    if any(not 0.0 < rate < 1.0 for rate in rates):
        raise ValueError(f"rates {list(rates)}: need shares in (0, 1), such as 0.05 for 5 %")
    n = values.size
    supported = [rate for rate in rates if rate >= smallest_rate]
    return Coverage(
        n_good=n,
        at_rates=tuple(
            RateCoverage(rate, int((values <= rate).sum()), n, alarm_band(rate, n, smallest_rate)) for rate in supported
        ),
        unsupported=tuple(rate for rate in rates if rate < smallest_rate),
    )


def alarm_band(rate: float, n: int, smallest_rate: float) -> tuple[int, int]:
    """Counts of alarms among `n` good images that chance explains, of these images and of those that calibrate.

    Parameters
    ----------
    rate : that is promised, in (0, 1)
    n : good images, at least 1
    smallest_rate : `Calibration.smallest_rate`; 0 for as many calibration images as one likes

    Examples
    --------
    >>> alarm_band(0.05, 100, 0.0), alarm_band(0.05, 100, 0.05)
    ((1, 10), (0, 19))
    """
    if smallest_rate <= 0:
        return binomial_band(rate, n)
    levels = round(1 / smallest_rate)  # calibration images and one
    rank = int(rate * levels + 1e-9)
    from scipy.stats import betabinom  # half a second, which scoring does not need

    low, high = betabinom.ppf([0.025, 0.975], n, rank, levels - rank)
    return max(int(low), 0), max(int(high), 0)


def direction_of(count: int, band: tuple[int, int]) -> Direction:
    """On which side of the band, both ends included, a count lies."""
    low, high = band
    return "above" if count > high else "below" if count < low else "within"


def binomial_band(p: float, n: int, level: float = 0.95) -> tuple[int, int]:
    """Central range of counts among `n` trials when the true rate is `p`, both ends included.

    A count of false alarms inside it is consistent with the target rate: the range holds at least `level`
    of the probability, with at most half of the rest on either side.

    Raises
    ------
    ValueError
        If a rate or a level is no share, or there is no trial.

    Examples
    --------
    >>> binomial_band(0.05, 100)
    (1, 10)
    """
    if not 0.0 <= p <= 1.0 or n < 1:
        raise ValueError(f"rate {p} and {n} trials: need a rate in [0, 1] and n >= 1")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}: need a share in (0, 1), such as 0.95")
    tail = (1.0 - level) / 2
    from scipy.stats import binom

    low, high = binom.ppf([tail, 1.0 - tail], n, p)
    return max(int(low), 0), max(int(high), 0)  # SciPy says -1 where all of the probability is at 0
