"""Images embedded, or scored too, by other processes: the same streams as of one process, in the same order.

What comes back of an image to learn from are its reduced rows and its one vector, of one that is scored its scores: no
embedding in all its channels. A worker's reduced rows are what this process would have computed, so what is learnt from
them is the same, to the rounding of floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import Block, EmbeddedImage, EmbeddedSource, OnUnreadable, embed_source
from anomalib_lite.fitted.core import Fitted, ScoredRows
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.machine.progress import over
from anomalib_lite.scaling.chunks import (
    AT_A_TIME,
    CHUNK,
    Chunk,
    Engine,
    Packed,
    cut,
    each_alone,
    engine_in_force,
    kept_notes,
    over_chunks,
)
from anomalib_lite.scoring.reduction import Reduction

_CHUNK_PIXELS = 1 << 23  # of the pictures of a chunk as they are seen: 64 MB of reduced rows
# Chunks of images to score that a worker is asked for together: what comes back is small, and every round of asking
# costs. Two Dask workers are 1.24 times as fast as one process with 2, 1.74 with 8 (2 000 images, two cores).
_SCORED_AT_A_TIME = 8
_DECODING = 2  # threads of a worker, if nothing is said: one decodes while another waits for a disk or a store


class ReducedImage(EmbeddedImage):
    """An image of which its reduced rows have come back, and its one vector."""

    def __init__(self, image: EmbeddedImage, reduction: Reduction | None):
        parts = [] if reduction is None else list(image.blocks(reduction))
        self.__dict__.update(index=image.index, id=image.id, original_size=image.original_size, whole=image.whole)
        self.__dict__.update(_parts=parts, _grid=image.grid)

    @property
    def grid(self) -> tuple[int, int]:
        return self.__dict__["_grid"]

    def blocks(self, reduction: Any = None) -> Iterator[Block]:
        """Its rows, which were reduced where it was embedded, by the same reduction."""
        yield from self.__dict__["_parts"]


@dataclass(frozen=True)
class ScoredImage:
    """One image's scores, and its one vector if that was asked for; see `EmbeddedImage`."""

    index: int
    id: str
    original_size: tuple[int, int]
    scored: ScoredRows
    whole: np.ndarray | None


@dataclass(frozen=True)
class _Task:
    embedder: Embedder
    learnt: Any  # a reduction to embed by, or a core to score by
    on_unreadable: OnUnreadable
    workers: int
    vectors: bool = True


def embed_elsewhere(
    engine: Engine,
    embedder: Embedder,
    source: ImageSource,
    indices: np.ndarray,
    reduction: Reduction | None,
    *,
    on_unreadable: OnUnreadable = "skip",
    workers: int | None = None,
    progress: str | None = None,
) -> Iterator[EmbeddedImage | UnreadableImage]:
    """As `embed_source`, by other processes; `blocks` of the images are reduced already.

    Parameters
    ----------
    reduction : fitted; None where only the one vector of every image is wanted
    """
    if embedder.awaits_calibration and len(indices):  # by the first images, which it sees before one of them is out
        first = embed_source(embedder, source, indices, on_unreadable=on_unreadable, workers=workers)
        seen = set()
        for image in first:
            yield image if isinstance(image, UnreadableImage) else ReducedImage(image, reduction)
            seen.add(image.index)
            if not embedder.awaits_calibration:
                break
        indices = np.array([i for i in indices.tolist() if i not in seen], dtype=np.int64)
    task = _Task(embedder, reduction, on_unreadable, _DECODING if workers is None else workers)
    yield from _elsewhere(engine, _embedded, task, source, indices, progress)


def score_source(
    fitted: Fitted,
    embedder: Embedder,
    source: ImageSource,
    *,
    on_unreadable: OnUnreadable = "skip",
    workers: int | None = None,
    progress: str | None = None,
    vectors: bool = False,
) -> Iterator[ScoredImage | UnreadableImage]:
    """Score the images of a source, here, or by the processes that `joblib.parallel_config` has set up.

    Parameters
    ----------
    vectors : whether `whole` is wanted
    others : see `embed_source`
    """
    indices = np.arange(len(source))
    engine = None if isinstance(source, EmbeddedSource) or len(source) < 2 else engine_in_force()
    if engine is not None:
        task = _Task(embedder, fitted, on_unreadable, _DECODING if workers is None else workers, vectors)
        yield from _elsewhere(engine, _scored, task, source, indices, progress)
        return
    stream = embed_source(embedder, source, indices, on_unreadable=on_unreadable, workers=workers, progress=progress)
    for image in stream:
        yield image if isinstance(image, UnreadableImage) else _scored_image(fitted, image, vectors)


def _elsewhere(
    engine: Engine, work: Any, task: _Task, source: ImageSource, indices: np.ndarray, progress: str | None
) -> Iterator[Any]:
    pixels = math.prod(task.embedder.frame.size)
    chunks = cut(source, indices.tolist(), max(1, min(CHUNK, _CHUNK_PIXELS // pixels)))
    ahead = _SCORED_AT_A_TIME if work is _scored else AT_A_TIME
    found = kept_notes(source, over_chunks(engine, work, Packed(task), chunks, at_a_time=ahead))
    yield from over(progress, found, len(indices))


def _embedded(task: _Task, chunk: Chunk) -> list[Any]:
    def work(some: Chunk) -> list[Any]:
        return [
            image if isinstance(image, UnreadableImage) else ReducedImage(image, task.learnt)
            for image in _stream(task, some)
        ]

    return each_alone(work, chunk, strict=task.on_unreadable == "raise")


def _scored(task: _Task, chunk: Chunk) -> list[Any]:
    def work(some: Chunk) -> list[Any]:
        return [
            image if isinstance(image, UnreadableImage) else _scored_image(task.learnt, image, task.vectors)
            for image in _stream(task, some)
        ]

    return each_alone(work, chunk, strict=task.on_unreadable == "raise")


def _stream(task: _Task, chunk: Chunk) -> Iterator[EmbeddedImage | UnreadableImage]:
    return embed_source(
        task.embedder, chunk.source, np.array(chunk.indices), on_unreadable=task.on_unreadable, workers=task.workers
    )


def _scored_image(fitted: Fitted, image: EmbeddedImage, vectors: bool) -> ScoredImage:
    scored = fitted.score(image)
    return ScoredImage(image.index, image.id, image.original_size, scored, image.whole if vectors else None)
