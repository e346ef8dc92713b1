"""Embed an image source as a stream: files are decoded in threads while the network runs on the batch before."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from anomalib_lite.embedding.embedder import Embedder, Features, Level
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import LoadedImage, UnreadableImage, load
from anomalib_lite.images.sources import ImageSource

_CALIBRATING = 32  # images that integers are calibrated on
OnUnreadable = Literal["skip", "raise"]


@dataclass(frozen=True)
class EmbeddedImage:
    """One image's embedding: float32 (gh, gw, d) at the patch level, (d,) at the global level.

    `whole` is the vector of the global level in any case, float32 (d,). `judged` are the numbers of the patches that
    lie in the picture, where the frame holds more; None for all.
    """

    index: int
    id: str
    embedding: np.ndarray
    whole: np.ndarray
    original_size: tuple[int, int]
    judged: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """The embedding as rows (n, d) of the patches that count, n = 1 at the global level."""
        return self._counting(self.embedding.reshape(-1, self.embedding.shape[-1]))

    def reduced(self, reduction: Reduction) -> np.ndarray:
        """These rows after a reduction, float32 (n, q)."""
        return reduction.transform(self.rows)

    def patches(self, rows: np.ndarray) -> np.ndarray:
        """Numbers (n,) on the grid of the patches that `rows` are of."""
        return np.arange(len(rows)) if self.judged is None else self.judged

    def stored(self) -> EmbeddedImage:
        """As plain arrays, for those who keep many."""
        return EmbeddedImage(self.index, self.id, self.embedding, self.whole, self.original_size, self.judged)

    def _counting(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.judged is None else rows[self.judged]


class FreshImage(EmbeddedImage):
    """An image that the network has just seen: what is not asked for is not computed."""

    def __init__(self, image: LoadedImage, features: Features, level: Level, frame: Frame):
        self.__dict__.update(index=image.index, id=image.id, original_size=image.original_size)
        self.__dict__.update(_features=features, _level=level, _frame=frame)

    @cached_property
    def judged(self) -> np.ndarray | None:
        if self.__dict__["_level"] == "global":
            return None
        return self.__dict__["_frame"].judged(self.original_size, self.__dict__["_features"].grid)

    @property
    def embedding(self) -> np.ndarray:
        features: Features = self.__dict__["_features"]
        return features.patches()[0] if self.__dict__["_level"] == "patch" else self.whole

    @cached_property
    def whole(self) -> np.ndarray:
        return self.__dict__["_features"].whole()[0]

    def reduced(self, reduction: Reduction) -> np.ndarray:
        linear = getattr(reduction, "linear", None)
        if linear is None or self.__dict__["_level"] == "global":
            return super().reduced(reduction)
        rows = self.__dict__["_features"].reduced(*linear)
        return self._counting(rows.reshape(-1, rows.shape[-1]))


@dataclass
class Intake:
    """What was met on the way through a stream of images: sizes (height, width) by index, and the unreadable ones."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    unreadable: list[UnreadableImage] = field(default_factory=list)

    def readable(self, stream: Iterable[EmbeddedImage | UnreadableImage]) -> Iterator[EmbeddedImage]:
        """Pass readable images on; note their sizes, and the unreadable ones."""
        for image in stream:
            if isinstance(image, UnreadableImage):
                self.unreadable.append(image)
            else:
                self.sizes[image.index] = image.original_size
                yield image


class Reduction(Protocol):
    """What brings rows (n, d) to rows (n, q); one that has `linear` is computed together with the pooling."""

    def transform(self, X: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class EmbeddedSource(Protocol):
    """An image source that keeps embeddings and hands them out, so that nothing is embedded twice."""

    def embedded(self, embedder: Embedder, i: int) -> EmbeddedImage | UnreadableImage: ...


def embed_source(
    embedder: Embedder,
    source: ImageSource,
    indices: np.ndarray,
    *,
    on_unreadable: OnUnreadable = "skip",
    workers: int | None = None,
    progress: str | None = None,
) -> Iterator[EmbeddedImage | UnreadableImage]:
    """Yield every image of `indices` (n,) embedded; unreadable ones as they are met, so not quite in order.

    Parameters
    ----------
    progress : str, optional
        Label of a progress bar on stderr; none without it.
    """
    if isinstance(source, EmbeddedSource):
        yield from (source.embedded(embedder, i) for i in indices.tolist())
        return
    loaded = load(
        source,
        indices.tolist(),
        size=embedder.frame,
        # One image gains nothing from threads, and starting them takes longer than decoding it.
        workers=0 if len(indices) == 1 else workers,
        prefetch=2 * embedder.batch_size,
        on_unreadable=on_unreadable,
    )
    if embedder.awaits_calibration:
        loaded = _calibrating(embedder, loaded)
    bar = tqdm(loaded, desc=progress, total=len(indices), unit="image", file=sys.stderr, disable=progress is None)
    batch: list[LoadedImage] = []
    for image in bar:
        if isinstance(image, UnreadableImage):
            yield image
            continue
        batch.append(image)
        if len(batch) == embedder.batch_size:
            yield from _embedded(embedder, batch)
            batch = []
    if batch:
        yield from _embedded(embedder, batch)


def embed_whole(
    embedder: Embedder, source: ImageSource, indices: np.ndarray | None = None, *, workers: int | None = None
) -> tuple[np.ndarray, list[int]]:
    """One vector per image, whatever the embedder's own level.

    Parameters
    ----------
    indices : (n,), optional
        Images wanted; default: all.

    Returns
    -------
    vectors : float32 (m, d), of the images that can be read, in the order asked for
    kept : their indices
    """
    wanted = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
    stream = embed_source(embedder.at_level("global"), source, wanted, workers=workers)
    found = {image.index: image.embedding for image in stream if not isinstance(image, UnreadableImage)}
    kept = [index for index in wanted.tolist() if index in found]
    return np.stack([found[index] for index in kept]), kept


def _calibrating(
    embedder: Embedder, loaded: Iterator[LoadedImage | UnreadableImage]
) -> Iterator[LoadedImage | UnreadableImage]:
    """Calibrate the embedder on the first images of a stream, and pass all of them on."""
    first: list[LoadedImage | UnreadableImage] = []
    pixels: list[np.ndarray] = []
    for image in loaded:
        first.append(image)
        if isinstance(image, LoadedImage):
            pixels.append(image.pixels)
        if len(pixels) == _CALIBRATING:
            break
    if pixels:
        embedder.calibrate(np.stack(pixels))
    yield from first
    yield from loaded


def _embedded(embedder: Embedder, batch: list[LoadedImage]) -> Iterator[EmbeddedImage]:
    features = embedder.features(np.stack([image.pixels for image in batch]))
    for i, image in enumerate(batch):
        yield FreshImage(image, features[i], embedder.level, embedder.frame)
