"""DBSCAN on good rows: the score is the distance to the nearest core sample.

A core sample has at least `min_samples` rows, itself included, within `eps` (Ester et al. 1996). scikit-learn's
DBSCAN keeps all neighbour lists, quadratic memory when eps is large, and cannot score new rows; here neighbours are
counted block by block and clusters are flooded, both in memory linear in the rows.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from anomalib_lite.scoring.base import check_fitted, check_groups, check_rows, check_state, read_only
from anomalib_lite.scoring.neighbors import NeighborIndex

_BLOCK = 1024


class DBSCANScorer:
    """Euclidean distance to the nearest core sample of good rows.

    Parameters
    ----------
    eps : float or "knee"
        Radius of a neighbourhood. "knee" takes it from the sorted distances of the rows to their
        `min_samples`-th neighbour in other groups (images), where the curve turns upwards.
    min_samples : int
        Rows within eps, itself included, that make a core sample.
    device : str
        Where to search; does not change scores beyond rounding.

    Attributes
    ----------
    eps_ : float; core_samples_ : float32 (m, d); core_rows_ : int64 (m,) positions in the rows given to `fit`;
    n_noise_ : int, rows farther than eps from every core sample; n_clusters_ : int, counted when asked for.

    Examples
    --------
    >>> good = np.random.default_rng(0).normal(size=(200, 2))
    >>> scorer = DBSCANScorer().fit(good)
    >>> bool(scorer.score([[9, 9]])[0] > scorer.score([[0, 0]])[0])
    True
    """

    name: ClassVar[str] = "dbscan"
    max_rows: ClassVar[int] = 16_384
    least_images: ClassVar[int] = 3
    """The knee compares images with each other, also when calibration leaves one out."""

    def __init__(self, *, eps: float | Literal["knee"] = "knee", min_samples: int = 5, device: str = "auto"):
        if eps != "knee" and not (isinstance(eps, (int, float)) and eps > 0):
            raise ValueError(f"eps={eps!r}; give a distance above 0 or 'knee'")
        if min_samples < 1:
            raise ValueError(f"min_samples={min_samples}; at least 1")
        self.eps = eps
        self.min_samples = min_samples
        self.device = device

    def fit(self, X: np.ndarray, groups: np.ndarray | None = None) -> DBSCANScorer:
        """Find the core samples among rows `X` (n, d); `groups` (n,) is the image of each row, for the knee.

        Raises
        ------
        ValueError
            If no row is a core sample (the message gives the smallest eps that makes one), or rows are not finite.
        """
        X = check_rows(X)
        groups = check_groups(groups, len(X))
        eps = self._knee(X, groups) if self.eps == "knee" else float(self.eps)
        core = np.flatnonzero(_count_within(X, X, eps) >= self.min_samples)
        if len(core) == 0:
            raise ValueError(self._no_core_text(X, eps))
        noise = int((_count_within(X, X[core], eps) == 0).sum())
        self.eps_, self.core_rows_, self.n_noise_ = eps, core, noise
        self._set(X[core])
        return self

    @property
    def n_clusters_(self) -> int:
        """Number of clusters: groups of core samples that chains of steps of at most eps connect."""
        check_fitted(self, "core_samples_")
        return _count_clusters(self.core_samples_, self.eps_)

    def score(self, X: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,) of rows (n, d): distance to the nearest core sample; higher = more anomalous."""
        check_fitted(self, "core_samples_")
        return self._index.search(check_rows(X, self.core_samples_.shape[1]))[0][:, 0].astype(np.float64)

    def parameters(self) -> dict[str, Any]:
        return {"eps": self.eps, "min_samples": self.min_samples}

    def state(self) -> dict[str, np.ndarray]:
        return {"core_samples": self.core_samples_, "eps": np.array([self.eps_])}

    @classmethod
    def from_state(
        cls, parameters: dict[str, Any], state: dict[str, np.ndarray], *, device: str = "auto"
    ) -> DBSCANScorer:
        scorer = cls(**parameters, device=device)
        check_state(state, core_samples="m d", eps="1")
        if state["eps"][0] <= 0:
            raise ValueError(f"eps is {state['eps'][0]}, not a radius")
        scorer.eps_ = float(state["eps"][0])
        scorer._set(state["core_samples"])
        return scorer

    def _set(self, core: np.ndarray) -> None:
        self._index = NeighborIndex(core, device=self.device)
        self.core_samples_ = read_only(core)

    def _knee(self, X: np.ndarray, groups: np.ndarray) -> float:
        distances = leave_out_k_distances(X, groups, max(1, self.min_samples - 1), device=self.device)
        eps = float(distances[knee(distances)])
        # Many identical rows put the knee at zero; the smallest positive distance still joins them.
        positive = distances[distances > 0]
        if eps == 0 and len(positive) == 0:
            raise ValueError("all rows are the same, so distances have no knee; set eps to a number")
        return eps or float(positive[0])

    def _no_core_text(self, X: np.ndarray, eps: float) -> str:
        if self.min_samples > len(X):
            return f"min_samples={self.min_samples} is more than the {len(X)} rows; lower it"
        enough = NeighborIndex(X, device=self.device).search(X, self.min_samples)[0][:, -1].min()
        return (
            f"eps={eps:.4g} makes no row a core sample of {self.min_samples} rows; the smallest eps that does is "
            f"{_rounded_up(enough)}. Raise eps, lower min_samples, or use eps='knee'"
        )


def leave_out_k_distances(X: np.ndarray, groups: np.ndarray, k: int, *, device: str = "auto") -> np.ndarray:
    """Sorted distances (n,) of rows (n, d) to their k-th nearest row of another group."""
    largest = np.unique(groups, return_counts=True)[1].max()
    others = len(X) - largest
    if others == 0:
        raise ValueError("all rows are of one image; distances to other images need a second one")
    distances = NeighborIndex(X, groups, device=device).search(X, min(k, others), exclude=groups)[0][:, -1]
    return np.sort(distances[np.isfinite(distances)]).astype(np.float64)


def knee(values: np.ndarray, at: np.ndarray | None = None) -> int:
    """Index of the knee of a convex curve: the point farthest below the chord from its first to its last.

    `at` are the places of the values, evenly spaced by default. A curve without rise or fall has its knee at its end.
    Source: Satopaa et al., "Finding a kneedle in a haystack", 2011.
    """
    places = np.linspace(0, 1, len(values)) if at is None else (at - at[0]) / (at[-1] - at[0])
    if values[-1] == values[0]:
        return len(values) - 1
    return int(np.argmax(values[0] + (values[-1] - values[0]) * places - values))


def _rounded_up(value: float) -> str:
    """Four significant digits, never below `value`: a radius to be typed in that must suffice."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / step) * step:.4g}"


def _count_within(X: np.ndarray, bank: np.ndarray, eps: float) -> np.ndarray:
    """Number (n,) of bank rows within eps of every row."""
    within = _Ball(bank, eps)
    blocks = [X[start : start + _BLOCK] for start in range(0, len(X), _BLOCK)]
    return np.concatenate([within(block).sum(dim=1).numpy() for block in blocks])


def _count_clusters(core: np.ndarray, eps: float) -> int:
    """Number of connected components of core samples within eps of each other, flooded one by one."""
    within = _Ball(core, eps)
    unvisited = np.ones(len(core), dtype=bool)
    count = 0
    for seed in range(len(core)):
        if not unvisited[seed]:
            continue
        count += 1
        frontier = np.array([seed])
        unvisited[seed] = False
        while len(frontier):
            block, frontier = frontier[:_BLOCK], frontier[_BLOCK:]
            reached = within(core[block]).any(dim=0).numpy() & unvisited
            unvisited &= ~reached
            frontier = np.concatenate([frontier, np.flatnonzero(reached)])
    return count


class _Ball:
    """Tells which rows of a bank lie within eps of the rows of a block: bool (block, m)."""

    def __init__(self, bank: np.ndarray, eps: float):
        # Centred so that squares stay small; a median, since a mean follows a single far row.
        self.centre = np.median(bank[:: max(1, len(bank) // _BLOCK)], axis=0)
        self.bank = torch.from_numpy(bank - self.centre)
        self.norms = (self.bank**2).sum(dim=1)
        self.eps = eps

    def __call__(self, block: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(block - self.centre)
        own = (rows**2).sum(dim=1, keepdim=True)
        # What float32 leaves of the distance of a row to itself must not exceed a tiny eps.
        limit = self.eps**2 + 1e-6 * own - own
        return torch.addmm(self.norms, rows, self.bank.T, alpha=-2) <= limit
