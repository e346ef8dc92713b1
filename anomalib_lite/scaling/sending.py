"""A source of images cut down to a few of them, to be sent to another process; and what was noted there, sent back."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anomalib_lite.images.fixture import Pose, RegisteredSource
from anomalib_lite.images.local import FolderSource, ListSource
from anomalib_lite.images.sight import SightingSource
from anomalib_lite.images.sources import ImageSource, ReadsReduced
from anomalib_lite.images.stored import ObjectSource
from anomalib_lite.images.variations import VariedSource


@dataclass(frozen=True)
class Noted:
    """What sources note while they are read: remarks by id, how parts lay, and what pictures show, by index."""

    notes: dict[str, str] = field(default_factory=dict)
    poses: dict[int, Pose] = field(default_factory=dict)
    sights: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)


def only(source: ImageSource, indices: Iterable[int]) -> ImageSource:
    """A source that has the images at `indices`, at these same indices, and knows of no others.

    One of the user's own stays whole: nobody knows what it reads from.
    """
    wanted = list(indices)
    if not isinstance(source, FolderSource | ListSource | VariedSource | SightingSource | RegisteredSource):
        return source
    few: Any = copy.copy(source)  # Any: a mapping from index to id stands in for the list of ids
    few.ids = {i: source.ids[i] for i in wanted}
    if isinstance(source, FolderSource | ListSource):
        few.notes = {}
        if isinstance(source, ListSource):
            few.items = {i: source.items[i] for i in wanted}
        if isinstance(source, ObjectSource):
            few._sizes = {name: source._sizes[name] for name in few.ids.values()}
        return few
    if isinstance(source, VariedSource):
        few.source = only(source.source, {i // source.copies for i in wanted})
        few.notes = getattr(few.source, "notes", {})
        return few
    few.source = only(source.source, wanted)
    if isinstance(source, SightingSource):
        few.found = {}
    else:
        few.poses = {}
    return few


class Some:
    """Some images of a source, numbered anew from 0.

    Parameters
    ----------
    source : ImageSource
    indices : of the images in it
    """

    def __init__(self, source: ImageSource, indices: Iterable[int]):
        self.source, self.indices = source, list(indices)
        self.ids = [source.ids[i] for i in self.indices]

    @property
    def notes(self) -> dict[str, str]:
        """Those of the source."""
        return getattr(self.source, "notes", {})

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        """Image `i` of these."""
        return self.source.read(self.indices[i])

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Image `i` of these, see `ReadsReduced`."""
        if isinstance(self.source, ReadsReduced):
            return self.source.read_reduced(self.indices[i], least)
        pixels = self.read(i)
        return pixels, (pixels.shape[0], pixels.shape[1])


def noted(source: ImageSource) -> Noted:
    """What a source, and those that it reads from, have noted."""
    poses: dict[int, Pose] = {}
    sights: dict[int, tuple[float, float, float, float]] = {}
    inner: Any = source
    while isinstance(inner, VariedSource | SightingSource | RegisteredSource):
        if isinstance(inner, RegisteredSource):
            poses = inner.poses
        elif isinstance(inner, SightingSource):
            sights = inner.found
        inner = inner.source
    return Noted(dict(getattr(inner, "notes", {})), poses, sights)


def note(source: ImageSource, there: Noted) -> None:
    """Note at a source what one cut from it has noted."""
    inner: Any = source
    while isinstance(inner, VariedSource | SightingSource | RegisteredSource):
        if isinstance(inner, RegisteredSource):
            inner.poses.update(there.poses)
        elif isinstance(inner, SightingSource):
            inner.found.update(there.sights)
        inner = inner.source
    if there.notes and isinstance(inner, FolderSource | ListSource):
        inner.notes.update(there.notes)
