"""A fitted model as one file: arrays and a JSON manifest in the safetensors format. Never pickle.

Opening such a file reads numbers and text and runs nothing. It is written beside its target and moved into
place, so a full disk or a kill leaves the old model as it was.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.files.atomic import write_atomically

FORMAT = "anomalib_lite"
VERSION = 1  # raised when a file can no longer be read by the code before it
_MANIFEST = "manifest"
DETECTOR = "detector"


class ModelFileError(ValueError):
    """A file that is not a model, is damaged, or was made by a newer version or another backbone."""


def save_file(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], manifest: dict[str, Any], *, kind: str = DETECTOR
) -> Path:
    """Write arrays and manifest to `path`, atomically; `kind` says what they make up.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; the old file, if any, is untouched.
    """
    from safetensors.numpy import save

    header = json.dumps({**manifest, "format": FORMAT, "kind": kind, "version": VERSION})
    content = save({key: np.asarray(value, order="C") for key, value in arrays.items()}, {_MANIFEST: header})
    return write_atomically(Path(path), content)


def load_file(path: str | os.PathLike[str], *, kind: str = DETECTOR) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and manifest of a file written by `save_file`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If it is no model, is damaged, is of a newer version, or of another kind than asked for.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"{path.name} is not a model file or is damaged ({error}); models are .safetensors files written by save()"
        ) from error
    try:
        manifest = json.loads(metadata[_MANIFEST])
        form, version = manifest["format"], manifest["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path.name} is a safetensors file but not a model of {FORMAT}; it has no manifest"
        ) from error
    if form != FORMAT:
        raise ModelFileError(f"{path.name} is of format {form!r}, not {FORMAT!r}")
    if not isinstance(version, int) or version > VERSION:
        raise ModelFileError(
            f"{path.name} has format version {version}, this installation reads up to {VERSION}; "
            "update the package with pip install -U anomalib_lite"
        )
    stored = manifest.get("kind", DETECTOR)
    if stored != kind:
        raise ModelFileError(
            f"{path.name} holds a {stored}, not a {kind}; open it with {str(stored).capitalize()}.load()"
        )
    return arrays, manifest
