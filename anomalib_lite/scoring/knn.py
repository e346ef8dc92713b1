"""k nearest neighbours in a bank of good rows: the score is the mean distance to the k nearest.

The bank has a budget in vectors; by default a greedy k-center coreset fills it, which keeps rare good rows
that random choice would lose (Roth et al., PatchCore, CVPR 2022; Ramaswamy et al. 2000 for the k-NN outlier score).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from anomalib_lite.scoring.base import check_fitted, check_groups, check_rows
from anomalib_lite.scoring.coreset import greedy_k_center
from anomalib_lite.scoring.neighbors import NeighborIndex

Selection = Literal["k-center", "random", "full"]


class KNNScorer:
    """Mean Euclidean distance to the `k` nearest rows of a bank of good rows.

    Parameters
    ----------
    bank_size : int
        Budget in vectors; memory and search time are proportional to it.
    selection : "k-center", "random" or "full"
        How the bank is filled when there are more rows than the budget. "full" keeps all rows.
    k : int
        Neighbours averaged. 1 follows single odd good rows; more smooths and needs a larger bank.
    trim : float in [0, 1)
        Share of rows left out of the bank for being farthest from the rows of other groups. k-center picks
        outliers first, so set it to the share of bad rows you fear among the good ones.
    random_state : int

    Attributes
    ----------
    bank_ : float32 (m, d); bank_rows_ : int64 (m,), their positions in the rows given to `fit`;
    bank_groups_ : int64 (m,); covering_radius_ : float, the largest distance of a good row to its nearest in the bank.

    Examples
    --------
    >>> good = np.random.default_rng(0).normal(size=(500, 4))
    >>> scorer = KNNScorer(bank_size=100).fit(good)
    >>> bool(scorer.score([[0, 0, 0, 0]])[0] < scorer.score([[5, 5, 5, 5]])[0])
    True
    """

    name: ClassVar[str] = "knn"
    max_rows: ClassVar[int] = 262_144

    def __init__(
        self,
        *,
        bank_size: int = 4096,
        selection: Selection = "k-center",
        k: int = 2,
        trim: float = 0.0,
        random_state: int = 0,
    ):
        if selection not in ("k-center", "random", "full"):
            raise ValueError(f"selection={selection!r}; choose 'k-center', 'random' or 'full'")
        if bank_size < 1 or k < 1:
            raise ValueError(f"bank_size and k are at least 1, got bank_size={bank_size}, k={k}")
        if not 0 <= trim < 1:
            raise ValueError(f"trim={trim} is a share of rows, in [0, 1)")
        if k > bank_size:
            raise ValueError(f"k={k} neighbours wanted from a bank of {bank_size}; lower k or enlarge the bank")
        self.bank_size = bank_size
        self.selection = selection
        self.k = k
        self.trim = trim
        self.random_state = random_state

    def fit(self, X: np.ndarray, groups: np.ndarray | None = None) -> KNNScorer:
        """Fill the bank from rows `X` (n, d); `groups` (n,) is the image of each row, for `score_excluding`.

        Raises
        ------
        ValueError
            If there are fewer distinct rows than `k`, rows are not finite, or `trim` finds one group only.
        """
        X = check_rows(X)
        groups = check_groups(groups, len(X))
        if len(X) < self.k:
            raise ValueError(f"k={self.k} neighbours wanted from {len(X)} rows; lower k or give more images")
        candidates = self._trusted(X, groups)
        chosen, radius = self._select(X[candidates] if self.trim else X)
        rows = candidates[chosen]
        if len(rows) < self.k:
            raise ValueError(f"k={self.k} neighbours wanted, but only {len(rows)} rows are distinct; lower k")
        self._set(X[rows], groups[rows], radius)
        self.bank_rows_ = rows
        return self

    def score(self, X: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,) of rows (n, d): mean distance to the k nearest; higher = more anomalous."""
        return self.neighbors(X)[0].mean(axis=1, dtype=np.float64)

    def score_excluding(self, X: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Scores (n,) as if the bank held no row of the same group: for rows the bank was made from.

        Raises
        ------
        ValueError
            If a row has no neighbour outside its group: two groups (images) are needed.
        """
        check_fitted(self, "bank_")
        X = check_rows(X, self.bank_.shape[1])
        groups = check_groups(groups, len(X))
        # A group may own all but a few bank rows; count what the scarcest one has left.
        left = len(self.bank_) - np.unique(self.bank_groups_, return_counts=True)[1].max()
        if left == 0:
            raise ValueError("all bank rows are of one image; leaving it out leaves nothing to compare with")
        distances, _ = self._index.search(X, min(self.k, left), exclude=groups)
        return distances.mean(axis=1, dtype=np.float64)

    def neighbors(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances and bank indices (n, k) of the nearest bank rows of rows (n, d)."""
        check_fitted(self, "bank_")
        return self._index.search(check_rows(X, self.bank_.shape[1]), self.k)

    def parameters(self) -> dict[str, Any]:
        return {
            "bank_size": self.bank_size,
            "selection": self.selection,
            "k": self.k,
            "trim": self.trim,
            "random_state": self.random_state,
        }

    def state(self) -> dict[str, np.ndarray]:
        return {
            "bank": self.bank_,
            "bank_groups": self.bank_groups_,
            "covering_radius": np.array([self.covering_radius_]),
        }

    @classmethod
    def from_state(cls, parameters: dict[str, Any], state: dict[str, np.ndarray]) -> KNNScorer:
        scorer = cls(**parameters)
        scorer._set(state["bank"], state["bank_groups"], float(state["covering_radius"][0]))
        return scorer

    def _set(self, bank: np.ndarray, groups: np.ndarray, radius: float) -> None:
        self._index = NeighborIndex(bank, groups)
        self.bank_groups_ = groups
        self.covering_radius_ = radius
        self.bank_ = bank

    def _trusted(self, X: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Row numbers left after trimming those farthest from the rows of other groups."""
        if not self.trim:
            return np.arange(len(X))
        if groups.min() == groups.max():
            raise ValueError(f"trim={self.trim} compares images with each other, and all rows are of one; set it to 0")
        # A random bank has few of the rare rows, bad ones among them, so it judges by density.
        rng = np.random.default_rng(self.random_state)
        sample = rng.choice(len(X), size=min(len(X), self.bank_size), replace=False)
        distance = NeighborIndex(X[sample], groups[sample]).search(X, 1, exclude=groups)[0][:, 0]
        keep = max(self.k, round(len(X) * (1 - self.trim)))
        return np.sort(np.argsort(distance, kind="stable")[:keep])

    def _select(self, X: np.ndarray) -> tuple[np.ndarray, float]:
        if self.selection == "full" or len(X) <= self.bank_size:
            return np.arange(len(X)), 0.0
        if self.selection == "k-center":
            return greedy_k_center(X, self.bank_size, random_state=self.random_state)
        rng = np.random.default_rng(self.random_state)
        chosen = np.sort(rng.choice(len(X), size=self.bank_size, replace=False))
        return chosen, float(NeighborIndex(X[chosen]).search(X, 1)[0].max())
