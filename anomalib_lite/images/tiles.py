"""Windows of a picture that a network sees one after another: where they lie, and which patches each of them gives.

Windows overlap, and every patch comes from the window in whose middle it lies deepest, so that what a network makes up
beyond a border is seldom used, and a grid of patches has no seams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

STEP = 16  # windows begin at multiples of it, the coarsest stride of the networks: patches of all of them are one grid
LARGEST_NUMBER = 1 << 16  # of windows of a picture


@dataclass(frozen=True, eq=False)
class Window:
    """One window, and the patches that are taken from it.

    Attributes
    ----------
    rows, columns : slices of the picture's pixels
    own : int64 (n,), numbers of these patches on the window's grid
    patches : int64 (n,), their numbers on the grid of the picture
    """

    rows: slice
    columns: slice
    own: np.ndarray
    patches: np.ndarray

    def only(self, wanted: np.ndarray) -> Window:
        """The same window with those of its patches alone that are True in `wanted`, bool over the picture's grid."""
        kept = wanted[self.patches]
        return Window(self.rows, self.columns, self.own[kept], self.patches[kept])


def window_starts(length: int, window: int, count: int) -> list[int]:
    """Where `count` windows begin that cover a length evenly; all of these are multiples of 16."""
    if count == 1:
        return [0]
    # Rounded down: then none lies farther from the one before than they do on average, rounded up.
    return [i * (length - window) // (count - 1) // STEP * STEP for i in range(count)]


def windows_needed(length: float, window: float, overlap: float) -> int:
    """How many windows cover a length where two share at least a share `overlap` of one."""
    if window >= length:
        return 1
    return int(np.ceil((length - window) / (window * (1 - overlap)) - 1e-9)) + 1


def grid_of(size: tuple[int, int], window: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches of a picture (h, w) whose windows (h, w) have grids `own`."""
    return round(size[0] * own[0] / window[0]), round(size[1] * own[1] / window[1])


def cut(size: tuple[int, int], window: tuple[int, int], count: tuple[int, int], own: tuple[int, int]) -> list[Window]:
    """The windows of a picture, from left to right and from top to bottom.

    Parameters
    ----------
    size, window : (h, w) of the picture and of a window in pixels
    count : rows and columns of windows
    own : rows and columns of patches that the network gives for a window
    """
    grid = grid_of(size, window, own)
    vertical, horizontal = (
        list(_shares(size[axis], window[axis], count[axis], own[axis], grid[axis])) for axis in (0, 1)
    )
    return [
        Window(
            slice(top, top + window[0]),
            slice(left, left + window[1]),
            (own_rows[:, None] * own[1] + own_columns).ravel(),
            (rows[:, None] * grid[1] + columns).ravel(),
        )
        for top, own_rows, rows in vertical
        for left, own_columns, columns in horizontal
    ]


def _shares(length: int, window: int, count: int, own: int, cells: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Along one axis: of every window its start, and of the cells that it gives the numbers in it and in all."""
    starts = np.array(window_starts(length, window, count))
    middles = (np.arange(cells) + 0.5) * (length / cells)
    # Half way between the middles of two windows; no table of all cells and windows, which would fill the memory.
    nearest = np.searchsorted((starts[1:] + starts[:-1] + window) / 2, middles)
    for i, start in enumerate(starts.tolist()):
        mine = np.flatnonzero(nearest == i)
        inside = np.floor((middles[mine] - start) * (own / window)).astype(np.int64)
        yield start, np.clip(inside, 0, own - 1), mine
