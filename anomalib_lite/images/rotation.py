"""Rotated copies of images, for parts that may lie at any angle: an `ImageSource` in, a longer one out.

Mirrored copies are not offered: a mirrored part is a defect on many lines (metal_nut's *flip*).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from anomalib_lite.images.sources import ImageSource


class RotatedSource:
    """Every image of a source at `copies` angles, evenly spread over the full turn.

    Parameters
    ----------
    source : ImageSource
    copies : int
        Angles per image, the image itself included; copy r of image i has index i × copies + r.
    """

    def __init__(self, source: ImageSource, copies: int):
        if copies < 1:
            raise ValueError(f"copies={copies}; at least 1, the image itself")
        self.source = source
        self.copies = copies
        self.notes: dict[str, str] = getattr(source, "notes", {})
        self.ids = [
            image_id if copy == 0 else f"{image_id}@{360 * copy / copies:g}°"
            for image_id in source.ids
            for copy in range(copies)
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        """Image `i` as uint8 RGB (H, W, 3), rotated about its middle at its own size.

        Raises
        ------
        UnreadableImageError
            If the image cannot be read.
        """
        image, copy = divmod(i, self.copies)
        return rotated(self.source.read(image), 360 * copy / self.copies)


def rotated(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate uint8 (H, W, 3) counter-clockwise; corners are filled by reflecting the image at its border."""
    if degrees % 360 == 0:
        return pixels
    if degrees % 180 == 0 or (degrees % 90 == 0 and pixels.shape[0] == pixels.shape[1]):
        return np.ascontiguousarray(np.rot90(pixels, round(degrees / 90) % 4))
    height, width = pixels.shape[:2]
    # Wide enough for the corners of the turned frame, which reach out by less than half its longer side; that may be
    # wider than the image is high, which is then reflected again and again.
    margin = (max(height, width) + 1) // 2
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = Image.fromarray(padded).rotate(degrees, resample=Image.Resampling.BILINEAR)
    return np.asarray(turned)[margin : margin + height, margin : margin + width]
