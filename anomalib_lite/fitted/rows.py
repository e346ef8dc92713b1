"""Keep what a fit needs of a stream of images, in memory that does not grow with their number.

Per image a block of rows (patches, d) goes in; rows for the scorer and the blocks of a few images, for
calibration, come out. Up to a budget everything is kept; beyond it rows are thinned: by greedy k-center where rare rows
matter (merge and reduce), otherwise uniformly at random.
"""

from __future__ import annotations

import numpy as np

from anomalib_lite.scoring.coreset import greedy_k_center


class RowCollector:
    """Rows of a stream of images, thinned to a budget.

    Parameters
    ----------
    budget : int
        Rows kept at most, but for the last image's.
    coreset_size : int or None
        When the budget is exceeded, replace all rows by a greedy k-center coreset of this size, which keeps
        rare rows (merge and reduce; the covering radii of the rounds add up at worst). None thins
        uniformly at random instead.
    random_state : int
    """

    def __init__(self, budget: int, *, coreset_size: int | None, random_state: int = 0):
        self.budget = budget
        self.coreset_size = coreset_size
        self.random_state = random_state
        self._rng = np.random.default_rng(random_state)
        # One block of memory for good: many small ones, thinned again and again, leave holes that never fill.
        self._rows = np.empty((0, 0), dtype=np.float32)
        self._origins = np.empty((0, 2), dtype=np.int64)
        self._count = 0
        self._share = 1.0  # of new rows let in, when thinning at random

    def add(self, rows: np.ndarray, image: int) -> None:
        """Take in the rows (patches, d) of one image."""
        patches = np.arange(len(rows))
        if self._share < 1:
            patches = np.flatnonzero(self._rng.random(len(rows)) < self._share)
            rows = rows[patches]
        origin = np.stack([np.full(len(rows), image), patches], axis=1)
        self._append(rows, origin)
        while self._count > self.budget:
            self._thin()

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows kept (n, d) and their origins (n, 2): image and patch number; the collector is emptied."""
        rows, origins = self._rows[: self._count], self._origins[: self._count]
        self._rows, self._origins, self._count = self._rows[:0], self._origins[:0], 0
        return rows, origins

    def _append(self, rows: np.ndarray, origins: np.ndarray) -> None:
        end = self._count + len(rows)
        if end > len(self._rows):
            self._rows = _enlarged(self._rows[: self._count], max(end, self.budget + len(rows)), rows)
            self._origins = _enlarged(self._origins[: self._count], len(self._rows), origins)
        self._rows[self._count : end] = rows
        self._origins[self._count : end] = origins
        self._count = end

    def _thin(self) -> None:
        rows, origins = self._rows[: self._count], self._origins[: self._count]
        if self.coreset_size is not None and self.coreset_size < len(rows):
            kept, _ = greedy_k_center(rows, self.coreset_size, random_state=self.random_state)
        else:
            # Halving the rows here and the share let in later leaves every row of the stream the same chance.
            kept = np.flatnonzero(self._rng.random(len(rows)) < 0.5)
            self._share /= 2
        chosen, their_origins = rows[kept], origins[kept]
        self._count = 0
        self._append(chosen, their_origins)


def _enlarged(kept: np.ndarray, capacity: int, like: np.ndarray) -> np.ndarray:
    """An array of `capacity` rows that begins with `kept`; the rest costs memory only when it is written to."""
    larger = np.empty((capacity, like.shape[1]), dtype=like.dtype)
    if len(kept):  # before the first rows nobody knows their width
        larger[: len(kept)] = kept
    return larger
