"""Probability of detection by size: a curve through hits and misses, and what it promises. Arrays in, plain values out.

The model of MIL-HDBK-1823A (2009), appendix G.3.4, for hit/miss data: the logit of the probability is linear in the
logarithm of the size. It is fitted with the penalty of Firth (Biometrika 80 (1993); Heinze and Schemper, Statistics in
Medicine 21 (2002)), so that it exists when all large defects are found and no small one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_ONE_SIDED = 1.6449  # standard deviations of a bound at 95 %
_STEPS = 100


@dataclass(frozen=True)
class DetectionCurve:
    """Probability that a defect is found, by its size.

    Attributes
    ----------
    intercept, slope : logit p = intercept + slope × ln(size)
    covariance : of both, ((a, b), (b, c))
    smallest, largest : sizes that were tried
    n, hits : defects, and how many were found
    """

    intercept: float
    slope: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    smallest: float
    largest: float
    n: int
    hits: int

    def probability(self, sizes: Any) -> np.ndarray:
        """Probability (m,) that defects of these sizes (m,) are found."""
        return _logistic(self.intercept + self.slope * np.log(np.asarray(sizes, dtype=np.float64)))

    def lower(self, sizes: Any) -> np.ndarray:
        """What that probability (m,) is at least, with 95 % confidence at each size (Wald)."""
        x = np.log(np.asarray(sizes, dtype=np.float64))
        (a, b), (_, c) = self.covariance
        deviation = np.sqrt(np.maximum(a + 2 * b * x + c * x**2, 0))
        return _logistic(self.intercept + self.slope * x - _ONE_SIDED * deviation)

    def size_found(self, probability: float, *, confident: bool = False) -> float | None:
        """The smallest size from which on defects are found with this probability; None if none that was tried is.

        With `confident`, with 95 % confidence: ``size_found(0.9, confident=True)`` is a90/95.
        """
        sizes = np.geomspace(self.smallest, self.largest, 2000)
        found = (self.lower(sizes) if confident else self.probability(sizes)) >= probability
        if not found[-1]:
            return None
        misses = np.flatnonzero(~found)
        return float(sizes[misses[-1] + 1]) if len(misses) else float(sizes[0])


def fit_curve(sizes: np.ndarray, found: np.ndarray) -> DetectionCurve:
    """Fit the curve to defects of sizes (n,), of which `found` bool (n,) were.

    Raises
    ------
    ValueError
        If there are fewer than ten, or all are of one size.

    Examples
    --------
    >>> sizes = np.geomspace(1, 100, 200)
    >>> curve = fit_curve(sizes, sizes > 10)
    >>> round(curve.size_found(0.5)), curve.size_found(0.9, confident=True) < 20
    (10, True)
    """
    x, y = np.log(np.asarray(sizes, dtype=np.float64)), np.asarray(found, dtype=np.float64)
    if len(x) < 10 or x.min() == x.max():
        raise ValueError(
            f"{len(x)} defects of sizes from {np.min(sizes)} to {np.max(sizes)}; ten of several are needed"
        )
    middle = x.mean()
    X = np.stack([np.ones_like(x), x - middle], axis=1)
    beta = np.zeros(2)
    for _ in range(_STEPS):
        p = _logistic(X @ beta)
        weights = p * (1 - p)
        information = X.T @ (X * weights[:, None]) + 1e-9 * np.eye(2)
        inverse = np.linalg.inv(information)
        leverage = weights * np.einsum("ij,jk,ik->i", X, inverse, X)
        step = inverse @ (X.T @ (y - p + leverage * (0.5 - p)))
        beta = beta + step / max(1.0, float(np.abs(step).max()) / 2)  # no more than two logits at a time
        if np.abs(step).max() < 1e-8:
            break
    shift = np.array([[1.0, -middle], [0.0, 1.0]])
    intercept, slope = shift @ beta
    covariance = shift @ inverse @ shift.T
    return DetectionCurve(
        intercept=float(intercept),
        slope=float(slope),
        covariance=(
            (float(covariance[0, 0]), float(covariance[0, 1])),
            (float(covariance[0, 1]), float(covariance[1, 1])),
        ),
        smallest=float(np.min(sizes)),
        largest=float(np.max(sizes)),
        n=len(x),
        hits=int(y.sum()),
    )


def _logistic(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))
