"""Do images show parts that lie alike, or a surface on which no place is like another? Of good images."""

from __future__ import annotations

import numpy as np

from anomalib_lite.images.loading import LoadedImage, load
from anomalib_lite.images.sources import ImageSource

_IMAGES = 40  # at most, evenly picked
_SIDE = 32  # they are looked at so small
# Of metal_nut, bottle and elpv_poly the share is 0.37, 0.97 and 0.54; of magnetic_tile and kolektor 0.13 and 0.03.
_SURFACE = 0.2


def placed_share(source: ImageSource, *, workers: int | None = None) -> float:
    """Share of the energy of grey gradients that is explained by their place in the image, from 0 to 1.

    Gradients, since a light that falls unevenly is no structure. The share that few images explain by chance is taken
    off (as the adjusted coefficient of determination does).

    Returns
    -------
    float
        1.0 where fewer than four images can be read, or they are flat.

    Examples
    --------
    >>> from anomalib_lite.images import open_source
    >>> one = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    >>> rolled = [np.roll(one, 5 * i, 0) for i in range(6)]
    >>> placed_share(open_source([one] * 8)), placed_share(open_source(rolled)) < 0.2
    (1.0, True)
    """
    picked = np.unique(np.linspace(0, len(source) - 1, min(len(source), _IMAGES)).round().astype(int))
    loaded = load(source, picked.tolist(), size=_SIDE, workers=workers)
    grey = np.array([image.pixels.mean(axis=2) for image in loaded if isinstance(image, LoadedImage)])
    if len(grey) < 4:
        return 1.0
    gradients = np.stack([np.diff(grey, axis=1)[:, :, :-1], np.diff(grey, axis=2)[:, :-1]])
    energy = float((gradients**2).mean())
    if energy < 1e-6:
        return 1.0
    chance = energy / len(grey)
    placed = (float((gradients.mean(axis=1) ** 2).mean()) - chance) / (energy - chance)
    return min(1.0, max(0.0, placed))


def is_surface(source: ImageSource, *, workers: int | None = None) -> bool:
    """Whether images show a surface on which no place is like another, rather than parts."""
    return placed_share(source, workers=workers) < _SURFACE
