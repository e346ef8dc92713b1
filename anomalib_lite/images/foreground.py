"""Where the part is: an estimate from good images, for those who have no mask of it.

For parts before an even ground that images show all around them. A surface that fills the image has no ground, and that
is said rather than guessed. An estimate is to be looked at (`diagnose` draws it) before it is relied on.
"""

from __future__ import annotations

import numpy as np

from anomalib_lite.images.loading import LoadedImage, load
from anomalib_lite.images.sources import ImageSource

_IMAGES = 32  # at most, evenly picked
_SIDE = 256  # they are looked at so small
_BORDER = 0.02  # of the side: what is surely ground
_EVEN = 0.75  # share of the border that has to look alike, and of the variance that a threshold has to explain
_SEEN = 0.02  # share of the images in which a pixel shows the part: parts do not lie quite alike
_MARGIN = 0.02  # of the side, around it


def estimate_foreground(source: ImageSource, size: tuple[int, int], *, workers: int | None = None) -> np.ndarray:
    """Estimate where parts lie, from the colours that differ from those of the ground.

    A threshold on the distance from the colour of the border, by Otsu's method (IEEE Transactions on Systems, Man, and
    Cybernetics 9 (1979)), tells part from ground; pixels count that show the part in any of up to 32 images, and those
    that these enclose.

    Parameters
    ----------
    source : ImageSource
    size : (H, W) of the mask
    workers : int, optional
        Decoding threads.

    Returns
    -------
    bool (H, W)

    Raises
    ------
    ValueError
        If there is no even ground around the parts.
    """
    from scipy import ndimage

    picked = np.unique(np.linspace(0, len(source) - 1, min(len(source), _IMAGES)).round().astype(int))
    loaded = load(source, picked.tolist(), size=_SIDE, workers=workers)
    pictures = np.array([image.pixels for image in loaded if isinstance(image, LoadedImage)], dtype=np.float32)
    if not len(pictures):
        raise ValueError("roi='auto': none of the training images looked at can be read")
    edge = max(1, round(_BORDER * _SIDE))
    border = np.ones((_SIDE, _SIDE), dtype=bool)
    border[edge:-edge, edge:-edge] = False
    # The ground of each image by itself: light changes from one to the next.
    ground = np.median(pictures[:, border], axis=1)
    away = np.linalg.norm(ndimage.uniform_filter(pictures, (0, 3, 3, 0)) - ground[:, None, None], axis=-1)
    threshold, explained = _otsu(away)
    part = away > threshold
    if explained < _EVEN or (~part[:, border]).mean() < _EVEN:
        raise ValueError(
            "roi='auto': no even ground is found around the parts in these images, so there is nothing to leave out; "
            "give a mask image, boxes or polygons, or leave roi out"
        )
    seen = ndimage.binary_opening(part.mean(axis=0) >= _SEEN, iterations=2)
    labels, count = ndimage.label(seen)
    if not count:
        raise ValueError("roi='auto': no part stands out from the ground; give a mask image, boxes or polygons")
    sizes = np.bincount(labels.ravel())[1:]
    seen = np.isin(labels, 1 + np.flatnonzero(sizes >= 0.05 * sizes.max()))
    seen = ndimage.binary_dilation(ndimage.binary_fill_holes(seen), iterations=max(1, round(_MARGIN * _SIDE)))
    # Large by its own steps: an estimate is no finer than what it was made from.
    rows, columns = (np.minimum(np.arange(side) * _SIDE // side, _SIDE - 1) for side in size)
    return seen[rows[:, None], columns]


def _otsu(values: np.ndarray) -> tuple[float, float]:
    """The threshold between two kinds of values, and the share of the variance that it explains."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    share = below / below[-1]
    sums = np.cumsum(counts * middles) / below[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num((sums[-1] * share - sums) ** 2 / (share * (1 - share)))
    best = int(between.argmax())
    total = float(((middles - sums[-1]) ** 2 * counts).sum() / below[-1])
    return float(edges[best + 1]), float(between[best]) / total if total else 0.0
