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
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from anomalib_lite.images.decoding import UnreadableImageError, image_size
from anomalib_lite.images.local import FolderSource, ListSource
from anomalib_lite.images.proportions import STRETCH, Size, same_proportions
from anomalib_lite.images.region import Region
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.images.stored import ObjectSource
from anomalib_lite.images.tiles import LARGEST_NUMBER, STEP, Window, cut, grid_of, windows_needed
from anomalib_lite.images.variations import VariedSource

Tiles = int | tuple[int, int]  # pixels of a picture, or (rows, columns)

# A model file from a stranger must not ask for a picture that fills the memory: pixels that a network is shown at a
# time, and of a whole frame, 4 096 × 32 768.
LARGEST_PIXELS = 1 << 22
LARGEST_FRAME = 1 << 27
# What has more pixels is seen through windows of this side, which share this part of one: what a network makes up
# beyond a border reaches 96 pixels far (by more than 1 % of how patches differ).
_WHOLE_PIXELS = 1 << 21
_WINDOW, _SHARED = 1024, 192 / 1024
# Pixels of the shorter side unless it is asked for: never more than the camera gave.
_FEWEST, _ROUNDED_TO = 128, 32
_WHOLE_RESIZED = 1 << 24  # pixels of pictures that are resized in all colours at once
_LOOKED_AT = 200  # pictures that proportions are taken from, evenly spread


@dataclass(frozen=True)
class Frame:
    """The way of a picture to the pixels that a network sees.

    Attributes
    ----------
    size : (h, w) pixels that a picture is brought to
    stretches : whether every picture is stretched to them, as those of labelled folders are
    count : rows and columns of windows that the network sees one after another
    window : (h, w) pixels of each of them; by default the whole
    region : what is looked at of a picture, or None for all of it; then pictures of other shapes are refused

    Examples
    --------
    >>> frame = Frame((64, 128))
    >>> frame.content((100, 200)), frame.content((100, 100))
    ((64, 128), (64, 64))
    """

    size: Size
    stretches: bool = field(default=False, kw_only=True)
    count: Size = field(default=(1, 1), kw_only=True)
    window: Size = field(default=(0, 0), kw_only=True)
    region: Region | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.window == (0, 0):
            object.__setattr__(self, "window", self.size)

    @property
    def tiled(self) -> bool:
        """Whether there is more than one window."""
        return self.count != (1, 1)

    def windows(self, own: Size) -> list[Window]:
        """The windows, where the network gives each of them a grid `own` of patches."""
        return _cut(self.size, self.window, self.count, own)

    def grid(self, own: Size) -> Size:
        """Rows and columns of patches of the whole, where each window has `own`."""
        return grid_of(self.size, self.window, own)

    def content(self, original: Size) -> Size:
        """Pixels (h, w) that a picture of the size `original` fills, from the upper left corner."""
        (height, width), (h, w) = original, self.size
        if self.stretches or same_proportions(original, self.size):
            return h, w
        scale = min(h / height, w / width)
        return max(1, min(h, round(height * scale))), max(1, min(w, round(width * scale)))

    def canvas(self, original: Size, shown: Size | None = None) -> Size:
        """The size (H, W) that the whole frame has in the pixels of such a picture, where it is shown in so many."""
        (h, w), (height, width) = self.content(original), shown or original
        return round(height * self.size[0] / h), round(width * self.size[1] / w)

    def place(self, pixels: np.ndarray, original: Size | None = None, *, name: str = "picture") -> np.ndarray:
        """Bring a picture uint8 (H, W, 3) to the frame, (h, w, 3); `original` is its size if it came smaller.

        Raises
        ------
        UnreadableImageError
            If it has another shape than those that the region was drawn for.
        """
        original = original or (pixels.shape[0], pixels.shape[1])
        content = self.content(original)
        if self.region is not None:
            if content != self.size:
                height, width = self.region.size
                raise UnreadableImageError(
                    f"{name}: has {original[0]} × {original[1]} pixels (height × width), other proportions than the "
                    f"{height} × {width} that the region of interest was drawn for; give pictures of that shape"
                )
            pixels = self.region.blanked(pixels)
        placed = resize(pixels, content)
        if content == self.size:
            return placed
        rest = [(0, whole - part) for whole, part in zip(self.size, content, strict=True)]
        return np.pad(placed, [*rest, (0, 0)], mode="symmetric")

    def judged(self, original: Size, grid: Size) -> np.ndarray | None:
        """Numbers (n,) of the patches of a grid that count, one at least; None for all.

        Their middle lies in the picture, where it does not fill the frame; half of them in the region if there is one.
        """
        if self.region is not None:
            return _cells(self.region, grid)
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
        return {
            "size": list(self.size),
            "stretches": self.stretches,
            "count": list(self.count),
            "window": list(self.window),
            "region": None if self.region is None else self.region.to_dict(),
        }

    @classmethod
    def read(cls, values: Mapping[str, Any], region: np.ndarray | None = None) -> Frame:
        """The frame that `to_dict` told of; ValueError if it is none, or asks for more memory than any should.

        `region` are the packed pixels of its region, see `Region.to_array`.
        """
        size, count, window = (_two_of(values[name]) for name in ("size", "count", "window"))
        stretches = values["stretches"]
        covered = all(
            part <= whole <= n * part and (n == 1) == (part == whole)
            for whole, n, part in zip(size, count, window, strict=True)
        )
        if (
            not covered
            or not isinstance(stretches, bool)
            or math.prod(size) > LARGEST_FRAME
            or math.prod(window) > LARGEST_PIXELS
            or math.prod(count) > LARGEST_NUMBER
        ):
            raise ValueError(f"{dict(values)} is no frame")
        if (values["region"] is None) != (region is None):
            raise ValueError("a region without its pixels, or pixels without a region")
        looked_at = None if region is None else Region.read(values["region"], region)
        return cls(size, stretches=stretches, count=count, window=window, region=looked_at)


def _two_of(sides: Any) -> Size:
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"{sides} is no frame: two whole numbers are needed")
    return sides[0], sides[1]


@lru_cache(maxsize=8)
def _cells(region: Region, grid: Size) -> np.ndarray:
    return region.cells(grid)


@lru_cache(maxsize=8)
def _cut(size: Size, window: Size, count: Size, own: Size) -> list[Window]:
    return cut(size, window, count, own)


def check_tiles(tiles: Any) -> Tiles:
    """Pixels of a tile, or rows and columns of tiles, as they were asked for; else ValueError."""
    if isinstance(tiles, int | np.integer) and not isinstance(tiles, bool) and tiles >= 16:
        return int(tiles)
    if isinstance(tiles, tuple | list) and len(tiles) == 2:
        rows, columns = tiles
        if all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 1 for n in tiles):
            return int(rows), int(columns)
    raise ValueError(f"tiles={tiles!r}: give (rows, columns), 1 at least, or the side of a tile in pixels, 16 at least")


def choose_frame(
    sizes: Sequence[Size],
    wanted: int | Size | None,
    *,
    most: int = 384,
    tiles: Tiles | None = None,
    tile_overlap: float = 0.0,
) -> Frame:
    """Choose how pictures are seen, from the sizes of those to learn from.

    Parameters
    ----------
    sizes : (H, W) of the pictures in pixels, one at least
    wanted : int or (h, w), optional
        Pixels to see, of the shorter side or both; of each tile where there are any. Default: as many as the camera
        gave, `most` at most.
    tiles, tile_overlap : see `Detector`

    Raises
    ------
    ValueError
        If pictures are so long that the frame would have more pixels than there is memory for, or tiles do not fit.
    """
    heights, widths = np.array(sizes, dtype=np.float64).T
    ratio = float(np.exp(np.median(np.log(heights / widths))))
    # The median picture: its proportions, and its area.
    length = float(np.median(np.sqrt(heights * widths)))
    middle = length * ratio**0.5, length * ratio**-0.5
    if tiles is not None:
        return _tiled(middle, wanted, most, tiles, tile_overlap)
    if isinstance(wanted, tuple):
        size = wanted
    else:
        size = _in_proportion(_sensible(min(middle), most) if wanted is None else wanted, ratio)
    return _through_windows(size, "give a smaller image_size")


def _through_windows(size: Size, way_out: str) -> Frame:
    """The frame of this size, cut into windows where a network cannot be shown all of it at once."""
    if math.prod(size) <= _WHOLE_PIXELS:
        return Frame(size)
    whole = _stepped(size[0]), _stepped(size[1])
    if math.prod(whole) > LARGEST_FRAME:
        raise ValueError(
            f"pictures would be seen at {whole[0]} × {whole[1]} pixels, {LARGEST_FRAME} are the most; {way_out}"
        )
    window = min(whole[0], _WINDOW), min(whole[1], _WINDOW)
    count = windows_needed(whole[0], window[0], _SHARED), windows_needed(whole[1], window[1], _SHARED)
    return Frame(whole, count=count, window=window)


def _tiled(middle: tuple[float, float], wanted: int | Size | None, most: int, tiles: Tiles, overlap: float) -> Frame:
    """The frame of pictures of the size `middle`, a tile of which is seen at `wanted` pixels."""
    if isinstance(wanted, tuple):
        raise ValueError(f"image_size={wanted}: of tiles give one number, the pixels that each is seen at")
    if isinstance(tiles, int):
        tile = float(tiles)
        if tiles > min(middle) + 0.5:
            raise ValueError(
                f"tiles={tiles}: tiles of so many pixels do not fit pictures of {middle[0]:.0f} × {middle[1]:.0f}; "
                f"give at most {int(min(middle))}, or (rows, columns)"
            )
    else:
        tile = min(side / (1 + (n - 1) * (1 - overlap)) for side, n in zip(middle, tiles, strict=True))
        if tiles[0] > middle[0] or tiles[1] > middle[1]:
            raise ValueError(f"tiles={tiles} are more than pictures of {middle[0]:.0f} × {middle[1]:.0f} have pixels")
    scale = (_sensible(tile, most) if wanted is None else wanted) / tile
    size = _in_proportion(_stepped(min(middle) * scale), middle[0] / middle[1])
    return _through_windows(size, "give a smaller image_size, or larger tiles")


def _in_proportion(shorter: int, ratio: float) -> Size:
    """The size with this shorter side, `ratio` times as high as wide but for rounding."""
    longer_by = max(ratio, 1 / ratio)
    longer = shorter if longer_by <= 1 + STRETCH else max(shorter, _stepped(shorter * longer_by))
    return (longer, shorter) if ratio >= 1 else (shorter, longer)


def _stepped(pixels: float) -> int:
    return max(STEP, round(pixels / STEP) * STEP)


def _sensible(pixels: float, most: int) -> int:
    """Pixels at which what is so long is seen, unless it is said."""
    return max(_FEWEST, min(most, int(pixels / _ROUNDED_TO + 1e-6) * _ROUNDED_TO))


def typical_size(sizes: Sequence[Size], frame: Frame) -> Size:
    """The size (H, W) of the middle one, by area, of the pictures that have the frame's proportions."""
    fitting = [size for size in sizes if frame.content(size) == frame.size] or list(sizes)
    return sorted(fitting, key=math.prod)[len(fitting) // 2]


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
            if isinstance(source, FolderSource | ListSource) and type(source) in (
                FolderSource,
                ListSource,
                ObjectSource,
            ):
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
    if pixels.shape[0] * pixels.shape[1] <= _WHOLE_RESIZED:
        return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    found = np.empty((height, width, 3), dtype=np.uint8)
    for channel in range(3):  # the same pixels; PIL takes a copy of four bytes for each pixel in colour, of one in grey
        grey = Image.fromarray(pixels[..., channel])
        found[..., channel] = np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR))
    return found
