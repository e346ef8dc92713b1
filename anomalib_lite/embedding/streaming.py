"""Embed an image source as a stream: files are decoded in threads while the network runs on the batch before."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from anomalib_lite.embedding.embedder import Embedder, Level
from anomalib_lite.embedding.pooling import Features
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import LoadedImage, UnreadableImage, load
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.images.tiles import Window
from anomalib_lite.machine.progress import over

_CALIBRATING = 32  # images that integers are calibrated on
_AHEAD_BYTES = 1 << 28  # of pictures that are decoded ahead
_ALONE = 1 << 24  # pixels of pictures that are not
OnUnreadable = Literal["skip", "raise"]


Block = tuple[np.ndarray, np.ndarray]  # numbers of patches int64 (n,), and their rows float32 (n, d)


@dataclass(frozen=True)
class EmbeddedImage:
    """One image's embedding: float32 (gh, gw, d) at the patch level, (d,) at the global level.

    `whole` is the vector of the global level in any case, float32 (d,). `judged` are the numbers of the patches that
    count, where the frame holds more; None for all.
    """

    index: int
    id: str
    embedding: np.ndarray
    whole: np.ndarray
    original_size: tuple[int, int]
    judged: np.ndarray | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; (1, 1) at the global level."""
        shape = self.embedding.shape
        return (1, 1) if len(shape) == 1 else (shape[0], shape[1])

    def blocks(self, reduction: Reduction | None = None) -> Iterator[Block]:
        """The patches that count, a part at a time, so that an image of any size takes little memory.

        Yields
        ------
        int64 (n,), their numbers on the grid; and float32 (n, d), their rows, after the reduction if there is one.
        """
        rows = self.embedding.reshape(-1, self.embedding.shape[-1])
        numbers = np.arange(len(rows)) if self.judged is None else self.judged
        rows = rows if self.judged is None else rows[self.judged]
        yield numbers, rows if reduction is None else reduction.transform(rows)

    def stored(self) -> EmbeddedImage:
        """As plain arrays, for those who keep many."""
        return EmbeddedImage(self.index, self.id, self.embedding, self.whole, self.original_size, self.judged)


class FreshImage(EmbeddedImage):
    """An image that the network has just seen: what is not asked for is not computed."""

    def __init__(self, image: LoadedImage, features: Features, level: Level, frame: Frame):
        self.__dict__.update(index=image.index, id=image.id, original_size=image.original_size)
        self.__dict__.update(_features=features, _level=level, _frame=frame)

    @cached_property
    def judged(self) -> np.ndarray | None:
        if self.__dict__["_level"] == "global":
            return None
        return self.__dict__["_frame"].judged(self.original_size, self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        return (1, 1) if self.__dict__["_level"] == "global" else self.__dict__["_features"].grid

    @property
    def embedding(self) -> np.ndarray:
        features: Features = self.__dict__["_features"]
        return features.patches()[0] if self.__dict__["_level"] == "patch" else self.whole

    @cached_property
    def whole(self) -> np.ndarray:
        return self.__dict__["_features"].whole()[0]

    def blocks(self, reduction: Reduction | None = None) -> Iterator[Block]:
        if self.__dict__["_level"] == "global":
            yield from super().blocks(reduction)
            return
        rows = _rows(self.__dict__["_features"], reduction)
        yield (np.arange(len(rows)), rows) if self.judged is None else (self.judged, rows[self.judged])


class TiledImage(EmbeddedImage):
    """An image that is seen through windows, anew whenever it is asked for: nothing of its size is kept but itself."""

    def __init__(self, image: LoadedImage, embedder: Embedder):
        self.__dict__.update(index=image.index, id=image.id, original_size=image.original_size)
        self.__dict__.update(_pixels=image.pixels, _embedder=embedder)

    @property
    def grid(self) -> tuple[int, int]:
        embedder: Embedder = self.__dict__["_embedder"]
        return (1, 1) if embedder.level == "global" else embedder.frame.grid(embedder.own_grid)

    @cached_property
    def judged(self) -> np.ndarray | None:
        embedder: Embedder = self.__dict__["_embedder"]
        return None if embedder.level == "global" else embedder.frame.judged(self.original_size, self.grid)

    @property
    def embedding(self) -> np.ndarray:
        if self.__dict__["_embedder"].level == "global":
            return self.whole
        found: np.ndarray | None = None
        for numbers, rows in self._seen(None, np.ones(self.grid, dtype=bool).ravel()):
            if found is None:
                found = np.empty((self.grid[0] * self.grid[1], rows.shape[1]), dtype=np.float32)
            found[numbers] = rows
        assert found is not None  # there is a window
        return found.reshape(*self.grid, -1)

    @property
    def whole(self) -> np.ndarray:
        """The mean of what the windows give."""
        if "_whole" not in self.__dict__:
            for _ in self._features():
                pass
        return self.__dict__["_whole"]

    def blocks(self, reduction: Reduction | None = None) -> Iterator[Block]:
        if self.__dict__["_embedder"].level == "global":
            yield from super().blocks(reduction)
            return
        wanted = np.ones(self.grid, dtype=bool).ravel()
        if self.judged is not None:
            wanted[:] = False
            wanted[self.judged] = True
        yield from self._seen(reduction, wanted)

    def _seen(self, reduction: Reduction | None, wanted: np.ndarray) -> Iterator[Block]:
        for window, features in self._features():
            window = window.only(wanted)
            if len(window.own):
                yield window.patches, _rows(features, reduction)[window.own]

    def _features(self) -> Iterator[tuple[Window, Features]]:
        pixels, embedder = self.__dict__["_pixels"], self.__dict__["_embedder"]
        windows = embedder.frame.windows(embedder.own_grid)
        total = np.zeros(1)
        for start in range(0, len(windows), embedder.batch_size):
            some = windows[start : start + embedder.batch_size]
            features = embedder.features(np.stack([pixels[window.rows, window.columns] for window in some]))
            total = total + features.whole().sum(axis=0)
            for i, window in enumerate(some):
                yield window, features[i]
        self.__dict__["_whole"] = (total / len(windows)).astype(np.float32)


class _Met(Protocol):
    """An image, whatever was made of it."""

    @property
    def index(self) -> int: ...
    @property
    def original_size(self) -> tuple[int, int]: ...


Met = TypeVar("Met", bound=_Met)


@dataclass
class Intake:
    """What was met on the way through a stream of images: sizes (height, width) by index, and the unreadable ones."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    unreadable: list[UnreadableImage] = field(default_factory=list)

    def readable(self, stream: Iterable[Met | UnreadableImage]) -> Generator[Met]:
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


WHOLE = "embedding as a whole"  # a stage, see `machine.progress`


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
        Stage of the work in force (`machine.progress`) that this is; none of its own without it.
    """
    if isinstance(source, EmbeddedSource):
        yield from (source.embedded(embedder, i) for i in indices.tolist())
        return
    loaded = load(
        source,
        indices.tolist(),
        size=embedder.frame,
        # One image gains nothing from threads, and starting them takes longer than decoding it. Of the largest none
        # waits in memory while another is looked at.
        workers=0 if len(indices) == 1 or math.prod(embedder.frame.size) > _ALONE else workers,
        prefetch=_ahead(embedder),
        on_unreadable=on_unreadable,
    )
    if embedder.awaits_calibration:
        loaded = _calibrating(embedder, loaded)
    batch: list[LoadedImage] = []
    size = 1 if embedder.frame.tiled else embedder.batch_size
    for image in over(progress, loaded, len(indices)):
        if isinstance(image, UnreadableImage):
            yield image
            continue
        batch.append(image)
        if len(batch) == size:
            yield from _embedded(embedder, batch)
            batch = []
    if batch:
        yield from _embedded(embedder, batch)


def embed_whole(
    embedder: Embedder,
    source: ImageSource,
    indices: np.ndarray | None = None,
    *,
    workers: int | None = None,
) -> tuple[np.ndarray, list[int]]:
    """One vector per image, whatever the embedder's own level.

    Parameters
    ----------
    indices : (n,), optional
        Images wanted; default: all.
    workers : see `embed_source`

    Returns
    -------
    vectors : float32 (m, d), of the images that can be read, in the order asked for
    kept : their indices
    """
    wanted = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
    stream = embed_source(embedder.at_level("global"), source, wanted, workers=workers, progress=WHOLE)
    found = {image.index: image.embedding for image in stream if not isinstance(image, UnreadableImage)}
    kept = [index for index in wanted.tolist() if index in found]
    return np.stack([found[index] for index in kept]), kept


def _ahead(embedder: Embedder) -> int:
    """Pictures to decode ahead: two batches of them, as far as memory goes."""
    height, width = embedder.frame.size
    return max(1, min(2 * embedder.batch_size, _AHEAD_BYTES // (3 * height * width)))


def _calibrating(
    embedder: Embedder, loaded: Iterator[LoadedImage | UnreadableImage]
) -> Iterator[LoadedImage | UnreadableImage]:
    """Calibrate the embedder on the first images of a stream, and pass all of them on."""
    first: list[LoadedImage | UnreadableImage] = []
    pixels: list[np.ndarray] = []
    windows = embedder.frame.count[0] * embedder.frame.count[1]
    for image in loaded:
        first.append(image)
        if isinstance(image, LoadedImage):
            pixels.append(image.pixels)
        if len(pixels) * windows >= _CALIBRATING:
            break
    if pixels:
        embedder.calibrate(_shown(embedder.frame, pixels))
    yield from first
    yield from loaded


def _shown(frame: Frame, pictures: list[np.ndarray]) -> np.ndarray:
    """What a network is shown of pictures (h, w, 3) to calibrate by: themselves, or 32 of their windows."""
    if not frame.tiled:
        return np.stack(pictures)
    cuts = [(picture, window) for picture in pictures for window in frame.windows((1, 1))]
    chosen = np.unique(np.linspace(0, len(cuts) - 1, _CALIBRATING).round().astype(int))
    return np.stack([cuts[i][0][cuts[i][1].rows, cuts[i][1].columns] for i in chosen.tolist()])


def _rows(features: Features, reduction: Reduction | None) -> np.ndarray:
    """The patches of one image as rows (n, d), after a reduction if there is one."""
    linear = getattr(reduction, "linear", None)
    if linear is not None:
        grid = features.reduced(*linear)[0]
        return grid.reshape(-1, grid.shape[-1])
    grid = features.patches()[0]
    rows = grid.reshape(-1, grid.shape[-1])
    return rows if reduction is None else reduction.transform(rows)


def _embedded(embedder: Embedder, batch: list[LoadedImage]) -> Iterator[EmbeddedImage]:
    if embedder.frame.tiled:
        yield from (TiledImage(image, embedder) for image in batch)
        return
    features = embedder.features(np.stack([image.pixels for image in batch]))
    for i, image in enumerate(batch):
        yield FreshImage(image, features[i], embedder.level, embedder.frame)
