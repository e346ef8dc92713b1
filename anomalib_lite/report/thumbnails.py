"""Small pictures, made while images are read for something else: a page then decodes none of them again."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from anomalib_lite.images.sources import ImageSource

SIDE = 320  # pixels at most: what a page shows of one image


class Thumbnails:
    """An image source that keeps a small picture, some 10 kB of WebP, of every image read through it.

    Give it to `Detector.score` and then to `write_report`. `pictures` maps positions to WebP bytes.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source, self.ids = source, source.ids
        self.pictures: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        pixels = self.source.read(i)
        if i not in self.pictures:
            self.pictures[i] = webp(Image.fromarray(pixels), SIDE)
        return pixels


def webp(picture: Image.Image, side: int) -> bytes:
    """A picture as WebP of at most `side` pixels."""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=70, method=2)
    return buffer.getvalue()
