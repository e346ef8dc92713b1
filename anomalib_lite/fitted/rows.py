"""Rows of a stream of images: which of them are learnt from, and how their memory does not grow with their number.

Per image a block of rows (patches, d) goes in. `RowSelection` decides which of them may be learnt from at all, and
stands before anything is thinned: a k-center coreset keeps the oddest rows, so it must never see those to be dropped.
`RowCollector` keeps rows up to a budget; beyond it they are thinned: by greedy k-center where rare rows matter (merge
and reduce), otherwise uniformly at random. `FoldedRows` does so for each fold of images apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anomalib_lite.scoring.coreset import greedy_k_center
from anomalib_lite.scoring.neighbors import NeighborIndex

# Rows that stand for all when odd ones are told. Drawn at random, they have few of the rare rows, bad ones among them,
# so the distance to them judges by density.
_REFERENCE = 4096


class RowSelection:
    """Tells which rows of an image to learn from.

    Parameters
    ----------
    trim : float in [0, 1)
        Share of rows left out for being farthest from the rows of other images.
    random_state : int
    device : str
        Where to search.

    Raises
    ------
    ValueError
        If `trim` is no such share.

    Examples
    --------
    >>> X = np.append(np.random.default_rng(0).normal(size=(99, 2)), [[50.0, 50.0]], axis=0).astype(np.float32)
    >>> selection = RowSelection(trim=0.01).learn(X, np.arange(100))
    >>> selection.kept(X[98:99], 98).tolist(), selection.kept(X[99:], 99).tolist()
    ([0], [])
    """

    def __init__(self, trim: float = 0.0, *, random_state: int = 0, device: str = "auto"):
        if not 0 <= trim < 1:
            raise ValueError(f"trim={trim} is a share of rows, in [0, 1)")
        self.trim = trim
        self.random_state = random_state
        self.device = device

    def learn(self, X: np.ndarray, groups: np.ndarray) -> RowSelection:
        """Learn how far rows lie from those of other images, from rows (n, d) of the images `groups` (n,).

        Raises
        ------
        ValueError
            If rows are to be left out, and all are of one image.
        """
        if not self.trim:
            return self
        if groups.min() == groups.max():
            raise ValueError(f"trim={self.trim} compares images with each other, and all rows are of one; set it to 0")
        drawn = np.random.default_rng(self.random_state).permutation(len(X))[:_REFERENCE]
        self._reference = NeighborIndex(X[drawn], groups[drawn], device=self.device)
        self._limit = float(np.quantile(self._distances(X, groups), 1 - self.trim, method="lower"))
        return self

    def kept(self, rows: np.ndarray, image: int) -> np.ndarray:
        """Positions (m,) of the rows (n, d) of an image that are learnt from."""
        if not self.trim:
            return np.arange(len(rows))
        return np.flatnonzero(self._distances(rows, np.full(len(rows), image)) <= self._limit)

    def _distances(self, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return self._reference.search(rows, exclude=groups)[0][:, 0]


class RowCollector:
    """Rows of a stream of images, thinned to a budget.

    Parameters
    ----------
    budget : int or None
        Rows kept at most, but for the last image's; None keeps all.
    coreset_size : int or None
        When the budget is exceeded, replace all rows by a greedy k-center coreset of this size, which keeps
        rare rows (merge and reduce; the covering radii of the rounds add up at worst). None thins
        uniformly at random instead.
    random_state : int
    """

    def __init__(self, budget: int | None, *, coreset_size: int | None, random_state: int = 0):
        self.budget = budget
        self.coreset_size = coreset_size
        self.random_state = random_state
        self._rng = np.random.default_rng(random_state)
        # One block of memory for good: many small ones, thinned again and again, leave holes that never fill.
        self._rows = np.empty((0, 0), dtype=np.float32)
        self._origins = np.empty((0, 2), dtype=np.int64)
        self._count = 0
        self._share = 1.0  # of new rows let in, when thinning at random

    def add(self, rows: np.ndarray, image: int, patches: np.ndarray | None = None) -> None:
        """Take in rows (n, d) of one image; `patches` (n,) are their numbers in it, by default 0, 1, …"""
        patches = np.arange(len(rows)) if patches is None else patches
        if self._share < 1:
            drawn = self._rng.random(len(rows)) < self._share
            rows, patches = rows[drawn], patches[drawn]
        origin = np.stack([np.full(len(rows), image), patches], axis=1)
        self._append(rows, origin)
        while self.budget is not None and self._count > self.budget:
            self._thin()

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows kept (n, d) and their origins (n, 2): image and patch number; the collector is emptied."""
        rows, origins = self._rows[: self._count], self._origins[: self._count]
        # Not slices of them, which would keep the memory.
        self._rows, self._origins, self._count = np.empty((0, 0), dtype=np.float32), np.empty((0, 2), dtype=np.int64), 0
        return rows, origins

    def _append(self, rows: np.ndarray, origins: np.ndarray) -> None:
        if not len(rows):
            return
        end = self._count + len(rows)
        if end > len(self._rows):
            # Without a budget the block doubles, so that every row is moved once or twice.
            capacity = 2 * end if self.budget is None else max(end, self.budget + len(rows))
            self._rows = enlarged(self._rows[: self._count], capacity, rows)
            self._origins = enlarged(self._origins[: self._count], len(self._rows), origins)
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


class FoldedRows:
    """Rows of a stream of images that come in folds, thinned to a budget so that no fold stands for another.

    Where a k-center coreset thins, each fold has its own: merged without one of them they make the bank that would have
    been made without its images, merged all together the bank itself. Cheap, since a coreset of coresets is chosen
    among few rows (Har-Peled and Mazumdar, STOC 2004, for the merging).

    Parameters
    ----------
    n_folds : int
    budget : int or None
        Rows kept at most, see `RowCollector`.
    coreset_size : int or None
        Rows of the bank they are collected for. Every fold keeps as many, since of half as many the means of the bank
        are means of odd rows alone (image AUROC 0.936 and 0.926 on kolektor); but no more than two thirds of its
        budget, so that it is not full again at once. None thins at random.
    random_state : int
    """

    def __init__(self, n_folds: int, budget: int | None, *, coreset_size: int | None, random_state: int = 0):
        count = n_folds if coreset_size is not None else 1  # what is drawn at random leaves no holes
        each = None if budget is None else max(1, budget // count)
        if coreset_size is not None and each is not None:
            coreset_size = min(coreset_size, max(1, 2 * each // 3))
        self.coreset_size = coreset_size
        self.random_state = random_state
        self._collectors = [
            RowCollector(each, coreset_size=coreset_size, random_state=random_state) for _ in range(count)
        ]

    def add(self, rows: np.ndarray, image: int, patches: np.ndarray, fold: int) -> None:
        """Take in rows (n, d) of an image, with their numbers (n,) in it; see `RowCollector.add`."""
        self._collectors[fold % len(self._collectors)].add(rows, image, patches)

    def rows(self, folds: np.ndarray, step: Callable[[], Any] = lambda: None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n, d) and their origins (n, 2); the collector is emptied.

        Parameters
        ----------
        folds : int (images,), those of the images by now
        step : called when a fold is done
        """
        blocks = [collector.rows() for collector in self._collectors]
        if self.coreset_size is None:
            for _ in np.unique(folds):
                step()
            return blocks[0]
        parts = []
        for fold in np.unique(folds):
            own = [folds[origins[:, 0]] == fold for _, origins in blocks]
            # What lies together already, as all of a fold does unless twins have moved, is not copied.
            found = [
                block if mine.all() else block[mine] for (block, _), mine in zip(blocks, own, strict=True) if mine.any()
            ]
            if not found:
                continue
            rows = found[0] if len(found) == 1 else np.concatenate(found)
            origins = np.concatenate([origins[mine] for (_, origins), mine in zip(blocks, own, strict=True)])
            if len(rows) > self.coreset_size:
                kept, _ = greedy_k_center(rows, self.coreset_size, random_state=self.random_state)
                rows, origins = rows[kept], origins[kept]
            parts.append((rows, origins))
            step()
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([origins for _, origins in parts])


def enlarged(kept: np.ndarray, capacity: int, like: np.ndarray) -> np.ndarray:
    """An array of `capacity` rows that begins with `kept`; the rest costs memory only when it is written to."""
    larger = np.empty((capacity, like.shape[1]), dtype=like.dtype)
    if len(kept):  # before the first rows nobody knows their width
        larger[: len(kept)] = kept
    return larger
