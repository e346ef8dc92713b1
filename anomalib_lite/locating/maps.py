"""From patch scores to pixels: anomaly maps, and the highest value of one.

A map is the grid of patch scores, brought to a size by bilinear interpolation and smoothed by half a patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from anomalib_lite.images.framing import Frame

# Standard deviation of the smoothing of anomaly maps, in patches (Roth et al., PatchCore, use 4 pixels at stride 8).
SMOOTHING = 0.5
_REACH = 6  # standard deviations, beyond which the Gaussian is below float32's precision
_BLOCK = 16  # patches whose pixels are computed together: each depends on its neighbours alone
_PER_PATCH = 4  # places along a patch at which the highest value of a map is looked for


def anomaly_map(
    grid: np.ndarray, frame: Frame | None, original: tuple[int, int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """The map (H, W) float32 of an image of the size `original`, at that size or another.

    Parameters
    ----------
    grid : float32 (gh, gw), patch scores; NaN where nothing was looked at
    frame : how the image lies on the grid; None: the grid is stretched over it

    Returns
    -------
    float32 (H, W), 0 outside the frame's region
    """
    height, width = original if size is None else size
    found = np.empty((height, width), dtype=np.float32)
    for rows, band in map_bands(grid, frame, original, size):
        found[rows] = band
    return found


def map_bands(
    grid: np.ndarray, frame: Frame | None, original: tuple[int, int], size: tuple[int, int] | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of such a map, a band float32 (h, W) at a time, so that it takes little memory whatever its size."""
    height, width = original if size is None else size
    judged = np.isfinite(grid)
    if not judged.all():  # what is not looked at goes on like what lies nearest to it
        from scipy.ndimage import distance_transform_edt  # seldom, and slow to load

        nearest = distance_transform_edt(~judged, return_distances=False, return_indices=True)
        grid = grid[tuple(nearest)]
    canvas = (height, width) if frame is None else frame.canvas(original, (height, width))
    looked_at = None if frame is None or frame.region is None else frame.region.at((height, width))
    wide = _resized(grid.T, canvas[1], width).T
    for rows, cells, weights in _resizing(len(wide), canvas[0]):
        if rows.start >= height:  # the picture ends, and a frame around a thin one has many times its pixels
            return
        band = weights[: height - rows.start] @ wide[cells]
        rows = slice(rows.start, rows.start + len(band))
        if looked_at is not None:
            band[~looked_at[rows]] = 0
        yield rows, band


def peak(grid: np.ndarray, frame: Frame | None, original: tuple[int, int]) -> float:
    """The highest value of an image's map, found at four places along every patch."""
    rows, columns = grid.shape
    if frame is not None:  # of a picture that fills a part of the frame, that part
        (h, w), (height, width) = frame.content(original), frame.size
        rows, columns = max(1, round(rows * h / height)), max(1, round(columns * w / width))
    return float(anomaly_map(grid, frame, original, (_PER_PATCH * rows, _PER_PATCH * columns)).max())


def _resized(grid: np.ndarray, pixels: int, shown: int) -> np.ndarray:
    """Rows (cells, w) brought to `pixels` rows, the first of them (shown, w): bilinear, then smoothed."""
    found = np.empty((shown, grid.shape[1]), dtype=np.float32)
    for rows, cells, weights in _resizing(len(grid), pixels):
        part = found[rows]  # cut off where the picture ends: a frame around a thin one has many times its pixels
        np.matmul(weights[: len(part)], grid[cells], out=part)
    return found


@lru_cache(maxsize=32)
def _resizing(cells: int, pixels: int) -> list[tuple[slice, slice, np.ndarray]]:
    """What `_resized` multiplies with: slices of pixels and of cells, and float32 weights (pixels, cells) between them.

    Blocks, since a matrix of all pixels by all pixels takes gigabytes for a line-scan picture.
    """
    scale = pixels / cells
    reach = int(np.ceil(_REACH * SMOOTHING * scale))
    gaussian = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (SMOOTHING * scale)) ** 2)
    width = max(1.0, 1 / scale)  # of the tent, in cells: shrinking has to average, not to pick
    step = max(1, round(_BLOCK * scale))
    blocks = []
    for top in range(0, pixels, step):
        bottom = min(top + step, pixels)
        near = np.arange(max(0, top - reach), min(pixels, bottom + reach))  # what these pixels are smoothed from
        centres = (near + 0.5) / scale - 0.5
        if scale >= 1:
            centres = np.clip(centres, 0, cells - 1)
        first, last = max(0, int(centres[0] - width)), min(cells, int(centres[-1] + width) + 1)
        tent = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(first, last)) / width)
        tent /= tent.sum(axis=1, keepdims=True)
        size = len(near) + 2 * reach
        smooth = np.fft.irfft(np.fft.rfft(tent, size, axis=0) * np.fft.rfft(gaussian, size)[:, None], size, axis=0)
        weights = np.maximum(smooth[reach + top - near[0] :][: bottom - top], 0)
        weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)  # to one at borders too
        blocks.append((slice(top, bottom), slice(first, last), weights))
    return blocks
