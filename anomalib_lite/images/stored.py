"""Images that a URL names in an object store or an archive, as an `ImageSource`; fetched when they are read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from anomalib_lite.images.listing import FOREIGN_SUFFIXES, SUFFIXES
from anomalib_lite.images.local import FolderSource
from anomalib_lite.images.objects import ObjectStore, StoredObject
from anomalib_lite.images.reading import DEFAULT_READING, Reading


class ObjectSource(FolderSource):
    """The images that a URL names in an object store or an archive; holds their paths and sizes.

    Parameters
    ----------
    url : str
        See `open_source`.
    reading : Reading, optional

    Raises
    ------
    FileNotFoundError, ImportError, PermissionError, OSError
        See `open_source`.
    """

    def __init__(self, url: str, reading: Reading = DEFAULT_READING) -> None:
        self.url = url
        self._store = ObjectStore(url)
        self._folder, self._sizes = self._store.listed((*SUFFIXES, *FOREIGN_SUFFIXES))
        super().__init__(Path(url), list(self._sizes), reading)

    def below(self, folder: str, ids: list[str] | None = None) -> ObjectSource:
        """Those of its images that lie below a folder of it, or at `ids` in that folder; nothing is listed again."""
        inside = copy.copy(self)
        if ids is None:
            ids = [id_.removeprefix(f"{folder}/") for id_ in self.ids if id_.startswith(f"{folder}/")]
        first, chained, rest = self.url.partition("::")
        inside.url = f"{first.rstrip('/')}/{folder}{chained}{rest}"
        inside.root, inside.ids, inside.notes = Path(inside.url), ids, {}
        inside._folder = f"{self._folder}/{folder}" if self._folder else folder
        inside._sizes = {id_: self._sizes[f"{folder}/{id_}"] for id_ in ids}
        return inside

    def stored(self, i: int) -> StoredObject:
        """Image `i`, not fetched yet."""
        path = f"{self._folder}/{self.ids[i]}" if self._folder else self.ids[i]
        return StoredObject(self._store, path, self._sizes[self.ids[i]])

    def item(self, i: int) -> Any:
        """Image `i` as it is stored, its bytes."""
        return self.stored(i).content(self.ids[i], self.reading.max_bytes)

    def __repr__(self) -> str:
        return f"ObjectSource({self.url!r}, {len(self)} images)"


def urls_named_by(url: str) -> list[str]:
    """The URLs of all that one names, which may have a pattern in it."""
    if not any(sign in url.partition("::")[0] for sign in "*?["):
        return [url]
    first, chained, rest = url.partition("::")
    protocol = first.partition("://")[0]
    source = ObjectSource(url)
    return [f"{protocol}://{source.stored(i).path.lstrip('/')}{chained}{rest}" for i in range(len(source))]


def stored_object(url: str, stores: dict[str, ObjectStore]) -> StoredObject:
    """The object at a URL; `stores` keeps one store for all objects of a place."""
    first, _, rest = url.partition("::")
    protocol, _, path = first.partition("://")
    place = f"{protocol}://{path.partition('/')[0]}::{rest}"
    if place not in stores:
        stores[place] = ObjectStore(url)
        return StoredObject(stores[place], stores[place].path)
    return StoredObject(stores[place], stores[place].path_of(url))
