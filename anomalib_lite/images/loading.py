"""Decode and resize ahead of the caller: an `ImageSource` in, small images in order out.

Threads, not processes: PIL's decoders and its resizing let other threads run, nothing has to be sent between
processes, and faiss and torch are not forked with their OpenMP pools (which is known to hang).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from anomalib_lite.images.framing import Frame
from anomalib_lite.images.local import FolderSource, ListSource
from anomalib_lite.images.reading import UnreadableImageError, deepest_value
from anomalib_lite.images.sources import ImageSource, ReadsReduced
from anomalib_lite.images.stored import ObjectSource
from anomalib_lite.machine.threads import usable_cores

# Large JPEGs are decoded at no less than so many times the pixels wanted per side, so that resizing still decides.
_SPARE = 2


@dataclass(frozen=True)
class LoadedImage:
    """One image, decoded and resized.

    Attributes
    ----------
    index : int
        Its place in the source.
    id : str
        Its name in the source.
    pixels : ndarray of shape (h, w, 3), uint8
        RGB.
    original_size : (H, W)
        Its size before it was resized.
    """

    index: int
    id: str
    pixels: np.ndarray
    original_size: tuple[int, int]


@dataclass(frozen=True)
class UnreadableImage:
    """Stands where an image would, had it been readable; `reason` is the text of the error."""

    index: int
    id: str
    reason: str


def load(
    source: ImageSource,
    indices: Iterable[int] | None = None,
    *,
    size: int | tuple[int, int] | Frame,
    workers: int | None = None,
    on_unreadable: Literal["skip", "raise"] = "skip",
    prefetch: int | None = None,
) -> Iterator[LoadedImage | UnreadableImage]:
    """Yield the images of a source in order, decoded and resized in threads while the caller works.

    Parameters
    ----------
    source : ImageSource
        From `open_source`.
    indices : iterable of int, optional
        Which images, in which order; by default all.
    size : int, (h, w) or Frame
        Pixels to resize to. Only a frame keeps proportions; otherwise every image is stretched to the same size.
    workers : int, optional
        Decoding threads; by default one per core, at most 8. 0 decodes in the caller's thread.
    on_unreadable : {"skip", "raise"}, default "skip"
        "skip" yields an `UnreadableImage` in the place of each such image, "raise" raises its error there.
    prefetch : int, optional
        Images decoded ahead, by default twice the workers. Memory: `prefetch` resized images, plus one
        image at full size per worker.

    Yields
    ------
    LoadedImage or UnreadableImage
        One per index, in the order of the indices, whatever the number of workers.

    Raises
    ------
    ValueError
        For a size, worker count, prefetch or `on_unreadable` out of range.
    UnreadableImageError
        With ``on_unreadable="raise"``.

    Examples
    --------
    >>> from anomalib_lite.images import open_source
    >>> for image in load(open_source(np.zeros((2, 8, 8, 3), np.uint8)), size=4):
    ...     print(image.id, image.pixels.shape, image.original_size)
    image_0000 (4, 4, 3) (8, 8)
    image_0001 (4, 4, 3) (8, 8)
    """
    frame = size if isinstance(size, Frame) else Frame((size, size) if isinstance(size, int) else size, stretches=True)
    height, width = frame.size
    if height < 1 or width < 1:
        raise ValueError(f"size={size}: give one or two lengths of at least 1 pixel")
    if on_unreadable not in ("skip", "raise"):
        raise ValueError(f"on_unreadable={on_unreadable!r}: give 'skip' or 'raise'")
    if workers is None:
        workers = min(8, usable_cores())
    if workers < 0:
        raise ValueError(f"workers={workers}: give the number of decoding threads, or 0 for none")
    prefetch = 2 * workers if prefetch is None else prefetch
    if workers and prefetch < 1:
        raise ValueError(f"prefetch={prefetch}: give at least 1 image to decode ahead, or workers=0")

    def load_one(i: int) -> LoadedImage | UnreadableImage:
        try:
            if isinstance(source, ReadsReduced):
                pixels, original = source.read_reduced(i, (_SPARE * height, _SPARE * width))
            else:
                pixels = source.read(i)
                original = pixels.shape[0], pixels.shape[1]
            placed = frame.place(pixels, original, name=source.ids[i])
        except UnreadableImageError as error:
            if on_unreadable == "raise":
                raise
            return UnreadableImage(i, source.ids[i], str(error))
        return LoadedImage(i, source.ids[i], placed, original)

    # The checks above run when load() is called, the generator only when it is first asked.
    return _ahead(load_one, range(len(source)) if indices is None else indices, workers, prefetch)


def guess_value_range(source: ImageSource, *, workers: int | None = None) -> tuple[int, int] | None:
    """Tell how many bits the pictures of more than 8 bits use: `Reading.value_range` of 8, 10, 12 or 14 bits.

    Looks at the header of every file, and at the pixels of those that have more than 8 bits and do not declare their
    range, until one uses the highest bits.

    Returns
    -------
    (0, white) or None
        None where all 16 bits are used (as by 12 bits stored as multiples of 16), where there is no such picture, and
        for a source of the user's own.
    """
    if not isinstance(source, FolderSource | ListSource):
        return None
    workers = min(8, usable_cores()) if workers is None else workers
    largest = 0

    def deepest(i: int) -> int:
        with contextlib.suppress(UnreadableImageError):
            if isinstance(source, ObjectSource) and not source.stored(i).may_be_deep(source.ids[i]):
                return 0
            return deepest_value(source.item(i), source.ids[i], source.reading) or 0
        return 0

    for value in _ahead(deepest, range(len(source)), workers, 2 * workers):
        largest = max(largest, value)
        if largest > 16383:
            return None
    return next(((0, white) for white in (255, 1023, 4095, 16383) if 0 < largest <= white), None)


def _ahead(load_one: Callable[[int], Any], indices: Iterable[int], workers: int, prefetch: int) -> Iterator[Any]:
    if workers == 0:
        yield from map(load_one, indices)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="anomalib_lite-load")
    try:
        remaining = iter(indices)
        window: deque[Future[Any]] = deque(pool.submit(load_one, i) for i in islice(remaining, prefetch))
        while window:
            loaded = window.popleft().result()
            # Refilled before yielding, so the threads decode while the caller works.
            window.extend(pool.submit(load_one, i) for i in islice(remaining, 1))
            yield loaded
    finally:
        # Also when the caller stops early: nothing queued is begun any more.
        pool.shutdown(cancel_futures=True)
