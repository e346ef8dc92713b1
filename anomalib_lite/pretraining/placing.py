"""Where in a picture the places of a network's maps lie, and pictures shown so that those of several networks agree.

By their geometry the first place of a network that pads is centred on the first pixel, and of one that does not
further in. What a trained network answers to lies elsewhere: by up to 5 pixels at stride 8 and 12 at stride 16, to
either side, as it was trained. So it is measured: dots are painted on crops, and where the answers change is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.images.framing import Frame

STRIDES = (8, 16)
_CENTRES = tuple((stride - 1) / 2 for stride in STRIDES)  # of the first cells that maps are drawn with
_CHANGED = 0.1  # of the largest change; what is below is how far a network sees, not where
_AROUND = 32  # pixels around what is measured on, so that a network that does not pad has places on all sides
Maps = Callable[[np.ndarray], Sequence[Tensor]]


class Placed:
    """An embedder whose maps, of crops (n, side, side, 3), have their places in the middles of 8 and 16 pixels.

    Crops are shown with the reflected margin with which both maps come closest to that, and maps are cut to them.

    Parameters
    ----------
    crops : uint8 (n, side, side, 3) to measure with
    """

    def __init__(self, embedder: Embedder, crops: np.ndarray):
        side = crops.shape[1]
        network = embedder.in_floats()
        around = np.pad(crops, ((0, 0), *2 * ((_AROUND, _AROUND),), (0, 0)), "reflect")
        found = first_places(lambda shown: network.features(shown).layers, around)
        self.margin, self.skipped = closest_margin(found)
        self.beyond = -self.margin % STRIDES[-1]
        self.rows = tuple(side // stride for stride in STRIDES)
        while any(
            level.shape[-1] < skipped + rows
            for level, skipped, rows in zip(
                network.features(self._padded(crops[:1])).layers, self.skipped, self.rows, strict=True
            )
        ):
            self.beyond += STRIDES[-1]
        size = side + self.margin + self.beyond
        self.embedder = embedder.framed(Frame((size, size), stretches=True))

    def calibrate(self, crops: np.ndarray) -> None:
        """Learn what range the layers have, where it computes in integers."""
        if self.embedder.awaits_calibration:
            self.embedder.calibrate(self._padded(crops))

    def __call__(self, crops: np.ndarray) -> list[Tensor]:
        """float32 (n, c, side / 8 or 16, …)."""
        levels = self.embedder.features(self._padded(crops)).layers
        return [
            level[:, :, skipped : skipped + rows, skipped : skipped + rows].float()
            for level, skipped, rows in zip(levels, self.skipped, self.rows, strict=True)
        ]

    def _padded(self, crops: np.ndarray) -> np.ndarray:
        around = (self.margin, self.beyond)
        return np.pad(crops, ((0, 0), around, around, (0, 0)), "reflect") if any(around) else crops


def first_places(maps: Maps, crops: np.ndarray) -> list[float]:
    """The pixel, from 0, on which the first place of each map is centred: the mean over both axes and all crops.

    Parameters
    ----------
    maps : uint8 crops to tensors (n, c, rows, rows) of the strides 8 and 16
    crops : uint8 (n, side, side, 3)

    Returns
    -------
    list of float, a pixel for each map
    """
    rng = np.random.default_rng(0)
    side = crops.shape[1]
    centres = side / 2 + rng.uniform(-STRIDES[-1] / 2, STRIDES[-1] / 2, (len(crops), 2))
    off = np.arange(side) - centres[..., None]  # (n, 2, side)
    away = np.hypot(off[:, 0, :, None], off[:, 1, None, :])
    radius = rng.uniform(3, 7, (len(crops), 1, 1))
    dots = rng.choice([-1, 1], (len(crops), 1, 1)) * rng.uniform(30, 90, (len(crops), 1, 1)) * (away < radius)
    painted = np.clip(crops + dots[..., None], 0, 255).round().astype(np.uint8)
    found = []
    for stride, before, after in zip(STRIDES, maps(crops), maps(painted), strict=True):
        change = (after.float() - before.float()).square().sum(1).double()
        change = torch.where(change < _CHANGED * change.amax((1, 2), keepdim=True), 0.0, change)
        steps = torch.arange(change.shape[-1], dtype=torch.float64) * stride
        at = torch.stack([(change.sum(axis) @ steps) / change.sum((1, 2)) for axis in (2, 1)], 1)
        found.append(float((torch.as_tensor(centres) - at).nanmean()))  # a white dot on white changes nothing
    return found


def closest_margin(firsts: Sequence[float]) -> tuple[int, list[int]]:
    """The margin in pixels with which maps that have their first places there come closest to the middles of cells.

    Beside it how many places of each map lie before the crop's first: none or more.
    """

    def skipped(margin: int) -> list[int]:
        return [
            round((centre + margin - first) / stride)
            for first, centre, stride in zip(firsts, _CENTRES, STRIDES, strict=True)
        ]

    def miss(margin: int) -> float:
        places = zip(firsts, skipped(margin), _CENTRES, STRIDES, strict=True)
        return sum((first - margin + stride * count - centre) ** 2 for first, count, centre, stride in places)

    margin = min(range(STRIDES[-1]), key=lambda margin: miss(margin) + (margin > 0))  # of no use for half a pixel
    while min(skipped(margin)) < 0:
        margin += STRIDES[-1]
    return margin, skipped(margin)
