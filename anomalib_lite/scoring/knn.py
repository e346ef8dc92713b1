"""k nearest neighbours in a bank of good rows: the score is the mean distance to the k nearest.

The bank has a budget in vectors; by default a greedy k-center coreset fills it, which keeps rare good rows
that random choice would lose (Roth et al., PatchCore, CVPR 2022; Ramaswamy et al. 2000 for the k-NN outlier score).
Its rows are the odd ones of their neighbourhoods, and which of them are taken is chance; so each is moved to the mean
of the rows nearest to it, one step of Lloyd's (IEEE Transactions on Information Theory 28 (1982)). It ranks better, and
a second step changes little (`docs/benchmarks.md`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from anomalib_lite.scoring.base import check_fitted, check_groups, check_rows, check_state, read_only
from anomalib_lite.scoring.coreset import greedy_k_center
from anomalib_lite.scoring.neighbors import NeighborIndex

Selection = Literal["k-center", "random", "full"]

# Rows worth showing to the choice of a bank, unless the bank itself is larger.
_MAX_ROWS = 262_144
# Neighbours of a bank row that its spacing is measured by, and the least share of the usual spacing that counts.
_SPACING = 4
_LEAST_UNIT = 0.25
_AT_ONCE = 1024  # rows that are searched together for how far the bank reaches


class KNNScorer:
    """Mean Euclidean distance to the `k` nearest rows of a bank of good rows.

    Parameters
    ----------
    bank_size : int
        Budget in vectors; memory and search time are proportional to it.
    selection : "k-center", "random" or "full"
        How the bank is filled when there are more rows than the budget: "k-center" with means of neighbourhoods,
        "random" with rows as they are. "full" keeps all rows, whatever their number: memory and time grow with it.
    k : int
        Neighbours averaged. 1 follows single odd good rows; more smooths and needs a larger bank.
    local : float in [0, 1]
        How far the unit of distance follows the bank: 0 is one unit everywhere; 1 measures in spacings of the bank
        where the neighbour lies (as the simplified local outlier factor does, Schubert, Zimek and Kriegel, Data Mining
        and Knowledge Discovery 28 (2014)), so that where good rows are rare and far apart a new one may be farther off.
        Half way is the square root.
        For "k-center" only, which makes spacing mean something.
    random_state : int
    device : str
        Where to search; does not change scores beyond rounding.

    Attributes
    ----------
    bank_ : float32 (m, d); bank_rows_ : int64 (m,), for each of it the position, among the rows given to `fit`, of the
    row that it is, or of that of its neighbourhood that lies nearest to its mean;
    covering_radius_ : float, the largest distance of a good row to its nearest in the bank.

    Examples
    --------
    >>> good = np.random.default_rng(0).normal(size=(500, 4))
    >>> scorer = KNNScorer(bank_size=100).fit(good)
    >>> bool(scorer.score([[0, 0, 0, 0]])[0] < scorer.score([[5, 5, 5, 5]])[0])
    True
    """

    name: ClassVar[str] = "knn"

    def __init__(
        self,
        *,
        bank_size: int = 10_000,
        selection: Selection = "k-center",
        k: int = 2,
        local: float = 0.5,
        random_state: int = 0,
        device: str = "auto",
    ):
        if selection not in ("k-center", "random", "full"):
            raise ValueError(f"selection={selection!r}; choose 'k-center', 'random' or 'full'")
        if bank_size < 1 or k < 1:
            raise ValueError(f"bank_size and k are at least 1, got bank_size={bank_size}, k={k}")
        if k > bank_size:
            raise ValueError(f"k={k} neighbours wanted from a bank of {bank_size}; lower k or enlarge the bank")
        if not 0 <= local <= 1:
            raise ValueError(f"local={local} says how far the unit of distance follows the bank, from 0 to 1")
        self.bank_size = bank_size
        self.selection = selection
        self.k = k
        self.local = local
        self.random_state = random_state
        self.device = device

    @property
    def max_rows(self) -> int | None:
        """Rows worth showing to `fit`; all of them for "full"."""
        return None if self.selection == "full" else max(_MAX_ROWS, 2 * self.bank_size)

    @property
    def coreset_size(self) -> int | None:
        """Rows of a k-center coreset that may stand for more rows than `max_rows`."""
        return self.bank_size if self.selection == "k-center" else None

    def fit(self, X: np.ndarray, groups: np.ndarray | None = None) -> KNNScorer:
        """Fill the bank from rows `X` (n, d); `groups` (n,), the image of each row, change nothing.

        Raises
        ------
        ValueError
            If there are fewer distinct rows than `k`, or rows are not finite.
        """
        X = check_rows(X)
        check_groups(groups, len(X))
        if len(X) < self.k:
            raise ValueError(f"k={self.k} neighbours wanted from {len(X)} rows; lower k or give more images")
        rows, radius = self._select(X)
        if len(rows) < self.k:
            raise ValueError(f"k={self.k} neighbours wanted, but only {len(rows)} rows are distinct; lower k")
        if self.selection == "k-center" and len(rows) < len(X):
            own = NeighborIndex(X[rows], device=self.device).search(X, 1)[1][:, 0]
            means = _means(X, rows, own)
            away = _distances(X, means, own)
            order = np.lexsort((away, own))
            reached, first = np.unique(own[order], return_index=True)
            rows[reached] = order[first]
            self._set(means, radius)
            self.covering_radius_ = _farthest(X, self._index, away)
        else:
            self._set(X[rows], radius)
        self.bank_rows_ = rows
        return self

    def score(self, X: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,) of rows (n, d): mean distance to the k nearest, in `local` units; higher = odder."""
        return self.score_and_nearest(X)[0]

    def score_and_nearest(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores (n,) of rows (n, d), positions (n,) in the bank of their nearest rows, distances (n,) to these."""
        distances, indices = self.neighbors(X)
        measured = distances if self._units is None else distances / self._units[indices]
        return measured.mean(axis=1, dtype=np.float64), indices[:, 0], distances[:, 0]

    @property
    def units_(self) -> np.ndarray | None:
        """The unit of distance float32 (m,) at every row of the bank; None for one unit everywhere."""
        check_fitted(self, "bank_")
        return self._units

    def neighbors(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances and bank indices (n, k) of the nearest bank rows of rows (n, d)."""
        check_fitted(self, "bank_")
        return self._index.search(check_rows(X, self.bank_.shape[1]), self.k)

    def parameters(self) -> dict[str, Any]:
        return {
            "bank_size": self.bank_size,
            "selection": self.selection,
            "k": self.k,
            "local": self.local,
            "random_state": self.random_state,
        }

    def state(self) -> dict[str, np.ndarray]:
        return {
            "bank": self.bank_,
            "covering_radius": np.array([self.covering_radius_]),
        }

    @classmethod
    def from_state(cls, parameters: dict[str, Any], state: dict[str, np.ndarray], *, device: str = "auto") -> KNNScorer:
        scorer = cls(**parameters, device=device)
        m, _ = check_state(state, bank="m d", covering_radius="1")
        if m < scorer.k or state["covering_radius"][0] < 0:
            raise ValueError(f"a bank of {m} rows does not serve k={scorer.k}")
        scorer._set(state["bank"], float(state["covering_radius"][0]))
        return scorer

    def _set(self, bank: np.ndarray, radius: float) -> None:
        self._index = NeighborIndex(bank, device=self.device)
        self._units = self._local_units(bank)
        self.covering_radius_ = radius
        self.bank_ = read_only(bank)

    def _local_units(self, bank: np.ndarray) -> np.ndarray | None:
        """The unit of distance (m,) at every row of the bank, 1 at the median one; None for one unit everywhere."""
        if not self.local or self.selection != "k-center" or len(bank) < 3:
            return None
        spacing = self._index.search(bank, min(_SPACING + 1, len(bank)))[0][:, 1:].mean(axis=1)
        usual = float(np.median(spacing))
        if not np.isfinite(usual):
            raise ValueError("the bank's rows are too far apart for their distances to be numbers")
        # Rows that coincide have no spacing; they may not make everything else infinitely far.
        return None if usual == 0 else (np.maximum(spacing / usual, _LEAST_UNIT) ** self.local).astype(np.float32)

    def _select(self, X: np.ndarray) -> tuple[np.ndarray, float]:
        if self.selection == "full" or len(X) <= self.bank_size:
            return np.arange(len(X)), 0.0
        if self.selection == "k-center":
            return greedy_k_center(X, self.bank_size, random_state=self.random_state)
        rng = np.random.default_rng(self.random_state)
        chosen = np.sort(rng.choice(len(X), size=self.bank_size, replace=False))
        return chosen, float(NeighborIndex(X[chosen], device=self.device).search(X, 1)[0].max())


def _means(X: np.ndarray, chosen: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of the chosen rows (m,) of X (n, d) each moved to the mean of those whose `own` (n,) it is: float32 (m, d)."""
    order = np.argsort(own, kind="stable")
    reached, first = np.unique(own[order], return_index=True)
    sums = np.add.reduceat(X[order], first, axis=0, dtype=np.float64)
    means = X[chosen]
    means[reached] = sums / np.diff(np.append(first, len(X)))[:, None]
    return means


def _distances(X: np.ndarray, means: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of rows (n, d) to the mean that each is of: float32 (n,)."""
    found = np.empty(len(X), dtype=np.float32)
    for start in range(0, len(X), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        found[block] = np.linalg.norm(X[block] - means[own[block]], axis=1)
    return found


def _farthest(X: np.ndarray, index: NeighborIndex, at_most: np.ndarray) -> float:
    """The largest distance of rows (n, d) to what is nearest to them, for each of which a bound (n,) is known.

    Those with the largest bounds are searched, until no bound left is larger than what was found.
    """
    farthest = 0.0
    order = np.argsort(-at_most)
    for start in range(0, len(X), _AT_ONCE):
        block = order[start : start + _AT_ONCE]
        if at_most[block[0]] <= farthest:
            break
        farthest = max(farthest, float(index.search(X[block], 1)[0].max()))
    return farthest
