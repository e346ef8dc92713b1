"""What every scorer promises: rows of good examples in, anomaly scores of new rows out."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np


class Scorer(Protocol):
    """Learns from rows (n, d) of good examples and scores new rows; higher = more anomalous.

    Parameters go into the constructor; learnt attributes end in `_` and are set last, so a failed fit leaves
    nothing half-set.
    """

    name: ClassVar[str]
    max_rows: ClassVar[int]
    """Rows that are worth showing to `fit`; more are thinned out before."""

    def fit(self, X: np.ndarray, groups: np.ndarray | None = None) -> Scorer:
        """Learn from rows `X` (n, d); `groups` (n,) names the image each row came from."""
        ...

    def score(self, X: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,) float64 of rows `X` (n, d)."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Learnt arrays, from which `from_state` rebuilds the scorer."""
        ...

    @classmethod
    def from_state(cls, parameters: dict[str, Any], state: dict[str, np.ndarray]) -> Scorer: ...


def check_rows(X: np.ndarray, dimension: int | None = None) -> np.ndarray:
    """Return `X` as float32 (n, d), or say what is wrong with it.

    Raises
    ------
    ValueError
        If X is not two-dimensional, is empty, holds NaN or infinity, or has another dimension than was learnt.
    """
    X = np.asarray(X, dtype=np.float32)
    if X.ndim != 2 or len(X) == 0:
        raise ValueError(f"a scorer takes rows (n, d) with n >= 1, got shape {X.shape}")
    if dimension is not None and X.shape[1] != dimension:
        raise ValueError(f"rows have {X.shape[1]} dimensions, the scorer was fitted on {dimension}")
    # The sum of finite float32 rows is finite unless it overflows; look closer only then.
    with np.errstate(over="ignore", invalid="ignore"):
        total = X.sum()
    if not np.isfinite(total) and not np.isfinite(X).all():
        bad = int((~np.isfinite(X)).any(axis=1).sum())
        raise ValueError(f"{bad} of {len(X)} rows hold NaN or infinity; look for broken images or features")
    return X


def check_groups(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Return the group of each of `n` rows as int64; by default every row is its own.

    Raises
    ------
    ValueError
        If there are more or fewer groups than rows.
    """
    groups = np.arange(n) if groups is None else np.asarray(groups, dtype=np.int64)
    if groups.shape != (n,):
        raise ValueError(f"groups name the image of each row: {n} are needed, got shape {groups.shape}")
    return groups


def check_fitted(scorer: Scorer, attribute: str) -> None:
    """Raise when a scorer is used before `fit`."""
    if not hasattr(scorer, attribute):
        raise RuntimeError(f"the {scorer.name} scorer is not fitted yet; call fit(X) first")
