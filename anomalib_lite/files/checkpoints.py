"""The state of a training as a file: tensors and plain values, written atomically, opened without running code."""

from __future__ import annotations

import io
import reprlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.files.model_file import LARGEST_FILE

Restored = TypeVar("Restored")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another training."""


def save_checkpoint(path: Path, state: dict[str, Any], run: dict[str, Any]) -> None:
    """Write `state` and what identifies the `run` (plain values); the old file or the new one, never half of one.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; the old checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"run": run, "state": state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(
    path: Path | None, run: dict[str, Any], restore: Callable[[dict[str, Any]], Restored]
) -> Restored | None:
    """`restore(state)` of what `save_checkpoint` wrote; None without a path or before there is a file.

    Raises
    ------
    CheckpointError
        If the file is damaged, does not fit or holds another run's state; the text names the first difference.
    """
    if path is None or not path.is_file():
        return None
    try:
        content = read_tensors(path)
        written = dict(content["run"])
        differing = [key for key in run if written.get(key) != run[key]]
        if not differing:
            return restore(content["state"])
    except Exception as error:  # a damaged file can raise anything, and torch recommends to unpickle whatever it is
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values "
            f"({type(error).__name__}); delete it to begin anew"
        ) from error
    was, now = reprlib.repr(written.get(differing[0])), reprlib.repr(run[differing[0]])
    raise CheckpointError(
        f"{path} belongs to another training: {differing[0]} was {was}, is {now}; delete it or name another file"
    )


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote, without running code in it or taking more memory than it has bytes.

    Raises
    ------
    ValueError
        If it claims to be more than it is; and any other exception if it is damaged.
    """
    size = path.stat().st_size
    unpacked = sum(entry.file_size for entry in zipfile.ZipFile(path).infolist()) if zipfile.is_zipfile(path) else size
    if unpacked > size or size > LARGEST_FILE:
        raise ValueError(f"it holds {unpacked} bytes in {size}; weights have at most {LARGEST_FILE}, as they are")
    content = torch.load(path, map_location="cpu", weights_only=True)
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
            if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("it holds a tensor of more numbers than the file")
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:  # a list may hold itself
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value
    return content
