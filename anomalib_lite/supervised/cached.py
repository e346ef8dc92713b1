"""Every labelled image decoded once per size and embedded once per network, whatever is trained on it afterwards.

Classifiers, segmenters and detectors share one cache. What it keeps is held in memory up to 512 MB in all, and beyond
that in temporary files that the system pages in and out (a patch grid takes 1.5 MB per image of 256 pixels).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import DTypeLike

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import EmbeddedImage, OnUnreadable, embed_source
from anomalib_lite.images.loading import LoadedImage, UnreadableImage, load
from anomalib_lite.supervised.grey import seen_by
from anomalib_lite.supervised.labelled import LabelledImages

_IN_MEMORY = 512_000_000  # bytes


@dataclass(frozen=True)
class Cached:
    """Something of all images, by position, zero where an image was not read; and what an image took in seconds.

    Of embeddings also the vectors of whole images, by position.
    """

    values: np.ndarray
    seconds_per_image: float
    whole: Mapping[int, np.ndarray] = field(default_factory=dict)


class CachedImages:
    """Pixels, masks and embeddings of labelled images, made when first asked for.

    Parameters
    ----------
    images : LabelledImages
    wanted : int (m,), optional
        Positions of the images that will be used; only these are read. By default all.

    Attributes
    ----------
    readable : int (m,), ascending
        Those wanted that have not turned out unreadable.
    unreadable : list of UnreadableImage
    """

    def __init__(self, images: LabelledImages, wanted: np.ndarray | None = None) -> None:
        self.images = images
        self.readable = np.arange(len(images)) if wanted is None else np.sort(wanted)
        self.unreadable: list[UnreadableImage] = []
        self._pixels: dict[tuple[int, bool], Cached] = {}
        self._masks: dict[int, np.ndarray] = {}
        self._embeddings: dict[str, Cached] = {}
        self._sizes = np.zeros((len(images), 2), np.int64)
        self._held = 0  # bytes in memory

    def pixels(self, size: int, *, grey: bool = False) -> Cached:
        """uint8 (n, size, size, 3).

        Raises UnreadableImageError if an image cannot be read.
        """
        key = size, grey
        if key not in self._pixels:
            start = time.perf_counter()
            out = self._room_for((len(self.images), size, size, 3), np.uint8)
            source = seen_by(self.images.source, grey=grey)
            for image in load(source, self.readable.tolist(), size=size, on_unreadable="raise"):
                assert isinstance(image, LoadedImage)
                out[image.index] = image.pixels
            self._pixels[key] = Cached(out, (time.perf_counter() - start) / max(1, len(self.readable)))
        return self._pixels[key]

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
            out = self._room_for((len(self.images), size, size), bool)
            known = self.images.has_mask
            for i in self.readable.tolist():
                if known[i] and self.images.mask_paths[i] is not None:
                    out[i] = self.images.read_mask(i, (size, size))
            self._masks[size] = out
        return self._masks[size]

    def embeddings(self, embedder: Embedder, *, grey: bool = False, on_unreadable: OnUnreadable = "raise") -> Cached:
        """float32 (n, gh, gw, d) or (n, d), at the embedder's level.

        With on_unreadable="skip" unreadable images are listed in `unreadable` and not asked for again; otherwise the
        first raises UnreadableImageError.
        """
        # Everything that changes a vector: what the embedder is made of, its arithmetic, and what it is shown.
        key = json.dumps([embedder.describe(), str(embedder.dtype), embedder.device.type, grey])
        if key not in self._embeddings:
            start = time.perf_counter()
            out = np.zeros((len(self.images), 0), np.float32)
            unread = []
            whole: dict[int, np.ndarray] = {}
            source = seen_by(self.images.source, grey=grey)
            for image in embed_source(embedder, source, self.readable, on_unreadable=on_unreadable):
                if isinstance(image, UnreadableImage):
                    unread.append(image)
                    continue
                if not out.size:
                    out = self._room_for((len(self.images), *image.embedding.shape), np.float32)
                out[image.index] = image.embedding
                whole[image.index] = image.whole
                self._sizes[image.index] = image.original_size
            self.unreadable += unread
            self.readable = np.setdiff1d(self.readable, [image.index for image in unread])
            self._embeddings[key] = Cached(out, (time.perf_counter() - start) / max(1, len(self.readable)), whole)
        return self._embeddings[key]

    def embedded(self, embedder: Embedder, position: int, *, grey: bool = False) -> EmbeddedImage:
        """One image as `embed_source` would yield it."""
        kept = self.embeddings(embedder, grey=grey)
        height, width = self._sizes[position].tolist()
        embedding, image_id = np.asarray(kept.values[position]), self.images.ids[position]
        return EmbeddedImage(position, image_id, embedding, kept.whole[position], (height, width))

    def _room_for(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self._held + size <= _IN_MEMORY:
            self._held += size
            return np.zeros(shape, dtype)
        folder = tempfile.gettempdir()
        if shutil.disk_usage(folder).free < size:  # said now: a mapping that finds no room later ends the process
            raise OSError(f"{folder} has no room for {size / 1e9:.1f} GB of images; name another folder with TMPDIR")
        with tempfile.TemporaryFile(prefix="anomalib_lite-") as file:  # the mapping keeps it; nobody else can open it
            return np.memmap(file, dtype, "w+", shape=shape)


class CachedSource:
    """Some images of a cache as an `ImageSource`; what embeds it gets their embeddings instead of making them again.

    Parameters
    ----------
    cache : CachedImages
    positions : int (m,)
    grey : bool
        Without their colour.
    """

    def __init__(self, cache: CachedImages, positions: np.ndarray, *, grey: bool = False) -> None:
        self.cache = cache
        self.positions = positions.tolist()
        self.grey = grey
        self._files = seen_by(cache.images.some(positions), grey=grey)
        self.ids = self._files.ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        """Image `i`, decoded anew: uint8 (H, W, 3)."""
        return self._files.read(i)

    def embedded(self, embedder: Embedder, i: int) -> EmbeddedImage:
        """Image `i` as the embedder embeds it."""
        return replace(self.cache.embedded(embedder, self.positions[i], grey=self.grey), index=i)
