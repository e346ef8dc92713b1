"""The state of a training as a file: tensors and plain values, written atomically, opened without running code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from anomalib_lite.files.atomic import write_atomically


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


def load_checkpoint(path: Path | None, run: dict[str, Any]) -> dict[str, Any] | None:
    """Read the state written by `save_checkpoint`; None without a path or before there is a file.

    Raises
    ------
    CheckpointError
        If the file is damaged or holds another run's state; the text names the first difference.
    """
    if path is None or not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        written, state = content["run"], content["state"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        # torch's own text recommends to unpickle whatever it is.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values "
            f"({type(error).__name__}); delete it to begin anew"
        ) from error
    for key in run:
        if written.get(key) != run[key]:
            raise CheckpointError(
                f"{path} belongs to another training: {key} was {_short(written.get(key))}, is {_short(run[key])}; "
                "delete it or name another file"
            )
    return state


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
