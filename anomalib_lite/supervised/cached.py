"""Every labelled image decoded once per size and embedded once per network, whatever is trained on it afterwards.

Pixels are held as uint8 in memory, and beyond 512 MB in a temporary file that the system pages in and out.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass

import numpy as np

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import embed_whole
from anomalib_lite.images.loading import LoadedImage, load
from anomalib_lite.supervised.grey import seen_by
from anomalib_lite.supervised.labelled import LabelledImages, open_labelled
from anomalib_lite.supervised.splitting import Split, split, survey

_IN_MEMORY = 512_000_000  # bytes


@dataclass(frozen=True)
class Embedded:
    """Global vectors (n, d) of all images, rows of unread ones zero, and what an image took in seconds."""

    vectors: np.ndarray
    seconds_per_image: float


class CachedImages:
    """Pixels, masks and embeddings of labelled images, made when first asked for.

    Parameters
    ----------
    images : LabelledImages
    readable : int (m,)
        Positions of those that can be read; only these are.
    """

    def __init__(self, images: LabelledImages, readable: np.ndarray) -> None:
        self.images = images
        self.readable = readable
        self._pixels: dict[tuple[int, bool], np.ndarray] = {}
        self._pixel_seconds: dict[tuple[int, bool], float] = {}
        self._masks: dict[int, np.ndarray] = {}
        self._embedded: dict[tuple[str, tuple[str, ...], int, bool], Embedded] = {}

    def pixels(self, size: int, *, grey: bool = False) -> np.ndarray:
        """uint8 (n, size, size, 3), by position; rows of unread images are black."""
        key = size, grey
        if key not in self._pixels:
            start = time.perf_counter()
            out = _room_for((len(self.images), size, size, 3))
            source = seen_by(self.images.source, grey=grey)
            for image in load(source, self.readable.tolist(), size=size, on_unreadable="raise"):
                assert isinstance(image, LoadedImage)
                out[image.index] = image.pixels
            self._pixels[key] = out
            self._pixel_seconds[key] = (time.perf_counter() - start) / max(1, len(self.readable))
        return self._pixels[key]

    def pixel_seconds(self, size: int, *, grey: bool = False) -> float:
        """Seconds that an image took to decode for `pixels`."""
        self.pixels(size, grey=grey)
        return self._pixel_seconds[size, grey]

    def masks(self, size: int) -> np.ndarray:
        """bool (n, size, size), by position; all False where there is none.

        Raises
        ------
        LabelledDataError
            If a mask does not fit its image.
        UnreadableImageError
            If a mask cannot be read.
        """
        if size not in self._masks:
            out = np.zeros((len(self.images), size, size), bool)
            known = self.images.has_mask
            for i in self.readable.tolist():
                if known[i] and self.images.mask_paths[i] is not None:
                    out[i] = self.images.read_mask(i, (size, size))
            self._masks[size] = out
        return self._masks[size]

    def embedded(self, embedder: Embedder, *, grey: bool = False) -> Embedded:
        """Global vectors by this embedder's network."""
        # Networks cut at one place have one fingerprint, whichever of their layers are returned.
        key = embedder.fingerprint, embedder.layers, embedder.image_size, grey
        if key not in self._embedded:
            start = time.perf_counter()
            found, kept = embed_whole(embedder, seen_by(self.images.source, grey=grey), self.readable)
            seconds = (time.perf_counter() - start) / max(1, len(kept))
            vectors = np.zeros((len(self.images), found.shape[1]), np.float32)
            vectors[kept] = found
            self._embedded[key] = Embedded(vectors, seconds)
        return self._embedded[key]


def opened(
    images: str | os.PathLike[str] | LabelledImages,
    parts: Split | None,
    cache: CachedImages | None,
    *,
    random_state: int,
) -> tuple[LabelledImages, Split, CachedImages]:
    """What a `fit` works on: images from a folder, a split by seed and a cache of its own, where none is given."""
    images = images if isinstance(images, LabelledImages) else open_labelled(images)
    if parts is None:
        surveyed = survey(images)
        parts = split(images, surveyed, random_state=random_state)
        cache = cache or CachedImages(images, surveyed.readable)
    return images, parts, cache or CachedImages(images, np.concatenate([parts.learning, parts.test]))


def _room_for(shape: tuple[int, ...]) -> np.ndarray:
    if np.prod(shape, dtype=np.int64) <= _IN_MEMORY:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile(prefix="anomalib_lite-") as file:  # the mapping keeps it; nobody else can open it
        return np.memmap(file, np.uint8, "w+", shape=shape)
