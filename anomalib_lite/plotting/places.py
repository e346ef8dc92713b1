"""One place of a picture: enlarged with what is around it, or marked by a frame in the whole of it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]  # left, top, right, bottom
Colour = tuple[int, int, int]

FRAME_ALARM: Colour = (255, 138, 128)
FRAME_GOOD: Colour = (95, 211, 154)
CONTEXT = 3.0  # an enlarged patch is shown with so many patches either way
_LEAST = 14.0  # pixels of a frame's side
_BEYOND, _DARK = (228, 228, 228), (0, 0, 0)  # where a picture ends; and the edges of lines, to be seen on any ground


def enlarged(pixels: np.ndarray, box: Box, side: int, colour: Colour) -> np.ndarray:
    """A place of a picture uint8 (H, W, 3) with what is around it, framed, as a square uint8 (side, side, 3).

    The same extent for boxes of the same size, so that two can be compared; beyond the picture it is grey.
    """
    left, top, right, bottom = box
    reach = (0.5 + CONTEXT) * max(right - left, bottom - top, 1)
    x, y = (left + right) / 2, (top + bottom) / 2
    scale = side / (2 * reach)
    found = Image.fromarray(pixels).transform(
        (side, side),
        Image.Transform.AFFINE,
        (1 / scale, 0, x - reach, 0, 1 / scale, y - reach),
        Image.Resampling.BICUBIC,
        fillcolor=_BEYOND,
    )
    corners = [(part - middle + reach) * scale for part, middle in ((left, x), (top, y), (right, x), (bottom, y))]
    _frame(found, corners, colour)
    return np.asarray(found)


def marked(pixels: np.ndarray, box: Box, side: int, colour: Colour) -> np.ndarray:
    """A picture uint8 (H, W, 3) with a frame around a place of it, its longer side at most `side` pixels."""
    found = Image.fromarray(pixels)
    found.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    scale = found.width / pixels.shape[1], found.height / pixels.shape[0]
    _frame(found, [corner * scale[i % 2] for i, corner in enumerate(box)], colour)
    return np.asarray(found)


def _frame(picture: Image.Image, corners: list[float], colour: Colour) -> None:
    pencil, (left, top, right, bottom) = ImageDraw.Draw(picture), corners
    # A patch of a large picture may be smaller than a pixel here: its frame is not.
    wide, high = (max(0.0, _LEAST - size) / 2 for size in (right - left, bottom - top))
    left, top, right, bottom = left - wide, top - high, right + wide, bottom + high
    pencil.rectangle([left, top, right, bottom], outline=_DARK, width=5)
    pencil.rectangle([left + 1, top + 1, right - 1, bottom - 1], outline=colour, width=3)
