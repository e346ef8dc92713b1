"""Whether a camera sees: pictures that are black, saturated, empty or blurred as no good one was are not to be judged.

A picture that shows nothing says nothing of its part, and a line must not take it for a verdict. The limits come from
good pictures: half way beyond the worst of them, in each figure. Pictures are looked at in grey, small, without noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from anomalib_lite.images.sources import ImageSource, ReadsReduced

_LOOKED_AT = 64  # training pictures
_SIDE = 192  # of the picture looked at, the shorter one, at most
_WHITE = 250  # of 255: as bright as a sensor tells
_LEAST_BRIGHT = 8.0  # of 255: darker than any picture that shows something
_BEYOND = 0.5  # of what the worst good picture has, where less is meant; of what it lacks, where more is
_DENOISED = 0.7  # standard deviation of the smoothing, in pixels of the picture looked at


@dataclass(frozen=True)
class Sight:
    """Limits for what a picture must show.

    Attributes
    ----------
    brightest : grey value, of 255, that a hundredth of its pixels must exceed
    saturated : share of its pixels that may be white, at most
    contrast : standard deviation of its grey values, at least
    sharpness : of its finest contours beside the coarser ones, at least
    """

    brightest: float
    saturated: float
    contrast: float
    sharpness: float

    @classmethod
    def learn(cls, pictures: Iterable[np.ndarray]) -> Sight | None:
        """The limits from good pictures uint8 (H, W, 3); None of none."""
        return cls._from([_figures(pixels) for pixels in pictures])

    @classmethod
    def _from(cls, found: Sequence[tuple[float, float, float, float]]) -> Sight | None:
        figures = np.array(found)
        if not len(figures):
            return None
        darkest, _, flattest, softest = figures.min(axis=0).tolist()
        whitest = float(figures[:, 1].max())
        return cls(
            brightest=max(_LEAST_BRIGHT, _BEYOND * darkest),
            saturated=whitest + _BEYOND * (1 - whitest),
            contrast=_BEYOND * flattest,
            sharpness=_BEYOND * softest,
        )

    def fault(self, pixels: np.ndarray) -> str | None:
        """What is wrong with a picture uint8 (H, W, 3), in words; None where it can be judged."""
        brightest, saturated, contrast, sharpness = _figures(pixels)
        if brightest < self.brightest:
            return (
                f"it is black: nearly nothing is brighter than {brightest:.0f} of 255, {self.brightest:.0f} is needed"
            )
        if saturated > self.saturated:
            return (
                f"it is saturated: {100 * saturated:.0f} % of it is white, {100 * self.saturated:.0f} % may be at most"
            )
        if contrast < self.contrast:
            return f"it shows nothing: its grey values vary by {contrast:.1f} of 255, {self.contrast:.1f} is needed"
        if sharpness < self.sharpness:
            return f"it is blurred: its sharpness is {sharpness:.3f}, {self.sharpness:.3f} is needed"
        return None

    def to_dict(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Sight:
        """The limits that `to_dict` told; ValueError if they are none."""
        names = {entry.name for entry in fields(cls)}
        if set(values) != names or not all(isinstance(v, float) and math.isfinite(v) for v in values.values()):
            raise ValueError(f"{dict(values)!r:.200} are no limits for what a picture must show")
        return cls(**values)


class SightingSource:
    """An image source that looks at some of the pictures that are read from it anyway, evenly spread.

    `found` are their figures so far, by index.
    """

    def __init__(self, source: ImageSource):
        self.source, self.ids = source, source.ids
        picked = np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).round().astype(int)
        self._picked = set(picked.tolist())
        self.found: dict[int, tuple[float, float, float, float]] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def sight(self) -> Sight | None:
        """The limits from what was read so far."""
        return Sight._from([self.found[i] for i in sorted(self.found)])

    def read(self, i: int) -> np.ndarray:
        """Picture `i`."""
        return self._seen(i, self.source.read(i))

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Picture `i`, see `ReadsReduced`."""
        if isinstance(self.source, ReadsReduced):
            pixels, original = self.source.read_reduced(i, least)
            return self._seen(i, pixels), original
        pixels = self.read(i)
        return pixels, (pixels.shape[0], pixels.shape[1])

    def _seen(self, i: int, pixels: np.ndarray) -> np.ndarray:
        if i in self._picked and i not in self.found:
            self.found[i] = _figures(pixels)
        return pixels


def _figures(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Brightness of its hundredth brightest pixel, share of white ones, contrast, sharpness."""
    from scipy import ndimage

    height, width = pixels.shape[:2]
    shrink = max(1.0, min(height, width) / _SIDE)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    shown = Image.fromarray(pixels) if shrink == 1 else Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    grey = np.asarray(shown.convert("L"), dtype=np.float32)
    if min(grey.shape) < 2:  # a picture of one row has no contours to speak of
        grey = np.pad(grey, [(0, 2 - min(2, side)) for side in grey.shape], mode="edge")
    return (
        float(np.partition(grey, int(0.99 * (grey.size - 1)), axis=None)[int(0.99 * (grey.size - 1))]),
        float((grey >= _WHITE).mean()),
        float(grey.std()),
        _sharpness(ndimage.gaussian_filter(grey, _DENOISED)),
    )


def _sharpness(grey: np.ndarray) -> float:
    """How much of its contours is lost when it is blurred once more; sharp ones lose most (Crete et al., SPIE 2007)."""
    from scipy import ndimage

    steep, blurred = _steepness(grey), _steepness(ndimage.uniform_filter(grey, 5))
    strong = steep >= np.partition(steep, int(0.9 * steep.size))[int(0.9 * steep.size)]
    total = float(steep[strong].sum())
    return 1 - float(np.minimum(blurred[strong], steep[strong]).sum()) / total if total > 0 else 0.0


def _steepness(grey: np.ndarray) -> np.ndarray:
    """Lengths of the gradients, as a vector, but for the last row and column."""
    down, right = grey[1:, :-1] - grey[:-1, :-1], grey[:-1, 1:] - grey[:-1, :-1]
    return np.sqrt(down * down + right * right).ravel()
