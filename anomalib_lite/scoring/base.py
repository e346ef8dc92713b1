"""What every scorer promises: rows of good examples in, anomaly scores of new rows out.

What more one can do is asked for by shape, so that a scorer of your own gets it too: `ExplainsByNeighbors`,
and the attributes `least_images` and `coreset_size`, both optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np


class Scorer(Protocol):
    """Learns from rows (n, d) of good examples and scores new rows; higher = more anomalous.

    Parameters go into the constructor; learnt attributes end in `_` and are set last, so a failed fit leaves
    nothing half-set.
    """

    name: ClassVar[str]

    @property
    def max_rows(self) -> int | None:
        """Rows that are worth showing to `fit`; more are thinned out before. None: all, whatever they cost.

        They are thinned at random, or to a k-center coreset where the scorer has a `coreset_size`.
        """
        ...

    def fit(self, X: np.ndarray, groups: np.ndarray | None = None) -> Scorer:
        """Learn from rows `X` (n, d); `groups` (n,) names the image each row came from."""
        ...

    def score(self, X: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,) float64 of rows `X` (n, d)."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Constructor arguments that decide scores, JSON-able; `device` does not."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Learnt arrays, from which `from_state` rebuilds the scorer."""
        ...

    @classmethod
    def from_state(cls, parameters: dict[str, Any], state: dict[str, np.ndarray], *, device: str = "auto") -> Scorer:
        """The scorer whose `state` this is.

        Raises
        ------
        ValueError
            If the arrays do not fit one another or hold what no fit leaves behind.
        """
        ...


@runtime_checkable
class ExplainsByNeighbors(Protocol):
    """A scorer that names the good row a new one is most like.

    After `fit` its `bank_rows_` (m,) are the positions, among the rows it was given, of those that stand for its bank.
    """

    def score_and_nearest(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores (n,) of rows (n, d), positions (n,) in the bank of their nearest rows, distances (n,) to these."""
        ...


def least_images(scorer: Scorer) -> int:
    """Images a scorer needs to be fitted and calibrated: its `least_images`, or 2, one of them to be left out."""
    return int(getattr(scorer, "least_images", 2))


def coreset_size(scorer: Scorer) -> int | None:
    """Rows of the k-center coreset that may stand for all rows shown to a scorer: its `coreset_size`, or none."""
    return getattr(scorer, "coreset_size", None)


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


def check_state(state: Mapping[str, np.ndarray], **shapes: str) -> tuple[int, ...]:
    """Check arrays that come from a file: there, finite, and of shapes that fit one another.

    Parameters
    ----------
    state : arrays by name
    shapes : per array its axes, such as "m d": a letter stands for one length wherever it occurs, a number for itself

    Returns
    -------
    The lengths of the letters, in the order they occur.

    Raises
    ------
    ValueError
        If an array is missing, has another shape, or holds NaN or infinity.
    """
    lengths: dict[str, int] = {}
    for name, axes in shapes.items():
        array = state.get(name)
        wanted = axes.split()
        if array is None or array.dtype.kind not in "iuf" or array.ndim != len(wanted) or 0 in array.shape:
            raise ValueError(f"{name} is missing or is no array of numbers ({', '.join(wanted)})")
        for axis, length in zip(wanted, array.shape, strict=True):
            if length != (int(axis) if axis.isdigit() else lengths.setdefault(axis, length)):
                raise ValueError(f"{name} has shape {array.shape}, which does not fit ({', '.join(wanted)})")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return tuple(lengths.values())


def read_only(array: np.ndarray) -> np.ndarray:
    """The array as it is, but for writing."""
    view = array.view()
    view.flags.writeable = False
    return view


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
