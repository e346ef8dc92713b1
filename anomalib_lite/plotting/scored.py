"""What drawings need of scored images: their scores, by shape, and their pictures, found again by id.

`results.Scores` has the shape of `Scored`, and it may call the drawings in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from anomalib_lite.images.local import FolderSource, ListSource
from anomalib_lite.images.reading import Reading, UnreadableImageError
from anomalib_lite.images.sources import ReadsReduced, open_source
from anomalib_lite.locating.regions import DefectRegion
from anomalib_lite.scored.picking import Ordered


class Scored(Ordered, Protocol):
    """Scores of images, with what is drawn of them."""

    @property
    def alarms(self) -> np.ndarray: ...
    @property
    def threshold(self) -> float: ...
    @property
    def image_sizes(self) -> list[tuple[int, int]]: ...
    @property
    def map_scale(self) -> tuple[float, float]: ...
    @property
    def nearest(self) -> Sequence[Any] | None: ...
    @property
    def reading(self) -> Reading | None: ...
    def anomaly_map(self, i: int, size: tuple[int, int] | None = None) -> np.ndarray: ...
    def as_a_whole(self, i: int) -> bool: ...
    def require_maps(self) -> None: ...
    def map_bands(self, i: int, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]: ...
    def regions(self, i: int) -> list[DefectRegion]: ...
    def looked_at(self, i: int, size: tuple[int, int]) -> np.ndarray | None: ...


def pictures_of(
    scores: Scored, images: Any, *, most: int | None = None, to_change: bool = False
) -> Callable[[int], np.ndarray]:
    """A function from a position in `scores` to that picture, uint8 (H, W, 3); of more pixels than `most` smaller.

    With `to_change` it is an array of its own, which may be painted on.

    It raises UnreadableImageError for one that has gone, cannot be read or has another size by now: a folder on a line
    does not stand still. If none of the scored images is among those given, that is a ValueError at once.
    """
    source = open_source(images, scores.reading)
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    if scores.ids and position.keys().isdisjoint(scores.ids):
        raise ValueError(f"{scores.ids[0]!r} was scored but is not among the images given; give the same images")

    def read(i: int) -> np.ndarray:
        name = scores.ids[i]
        if name not in position:
            raise UnreadableImageError(f"{name}: was scored but is not among the images given; give the same images")
        expected = tuple(scores.image_sizes[i])
        if most is not None and isinstance(source, ReadsReduced) and math.prod(expected) > most:
            shrink = math.ceil(math.sqrt(math.prod(expected) / most))
            pixels, size = source.read_reduced(position[name], (expected[0] // shrink, expected[1] // shrink))
        else:
            pixels = source.read(position[name])
            size = pixels.shape[0], pixels.shape[1]
        if size != expected:
            sizes = f"{size}, but was {expected} when scored"
            raise UnreadableImageError(f"{name}: its (height, width) is {sizes}; score it again")
        # Of files every read decodes anew; arrays are handed out as they were given.
        decoded = type(source) is FolderSource or (
            type(source) is ListSource and not isinstance(source.item(position[name]), np.ndarray)
        )
        return pixels.copy() if to_change and not decoded else pixels

    return read
