"""How pictures of any size come to the pixels that a network sees: proportions are kept.

A `Frame` is chosen once, from the training pictures, and kept in the model: every later picture goes the same way. One
whose proportions differ from the training pictures' by more than `STRETCH` is laid into the frame's upper left corner;
what it leaves over is filled by mirroring it, and its patches take no part in anything. (A vector of the whole frame,
as at the global level, has the mirror image in it.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from anomalib_lite.images.decoding import UnreadableImageError, image_size
from anomalib_lite.images.sources import FolderSource, ImageSource, ListSource
from anomalib_lite.images.variations import VariedSource

Size = tuple[int, int]  # (height, width)

# Proportions may differ by so much: kolektor's 500 × 1239 to 1285 pixels do by 2.3 % from their median.
STRETCH = 0.03
LARGEST_PIXELS = 1 << 22  # of a frame; a model file from a stranger must not ask for a picture that fills the memory
_STEP = 16  # the longer side is a multiple of this, the coarsest stride of the networks
_LOOKED_AT = 200  # pictures that proportions are taken from, evenly spread


@dataclass(frozen=True)
class Frame:
    """The way of a picture to the pixels that a network sees.

    Attributes
    ----------
    size : (h, w) pixels that the network sees
    stretches : whether every picture is stretched to them, as those of labelled folders are

    Examples
    --------
    >>> frame = Frame((64, 128))
    >>> frame.content((100, 200)), frame.content((100, 100))
    ((64, 128), (64, 64))
    """

    size: Size
    stretches: bool = field(default=False, kw_only=True)

    def content(self, original: Size) -> Size:
        """Pixels (h, w) that a picture of the size `original` fills, from the upper left corner."""
        (height, width), (h, w) = original, self.size
        if self.stretches or abs(math.log((height * w) / (width * h))) <= math.log1p(STRETCH):
            return h, w
        scale = min(h / height, w / width)
        return max(1, min(h, round(height * scale))), max(1, min(w, round(width * scale)))

    def canvas(self, original: Size, shown: Size | None = None) -> Size:
        """The size (H, W) that the whole frame has in the pixels of such a picture, where it is shown in so many."""
        (h, w), (height, width) = self.content(original), shown or original
        return round(height * self.size[0] / h), round(width * self.size[1] / w)

    def place(self, pixels: np.ndarray, original: Size | None = None) -> np.ndarray:
        """Bring a picture uint8 (H, W, 3) to the frame, (h, w, 3); `original` is its size if it came smaller."""
        content = self.content(original or (pixels.shape[0], pixels.shape[1]))
        placed = resize(pixels, content)
        if content == self.size:
            return placed
        rest = [(0, whole - part) for whole, part in zip(self.size, content, strict=True)]
        return np.pad(placed, [*rest, (0, 0)], mode="symmetric")

    def judged(self, original: Size, grid: Size) -> np.ndarray | None:
        """Numbers (n,) of the patches of a grid whose middle lies in such a picture, one at least; None for all."""
        content = self.content(original)
        if content == self.size:
            return None
        inside = []
        for cells, whole, part in zip(grid, self.size, content, strict=True):
            middles = (np.arange(cells) + 0.5) * (whole / cells)
            inside.append(max(1, int((middles < part).sum())))
        return (np.arange(inside[0])[:, None] * grid[1] + np.arange(inside[1])).ravel()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"size": list(self.size), "stretches": self.stretches}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Frame:
        """The frame that `to_dict` told of; ValueError if it is none, or asks for more memory than any should."""
        size, stretches = tuple(values["size"]), values["stretches"]
        whole = all(isinstance(side, int) and side >= 1 for side in size)
        if len(size) != 2 or not whole or size[0] * size[1] > LARGEST_PIXELS or not isinstance(stretches, bool):
            raise ValueError(f"{dict(values)} is no frame")
        return cls((size[0], size[1]), stretches=stretches)


def choose_frame(sizes: Sequence[Size], wanted: Size, *, fixed: bool) -> Frame:
    """Choose how pictures are seen, from the sizes of those to learn from.

    Parameters
    ----------
    sizes : (H, W) of the pictures in pixels, one at least
    wanted : (h, w)
        Pixels to see; of the shorter side, unless `fixed`.
    fixed : bool
        Whether both sides were asked for.

    Raises
    ------
    ValueError
        If pictures are so long that the frame would have more pixels than a network is shown.
    """
    if fixed:
        return Frame(wanted)
    heights, widths = np.array(sizes, dtype=np.float64).T
    ratio = float(np.exp(np.median(np.log(heights / widths))))
    longer_by = max(ratio, 1 / ratio)
    shorter = min(wanted)
    longer = shorter
    if longer_by > 1 + STRETCH:
        longer = max(shorter, round(shorter * longer_by / _STEP) * _STEP)
    if shorter * longer > LARGEST_PIXELS:
        raise ValueError(
            f"image_size={shorter}: pictures that are {longer_by:.1f} times as long as wide would be seen at {shorter} "
            f"× {longer} pixels, {LARGEST_PIXELS} are the most; give a smaller one"
        )
    return Frame((longer, shorter) if ratio >= 1 else (shorter, longer))


def picture_sizes(source: ImageSource) -> list[Size]:
    """Sizes (H, W) of up to 200 pictures of a source, evenly spread, from their headers where there are some.

    Of a source of the user's own, which has to read a picture to tell, it is that of the first. Pictures that cannot be
    read are passed over; they are listed when they are read.
    """
    if isinstance(source, VariedSource):  # copies have the size of their picture
        source = source.source
    count = min(_LOOKED_AT, len(source))
    sizes = []
    for i in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist():
        try:
            # A subclass may read its pictures in its own way, such as cut out.
            if isinstance(source, FolderSource | ListSource) and type(source) in (FolderSource, ListSource):
                sizes.append(_size_of(source, i))
                continue
            pixels = source.read(i)
            return [(pixels.shape[0], pixels.shape[1])]
        except UnreadableImageError:
            continue
    return sizes


def _size_of(source: FolderSource | ListSource, i: int) -> Size:
    item = source.item(i)
    if isinstance(item, str | os.PathLike):
        return image_size(item)
    pixels = source.read(i)
    return pixels.shape[0], pixels.shape[1]


def resize(pixels: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize to a fixed size, bilinear with antialiasing (PIL's), without keeping the aspect ratio.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
    size : int or (h, w)

    Returns
    -------
    ndarray of shape (h, w, 3), uint8
        `pixels` itself, uncopied, where it has the size already.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if pixels.shape[:2] == (height, width):
        return pixels
    # No reducing_gap: it saves time only on downscaling by far more than is usual here, and changes pixels.
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
