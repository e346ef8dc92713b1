"""Images of a folder, and single ones that were given: files, arrays, tensors, PIL images, encoded bytes.

Two kinds of `ImageSource`. Files are decoded when they are read, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.images.listing import FOREIGN_SUFFIXES, SUFFIXES, list_pictures, no_images
from anomalib_lite.images.objects import StoredObject
from anomalib_lite.images.reading import DEFAULT_READING, Reading, UnreadableImageError, read_reduced, to_rgb


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
                raise FileNotFoundError(no_images(root))
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
        return _tensor_image(self.items[i], self.ids[i]) if is_tensor(self.items[i]) else self.items[i]

    def read(self, i: int) -> np.ndarray:
        """Decode or convert image `i`: uint8 RGB (H, W, 3)."""
        return _read(self, i)[0]

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Decode image `i`, see `ReadsReduced`."""
        return _by_own_read(self, i) if type(self).read is not ListSource.read else _read(self, i, least)

    def __repr__(self) -> str:
        return f"ListSource({len(self)} images)"


def _by_own_read(source: FolderSource | ListSource, i: int) -> tuple[np.ndarray, tuple[int, int]]:
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


def is_tensor(x: Any) -> bool:
    """Whether this is a torch tensor."""
    # Asked by name, so that opening a folder does not import torch.
    return type(x).__module__.partition(".")[0] == "torch" and hasattr(x, "detach")


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
