"""Which part of a picture is looked at: a mask image, boxes or polygons, to be looked at or to be left out.

A `Region` is the same for every picture of a model. What lies outside is blanked before anything is computed, so that
nothing there can change a score; it is neither learnt from, scored, calibrated nor painted. Everything is told in the
whole picture, upright as it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from anomalib_lite.images.decoding import UnreadableImageError
from anomalib_lite.images.proportions import same_proportions
from anomalib_lite.images.reading import read_image

AUTO = "auto"
_BLANK = 128  # what stands outside: the grey in the middle
_LARGEST_PIXELS = 1 << 27


class Region:
    """The pixels of a picture that are looked at.

    Parameters
    ----------
    mask : bool (H, W)
        True where a picture is looked at; pictures of the same proportions and other sizes are looked at alike.

    Raises
    ------
    ValueError
        If it is no such mask, or empty.
    """

    def __init__(self, mask: np.ndarray):
        if mask.ndim != 2 or mask.dtype != bool or not mask.any():
            raise ValueError(f"a region is a mask bool (H, W) with something in it, not {mask.dtype} {mask.shape}")
        self.mask = mask.view()
        self.mask.flags.writeable = False
        self._covering = lru_cache(maxsize=4)(self._resized)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its size and pixels."""
        return hashlib.sha256(repr(self.mask.shape).encode() + np.packbits(self.mask).tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return Region, (np.array(self.mask),)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of its mask."""
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def share(self) -> float:
        """Share of the picture that is looked at."""
        return float(self.mask.mean())

    def at(self, size: tuple[int, int], *, whole: bool = False) -> np.ndarray:
        """The mask for pictures of another size, bool (h, w): pixels of which half is inside, or all (`whole`)."""
        if size == self.mask.shape:
            return self.mask
        return self._covering(size) >= (255 if whole else 128)

    def _resized(self, size: tuple[int, int]) -> np.ndarray:
        """How much of each pixel is inside, by the filter that resizes pictures: uint8 (h, w), 255 for all of it.

        Bytes, since floats of a line-scan picture take a gigabyte. A thousandth outside rounds to none.
        """
        return np.array(self._drawn().resize((size[1], size[0]), Image.Resampling.BILINEAR))

    def _drawn(self) -> Image.Image:
        return Image.fromarray(self.mask.view(np.uint8) * np.uint8(255))

    def blanked(self, pixels: np.ndarray) -> np.ndarray:
        """A copy of a picture uint8 (h, w, 3), grey outside the region."""
        inside = self.at((pixels.shape[0], pixels.shape[1]), whole=True)
        return np.where(inside[..., None], pixels, np.uint8(_BLANK))

    def cells(self, grid: tuple[int, int]) -> np.ndarray:
        """Numbers (n,) of the cells of a grid over the picture that lie in it by half at least."""
        share = self._drawn().resize((grid[1], grid[0]), Image.Resampling.BOX)
        return np.flatnonzero(np.array(share).ravel() >= 128)

    def to_array(self) -> np.ndarray:
        """Its pixels, eight in a byte, uint8 (n,)."""
        return np.packbits(self.mask)

    def to_dict(self) -> dict[str, Any]:
        """All else of it, JSON-able."""
        return {"size": list(self.size), "sha256": self.digest}

    @classmethod
    def read(cls, values: Mapping[str, Any], packed: np.ndarray) -> Region:
        """The region that `to_array` and `to_dict` told of; ValueError if they do not belong together."""
        height, width = values["size"]
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) >= 1):
            raise ValueError(f"a region of the size {values['size']}")
        if height * width > _LARGEST_PIXELS or packed.dtype != np.uint8 or packed.shape != (-(-height * width // 8),):
            raise ValueError("the region's pixels do not fit its size")
        found = cls(np.unpackbits(packed, count=height * width).astype(bool).reshape(height, width))
        if found.digest != values["sha256"]:
            raise ValueError("the region is not the one that was saved")
        return found


def make_region(roi: Any, ignore: Any, size: tuple[int, int]) -> Region | None:
    """The region of pictures of `size` (H, W) that is looked at: `roi`, if there is one, without `ignore`.

    Parameters
    ----------
    roi, ignore : see `Detector`; None for nothing
    size : (H, W)

    Raises
    ------
    ValueError
        If one has other proportions than the pictures, reaches outside, is malformed, or nothing is left.
    FileNotFoundError
        If one names a file that is not there.
    """
    if roi is None and ignore is None:
        return None
    mask = np.ones(size, dtype=bool) if roi is None else _mask(roi, size, "roi")
    if not mask.any():
        raise ValueError("roi is empty: nothing would be looked at; give a mask with white where to look")
    if ignore is not None:
        mask = mask & ~_mask(ignore, size, "ignore")
        if not mask.any():
            raise ValueError("ignore leaves nothing to look at")
    return Region(mask)


def readable(given: Any) -> Any:
    """A `roi` or `ignore` as plain values that a model can keep: of arrays, only that there was one."""
    if isinstance(given, np.ndarray):
        return f"<mask {given.shape[0]} × {given.shape[1]}>"
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    return given


def _mask(given: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """What a mask, its file, or shapes cover of a picture, bool (H, W)."""
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"{name}={path}: no such file; give a mask image, or a JSON file of shapes")
        if path.suffix.lower() == ".json":
            try:
                given = json.loads(path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{name}: {path.name} is no JSON ({error})") from error
            return _drawn(_shapes(given, f"{name}: {path.name}"), size, f"{name}: {path.name}")
        try:
            given = read_image(path).max(axis=2) > 0
        except UnreadableImageError as error:
            raise ValueError(f"{name}: {error}") from error
        name = f"{name}: {path.name}"
    if isinstance(given, np.ndarray):
        if given.ndim != 2 or given.dtype.kind not in "bui":
            raise ValueError(f"{name}: a mask is bool (H, W), not {given.dtype} {given.shape}")
        return _fitting(given > 0, size, name)
    return _drawn(_shapes(given, name), size, name)


def _fitting(mask: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    (height, width), (h, w) = size, mask.shape
    if not same_proportions((h, w), size):
        raise ValueError(
            f"{name} has {h} × {w} pixels, and the pictures {height} × {width} (height × width): they are of other "
            "proportions. Draw the mask on one of the pictures"
        )
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _shapes(given: Any, name: str) -> list[list[tuple[float, float]]]:
    """Boxes and polygons as lists of corners (x, y)."""
    if isinstance(given, Mapping):
        unknown = given.keys() - {"box", "boxes", "polygon", "polygons"}
        if unknown or not given:
            raise ValueError(f"{name}: {sorted(unknown) or 'nothing'} in it; give boxes and polygons")
        listed = [*given.get("boxes", []), *given.get("polygons", [])]
        listed += [given[key] for key in ("box", "polygon") if key in given]
        return [_shape(entry, name) for entry in listed]
    if not isinstance(given, Sequence) or isinstance(given, str) or not len(given):
        raise ValueError(
            f"{name}={given!r}: give a mask (an image file or a bool array), boxes (left, top, right, bottom) or "
            "polygons [(x, y), …]"
        )
    if all(_is_number(value) for value in given) or (len(given) > 2 and all(_is_point(value) for value in given)):
        return [_shape(given, name)]
    return [corners for entry in given for corners in (_shapes(entry, name))]


def _shape(entry: Any, name: str) -> list[tuple[float, float]]:
    if isinstance(entry, Sequence) and len(entry) == 4 and all(_is_number(value) for value in entry):
        left, top, right, bottom = (float(value) for value in entry)
        if not (left < right and top < bottom):
            raise ValueError(f"{name}: a box is left, top, right, bottom; {list(entry)} is empty")
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if isinstance(entry, Sequence) and len(entry) >= 3 and all(_is_point(value) for value in entry):
        return [(float(x), float(y)) for x, y in entry]
    raise ValueError(f"{name}: {entry!r} is neither a box (left, top, right, bottom) nor a polygon of 3 or more (x, y)")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _is_point(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(_is_number(part) for part in value)


def _drawn(shapes: list[list[tuple[float, float]]], size: tuple[int, int], name: str) -> np.ndarray:
    """What shapes cover, bool (H, W): pixels whose middle lies in one."""
    height, width = size
    picture = Image.new("L", (width, height))
    pencil = ImageDraw.Draw(picture)
    for corners in shapes:
        shares = all(0 <= x <= 1 and 0 <= y <= 1 for x, y in corners)
        places = [(x * width, y * height) for x, y in corners] if shares else corners
        for x, y in places:  # a pixel's grace, for those who count from one
            if not (-1 <= x <= width + 1 and -1 <= y <= height + 1):
                raise ValueError(
                    f"{name}: ({x:g}, {y:g}) lies outside pictures of {width} × {height} pixels (width × height)"
                )
        (left, top), (right, bottom) = (tuple(edge(side) for side in zip(*places, strict=True)) for edge in (min, max))
        if len({*places}) == 4 and all(x in (left, right) and y in (top, bottom) for x, y in places):
            picture.paste(255, (round(left), round(top), round(right), round(bottom)))
        else:
            pencil.polygon([(x - 0.5, y - 0.5) for x, y in places], fill=255)
    return np.array(picture) > 0
