"""A pool of formula images on disk, drawn once by seed and used many times."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

Draw = Callable[[int, int], np.ndarray]


def draw_pool(
    path: Path, draw: Draw, count: int, side: int, *, first: int = 0, workers: int | None = None
) -> torch.Tensor:
    """Draw images `draw(first + i, side)` into one file and map it, uint8 (count, side, side, 3).

    A finished file is used again; one that was interrupted is drawn anew, since it lies under another name.
    """
    if not path.is_file():
        partial = path.with_suffix(".part")
        pool = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, side, side, 3))
        blocks = [range(begin, min(begin + 64, count)) for begin in range(0, count, 64)]
        workers = workers or os.cpu_count() or 1
        Parallel(workers)(delayed(_draw_block)(partial, draw, first, block, side) for block in blocks)
        pool.flush()
        os.replace(partial, path)
    pool = np.load(path, mmap_mode="c")  # torch wants writable memory; nothing written reaches the file
    if pool.shape != (count, side, side, 3):
        raise ValueError(f"{path} holds images of shape {pool.shape}, not {(count, side, side, 3)}; delete it")
    return torch.from_numpy(pool)


def _draw_block(path: Path, draw: Draw, first: int, block: range, side: int) -> None:
    pool = np.lib.format.open_memmap(path, "r+")
    for i in block:
        pool[i] = draw(first + i, side)
