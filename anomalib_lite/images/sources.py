"""Where images come from: a folder, paths, arrays, PIL images or tensors in; an `ImageSource` out.

An `ImageSource` has ids, a length and `read(i)`. Files are decoded when they are read, never before, and a
file that cannot be read stays in the list and says so then: one broken file does not stop a run. So does a
picture in a format that is not read, and a folder that may not be entered; what is no picture is no entry.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from anomalib_lite.images.objects import ObjectStore, StoredObject, is_url
from anomalib_lite.images.reading import (
    DEFAULT_READING,
    Reading,
    UnreadableImageError,
    read_reduced,
    to_rgb,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
# Pictures and films that are not read: listed all the same, so that nobody takes them for looked at.
FOREIGN_SUFFIXES = (
    ".gif", ".apng", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".avif", ".heic", ".heif", ".dng", ".raw", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".rw2", ".raf", ".dib", ".tga", ".pcx", ".ico", ".svg", ".psd", ".exr", ".hdr", ".pfm",
    ".pam", ".dcm", ".fits", ".webm", ".mp4", ".avi", ".mov", ".mkv", ".mpg",
)  # fmt: skip
# Folders that systems put beside one's own: thumbnails, what was deleted, copies.
SYSTEM_FOLDERS = {
    "@eadir",
    "#recycle",
    "@recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
}
# A file that stands in every folder of overlays, so that they are not taken for pictures of parts.
OVERLAYS_MARK = ".anomalib_lite-overlays.json"


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
    elif _is_tensor(images) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OSU"):
        images = _split(images)
    elif not isinstance(images, Iterable) or isinstance(images, dict | set):
        raise TypeError(
            f"images of type {type(images).__name__} cannot be opened; give a folder, a path, an array, "
            "a PIL image, a torch tensor or a list of these"
        )
    return _open_list(list(images), reading)


class FolderSource:
    """The images below a folder; holds only their paths.

    Parameters
    ----------
    root : Path
        The folder.
    ids : list of str, optional
        Paths relative to `root`, with ``/``. By default every picture below `root`, sorted.
    reading : Reading, optional

    Attributes
    ----------
    notes : dict of str to str
        By id, what is not shown of an image that was read: clipped values, further pages.

    Raises
    ------
    FileNotFoundError
        If `ids` is not given and there is no image below `root`.
    """

    def __init__(self, root: Path, ids: list[str] | None = None, reading: Reading = DEFAULT_READING) -> None:
        if ids is None:
            ids = list_pictures(root)
            if not any(id_.lower().endswith(SUFFIXES) for id_ in ids):
                raise FileNotFoundError(_no_images(root))
        self.root = root
        self.ids = ids
        self.reading = reading
        self.notes: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, i: int) -> Path:
        """Where image `i` is."""
        return self.root / self.ids[i]

    def read(self, i: int) -> np.ndarray:
        """Decode image `i`: uint8 RGB (H, W, 3)."""
        self._check(i)
        return _read(self, i)[0]

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Decode image `i`, see `ReadsReduced`."""
        if type(self).read is not FolderSource.read:
            return _by_own_read(self, i)
        self._check(i)
        return _read(self, i, least)

    def _check(self, i: int) -> None:
        id_ = self.ids[i]
        if id_.endswith("/"):
            raise UnreadableImageError(
                f"{id_}: the folder cannot be entered (permission?); make it readable: {self.item(i)}"
            )
        if id_.lower().endswith(FOREIGN_SUFFIXES):
            raise UnreadableImageError(f"{id_}: {Path(id_).suffix} is not read; convert it to PNG")

    def __repr__(self) -> str:
        return f"FolderSource({str(self.root)!r}, {len(self)} images)"


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

    def stored(self, i: int) -> StoredObject:
        """Image `i`, not fetched yet."""
        path = f"{self._folder}/{self.ids[i]}" if self._folder else self.ids[i]
        return StoredObject(self._store, path, self._sizes[self.ids[i]])

    def item(self, i: int) -> Any:
        """Image `i` as it is stored, its bytes."""
        return self.stored(i).content(self.ids[i], self.reading.max_bytes)

    def __repr__(self) -> str:
        return f"ObjectSource({self.url!r}, {len(self)} images)"


class ListSource:
    """Single images - paths, arrays, tensors, PIL images, encoded bytes - each with its id.

    Parameters
    ----------
    items : sequence
        One image each.
    ids : list of str
        As many as items.
    reading : Reading, optional

    Attributes
    ----------
    notes : dict of str to str
        As in `FolderSource`.
    """

    def __init__(self, items: Sequence[Any], ids: list[str], reading: Reading = DEFAULT_READING) -> None:
        self.items = items
        self.ids = ids
        self.reading = reading
        self.notes: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, i: int) -> Any:
        """Image `i` as it was given; of a tensor its array, channels last; of an object in a store its bytes."""
        if isinstance(self.items[i], StoredObject):
            return self.items[i].content(self.ids[i], self.reading.max_bytes)
        return _tensor_image(self.items[i], self.ids[i]) if _is_tensor(self.items[i]) else self.items[i]

    def read(self, i: int) -> np.ndarray:
        """Decode or convert image `i`: uint8 RGB (H, W, 3)."""
        return _read(self, i)[0]

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Decode image `i`, see `ReadsReduced`."""
        return _by_own_read(self, i) if type(self).read is not ListSource.read else _read(self, i, least)

    def __repr__(self) -> str:
        return f"ListSource({len(self)} images)"


def lies_in_files(source: ImageSource) -> bool:
    """Whether every image is a file of this machine, so that whoever keeps the source keeps no pixels."""
    if type(source) is ListSource:
        return all(isinstance(item, str | os.PathLike) for item in source.items)
    return type(source) is FolderSource


def _by_own_read(source: ImageSource, i: int) -> tuple[np.ndarray, tuple[int, int]]:
    """What a subclass reads in its own way, such as cut out or turned: no other way may go around that."""
    pixels = source.read(i)
    return pixels, (pixels.shape[0], pixels.shape[1])


def _read(
    source: FolderSource | ListSource, i: int, least: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode or convert image `i`, and keep what there is to note of it; see `ReadsReduced`."""
    item, name = source.item(i), source.ids[i]
    notes: list[str] = []
    if isinstance(item, np.ndarray):
        pixels = to_rgb(item, reading=source.reading, name=name, notes=notes)
        size = pixels.shape[0], pixels.shape[1]
    else:
        pixels, size = read_reduced(item, least, reading=source.reading, name=name, notes=notes)
    if notes:  # one assignment, and of a key of its own: threads do not get in each other's way
        source.notes[name] = "; ".join(notes)
    return pixels, size


def list_images(folder: Path) -> list[str]:
    """List the images below a folder as sorted paths relative to it, with ``/``; hidden ones are left out."""
    return sorted(path for path in _walk(folder) if path.lower().endswith(SUFFIXES))


def list_pictures(folder: Path) -> list[str]:
    """List the images, pictures of formats that are not read, and folders (``name/``) that cannot be entered."""
    return sorted(path for path in _walk(folder) if path.lower().endswith((*SUFFIXES, *FOREIGN_SUFFIXES, "/")))


def _walk(folder: Path) -> Iterable[str]:
    """Yield every visible file below `folder`, relative to it, with ``/``, and folders that cannot be entered."""
    seen = set()
    closed: list[str] = []

    def refused(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        closed.append(Path(error.filename).relative_to(folder).as_posix() + "/")

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refused):
        # A linked folder may lead back to one above it; visiting each folder once ends the loop.
        info = os.stat(parent)
        if (info.st_dev, info.st_ino) in seen or (OVERLAYS_MARK in files and Path(parent) != folder):
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        # Sorted, so that of two links to one folder the same one is followed on every machine.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS)
        relative = Path(parent).relative_to(folder)
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))
    yield from closed


def _no_images(folder: Path) -> str:
    others = Counter(
        "folder that cannot be entered" * path.endswith("/") or Path(path).suffix.lower() for path in _walk(folder)
    )
    found = ", ".join(f"{n} x {suffix or 'no suffix'}" for suffix, n in others.most_common(3))
    text = f"{folder}: no images; looked in all its folders for {' '.join(suffix[1:] for suffix in SUFFIXES)}"
    return f"{text}, found only {found}; convert them, or check the path" if found else f"{text}; check the path"


def _open_list(items: list[Any], reading: Reading) -> ListSource:
    if not items:
        raise ValueError("no images: the list is empty; give at least one image")
    flat: list[Any] = []
    ids: list[str] = []
    stores: dict[str, ObjectStore] = {}  # one of a place, for many objects in it
    for i, item in enumerate(items):
        if is_url(item):
            urls = _named_by(item)
            ids += urls
            flat += [_stored(url, stores) for url in urls]
            continue
        if isinstance(item, str | os.PathLike):
            path = os.fspath(item)
            if os.path.isdir(path):
                inside = FolderSource(Path(path))
                flat += [inside.root / id_ for id_ in inside.ids]
                ids += [(inside.root / id_).as_posix() for id_ in inside.ids]
                continue
            ids.append(path)
        elif _is_tensor(item) or isinstance(item, np.ndarray | Image.Image | bytes | bytearray | memoryview):
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


def _named_by(url: str) -> list[str]:
    """The URLs of what one names that may have a pattern in it."""
    if not any(sign in url.partition("::")[0] for sign in "*?["):
        return [url]
    first, chained, rest = url.partition("::")
    protocol = first.partition("://")[0]
    source = ObjectSource(url)
    return [f"{protocol}://{source.stored(i).path.lstrip('/')}{chained}{rest}" for i in range(len(source))]


def _stored(url: str, stores: dict[str, ObjectStore]) -> StoredObject:
    first, _, rest = url.partition("::")
    protocol, _, path = first.partition("://")
    place = f"{protocol}://{path.partition('/')[0]}::{rest}"
    if place not in stores:
        stores[place] = ObjectStore(url)
        return StoredObject(stores[place], stores[place].path)
    return StoredObject(stores[place], stores[place].path_of(url))


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


def _is_tensor(x: Any) -> bool:
    # Asked by name, so that opening a folder does not import torch.
    return type(x).__module__.partition(".")[0] == "torch" and hasattr(x, "detach")


def _split(images: Any) -> list[Any]:
    """Split an array or tensor into single images."""
    shape = tuple(images.shape)
    channel_axis = -3 if _is_tensor(images) else -1
    has_channels = len(shape) >= 3 and shape[channel_axis] in (1, 3, 4)
    if 0 not in shape:
        if len(shape) == 2 or (len(shape) == 3 and has_channels):
            return [images]
        if len(shape) == 3 and not _is_tensor(images) and shape[0] in (3, 4):
            raise ValueError(
                f"array of shape {shape}: {shape[0]} grey images, or one whose channels come first? "
                "Give array[..., None] for the former, array.transpose(1, 2, 0) for the latter"
            )
        # (N, H, W) is for arrays only: in a tensor, N and channels could not be told apart.
        if (len(shape) == 4 and has_channels) or (len(shape) == 3 and not _is_tensor(images)):
            return list(images)
    expected = (
        "(H, W), (C, H, W) or (N, C, H, W)" if _is_tensor(images) else "(H, W), (H, W, C), (N, H, W) or (N, H, W, C)"
    )
    kind = "tensor" if _is_tensor(images) else "array"
    raise ValueError(f"{kind} of shape {shape} holds no images; give {expected} with C = 1, 3 or 4 and no empty axis")


def _tensor_image(tensor: Any, name: str) -> np.ndarray:
    """Bring one tensor image (H, W) or (C, H, W) to an array with channels last."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise UnreadableImageError(
            f"{name}: tensor of shape {tuple(tensor.shape)} is not an image; "
            "give (H, W) or (C, H, W) with C = 1, 3 or 4"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    array = tensor.numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 else array
