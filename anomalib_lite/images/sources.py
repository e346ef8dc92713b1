"""Where images come from: a folder, paths, arrays, PIL images or tensors in; an `ImageSource` out.

An `ImageSource` has ids, a length and `read(i)`. Files are decoded when they are read, never before, and a
file that cannot be read stays in the list and says so then: one broken file does not stop a run. So does a
picture in a format that is not read, and a folder that may not be entered; what is no picture is no entry.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from anomalib_lite.images.local import FolderSource, ListSource, is_tensor
from anomalib_lite.images.objects import ObjectStore, is_url
from anomalib_lite.images.reading import DEFAULT_READING, Reading
from anomalib_lite.images.stored import ObjectSource, stored_object, urls_named_by


@runtime_checkable
class ImageSource(Protocol):
    """What a fit or a run of scoring reads images from; anything of this shape will do.

    `read` may be called from several threads at once.
    """

    ids: list[str]

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """Return image `i` as uint8 RGB (H, W, 3), or raise `UnreadableImageError`."""
        ...


@runtime_checkable
class ReadsReduced(Protocol):
    """A source that decodes large pictures at a fraction of their size, where less is wanted of them."""

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Image `i` as uint8 RGB, no smaller than `least` (h, w) unless it is, and the size (H, W) that it has."""
        ...


def open_source(images: Any, reading: Reading | None = None) -> ImageSource:
    """Make an image source of whatever holds the images.

    Parameters
    ----------
    images : path, array, tensor, PIL image, bytes, open file, a list of these, or ImageSource
        - A folder: every image below it, sorted by path; ids are the paths relative to it, with ``/``. Hidden
          files and folders, those of the system, and folders of overlays are left out. Linked folders are
          followed, each folder once. Pictures of other formats and folders that may not be entered are entries
          that cannot be read.
        - A file, or a list of files: ids are the paths as given; a repeated one gets ``#2``, ``#3``. A
          missing file stays in the list and is unreadable. A list may hold folders.
        - An array (H, W), (H, W, C), (N, H, W) or (N, H, W, C), C being 1, 3 or 4, of the dtypes of `to_rgb`.
          Of three axes, a last one of length 1, 3 or 4 holds channels, any other is a width. (3, H, W) and
          (4, H, W) may be either, and are refused.
        - A torch tensor (H, W), (C, H, W) or (N, C, H, W), uint8 or float in [0, 1].
        - A list of single images, mixed as you like: ids are ``image_0000``, ``image_0001``, ...
        - A URL of an object store or an archive, as fsspec knows them: ``s3://bucket/good`` (every image below),
          ``s3://bucket/good/*.png``, ``gs://``, ``az://``, ``memory://``, ``zip://good/*.png::parts.zip``, or a list of
          them; see `images.objects`. Ids are the paths relative to what has no ``*`` in it; of a list, the URLs. What
          is gone or cannot be reached is unreadable.
        - An `ImageSource`, which is returned as it is; one of this module as a copy with the `reading`, if given.
    reading : Reading, optional
        How files and arrays are read: the range of more than 8 bits, and limits.

    Returns
    -------
    ImageSource
        Of a folder only the ids are held in memory.

    Raises
    ------
    FileNotFoundError
        If the only path or URL given does not exist, or a folder holds no images.
    ImportError, PermissionError, OSError
        If a store cannot be opened or listed: its package or credentials are missing, or it cannot be reached.
    ValueError
        If the list or array is empty, or an array or tensor has a shape that is not of images.
    TypeError
        If `images` is none of the above.

    Examples
    --------
    >>> source = open_source(np.zeros((2, 8, 8, 3), np.uint8))
    >>> source.ids, source.read(0).shape
    (['image_0000', 'image_0001'], (8, 8, 3))
    """
    if isinstance(images, ImageSource):
        if reading is None or not isinstance(images, FolderSource | ListSource):
            return images
        again = copy.copy(images)
        again.reading, again.notes = reading, {}
        return again
    reading = reading or DEFAULT_READING
    if is_url(images):
        if not images.lower().startswith(("file://", "local://")):
            return ObjectSource(images, reading)
        images = images.partition("://")[2]
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if path.is_dir():
            return FolderSource(path, reading=reading)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; check the path")
        return ListSource([path], [os.fspath(images)], reading)
    if isinstance(images, bytes | bytearray | memoryview | Image.Image) or hasattr(images, "read"):
        images = [images]
    elif is_tensor(images) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OSU"):
        images = _split(images)
    elif not isinstance(images, Iterable) or isinstance(images, dict | set):
        raise TypeError(
            f"images of type {type(images).__name__} cannot be opened; give a folder, a path, an array, "
            "a PIL image, a torch tensor or a list of these"
        )
    return _open_list(list(images), reading)


def lies_in_files(source: ImageSource) -> bool:
    """Whether every image is a file of this machine, so that whoever keeps the source keeps no pixels."""
    if type(source) is ListSource:
        return all(isinstance(item, str | os.PathLike) for item in source.items)
    return type(source) is FolderSource


def _open_list(items: list[Any], reading: Reading) -> ListSource:
    if not items:
        raise ValueError("no images: the list is empty; give at least one image")
    flat: list[Any] = []
    ids: list[str] = []
    stores: dict[str, ObjectStore] = {}  # one of a place, for many objects in it
    for i, item in enumerate(items):
        if is_url(item):
            urls = urls_named_by(item)
            ids += urls
            flat += [stored_object(url, stores) for url in urls]
            continue
        if isinstance(item, str | os.PathLike):
            path = os.fspath(item)
            if os.path.isdir(path):
                inside = FolderSource(Path(path))
                flat += [inside.root / id_ for id_ in inside.ids]
                ids += [(inside.root / id_).as_posix() for id_ in inside.ids]
                continue
            ids.append(path)
        elif is_tensor(item) or isinstance(item, np.ndarray | Image.Image | bytes | bytearray | memoryview):
            ids.append(f"image_{i:04d}")
        elif hasattr(item, "read"):
            # Read now, for a file can be read once and by one thread.
            item = item.read(reading.max_bytes + 1)
            if not isinstance(item, bytes):
                raise TypeError(f"item {i} is a file of text; open images with mode 'rb', or give a list of paths")
            ids.append(f"image_{i:04d}")
        else:
            raise TypeError(
                f"item {i} of the list is of type {type(item).__name__}; give paths, arrays, PIL images or tensors"
            )
        flat.append(item)
    return ListSource(flat, _made_unique(ids), reading)


def _made_unique(ids: list[str]) -> list[str]:
    taken = set(ids)
    seen: Counter[str] = Counter()
    unique = []
    for id_ in ids:
        seen[id_] += 1
        new = id_
        if seen[id_] > 1:
            while (new := f"{id_}#{seen[id_]}") in taken:
                seen[id_] += 1
            taken.add(new)
        unique.append(new)
    return unique


def _split(images: Any) -> list[Any]:
    """Split an array or tensor into single images."""
    shape = tuple(images.shape)
    channel_axis = -3 if is_tensor(images) else -1
    has_channels = len(shape) >= 3 and shape[channel_axis] in (1, 3, 4)
    if 0 not in shape:
        if len(shape) == 2 or (len(shape) == 3 and has_channels):
            return [images]
        if len(shape) == 3 and not is_tensor(images) and shape[0] in (3, 4):
            raise ValueError(
                f"array of shape {shape}: {shape[0]} grey images, or one whose channels come first? "
                "Give array[..., None] for the former, array.transpose(1, 2, 0) for the latter"
            )
        # (N, H, W) is for arrays only: in a tensor, N and channels could not be told apart.
        if (len(shape) == 4 and has_channels) or (len(shape) == 3 and not is_tensor(images)):
            return list(images)
    expected = (
        "(H, W), (C, H, W) or (N, C, H, W)" if is_tensor(images) else "(H, W), (H, W, C), (N, H, W) or (N, H, W, C)"
    )
    kind = "tensor" if is_tensor(images) else "array"
    raise ValueError(f"{kind} of shape {shape} holds no images; give {expected} with C = 1, 3 or 4 and no empty axis")
