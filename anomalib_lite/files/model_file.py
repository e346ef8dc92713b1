"""A fitted model as one file: arrays and a JSON manifest in the safetensors format. Never pickle.

Opening such a file reads numbers and text and runs nothing. It is written beside its target and moved into
place, so a full disk or a kill leaves the old model as it was. A checksum tells a file that rotted or was edited.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.files.atomic import saved_to, write_atomically

FORMAT = "anomalib_lite"
# Raised when a file of before can no longer be read; 1 had no checksum, 2 no groups, 3 no proportions, 4 no peaks.
VERSION = 6
LARGEST_FILE = 4_000_000_000  # bytes; twice a bank of 100 000 × 2048 beside VGG16, torchvision's largest network: 2.6e9
_LARGEST_HEADER = 32_000_000  # bytes; half a million names of training images, which parsed take 1 GB at the very worst
_MANIFEST, _CHECKSUM = "manifest", "sha256"
DETECTOR = "detector"


class ModelFileError(ValueError):
    """A file that is not a model, is damaged, or was made by another version or another backbone.

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import Detector
    >>> path = Path(tempfile.mkdtemp(), "part.safetensors")
    >>> _ = path.write_bytes(b"something else")
    >>> Detector.load(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    anomalib_lite.files.model_file.ModelFileError: ...
    """


def save_file(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], manifest: dict[str, Any], *, kind: str = DETECTOR
) -> Path:
    """Write arrays and manifest to `path`, atomically; `kind` says what they make up.

    Raises
    ------
    OSError
        If no file can be written there or the disk is full; the old file, if any, is untouched.
    ValueError
        If it would be larger than files that are opened again.
    """
    from safetensors.numpy import save

    saved_to(Path(path))
    header = json.dumps({**manifest, "format": FORMAT, "kind": kind, "version": VERSION})
    arrays = {key: np.asarray(value, order="C") for key, value in arrays.items()}
    content = save(arrays, {_MANIFEST: header, _CHECKSUM: _checksum(header, arrays)})
    if excess := _excess(content[:8], len(content)):
        raise ValueError(f"cannot save {path}: {excess}")
    return write_atomically(Path(path), content)


def digest(arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> str:
    """SHA-256 of what a file of these would hold."""
    return _checksum(json.dumps(manifest), {key: np.asarray(value, order="C") for key, value in arrays.items()})


def load_file(path: str | os.PathLike[str], *, kind: str = DETECTOR) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and manifest of a file written by `save_file`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If it is no model, is damaged, is of another version, or of another kind than asked for.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}")
    try:
        size = path.stat().st_size
        with path.open("rb") as start:
            if excess := _excess(start.read(8), size):
                raise ValueError(excess)
        with safe_open(path, framework="numpy") as file:  # which sees to it that the arrays fill the file, once
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        for key, value in arrays.items():  # of no elements, an array may claim any number of rows
            if value.dtype.kind not in "biuf" or max(value.shape, default=0) > size:
                raise ValueError(f"{key} is {value.dtype}, of shape {value.shape}")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"{path.name} is not a model file or is damaged ({error}); models are .safetensors files written by save()"
        ) from error
    try:
        manifest = json.loads(metadata[_MANIFEST])
        form, version, stored = manifest["format"], manifest["version"], str(manifest.get("kind", DETECTOR))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"{path.name} is a safetensors file but not a model of {FORMAT}; it has no manifest"
        ) from error
    if form != FORMAT:
        raise ModelFileError(f"{path.name} is of format {reprlib.repr(form)}, not {FORMAT!r}")
    if type(version) is not int or not 0 < version < 1000:
        raise ModelFileError(f"{path.name} is damaged: {reprlib.repr(version)} is no format version")
    if version != VERSION:
        remedy = "update the package with pip install -U anomalib_lite" if version > VERSION else "fit again"
        raise ModelFileError(f"{path.name} has format version {version}, and {VERSION} is read here; {remedy}")
    if metadata.get(_CHECKSUM) != _checksum(metadata[_MANIFEST], arrays):
        raise ModelFileError(f"{path.name} is damaged: it is not what was saved (its SHA-256 differs); fit again")
    if stored != kind:
        raise ModelFileError(f"{path.name} holds a {stored}, not a {kind}; open it with {stored.capitalize()}.load()")
    return arrays, manifest


def _excess(start: bytes, size: int) -> str | None:
    """What is too large in a file of that size with these first 8 bytes, which hold the length of its header."""
    header = int.from_bytes(start, "little")
    if size > LARGEST_FILE:
        return f"{size / 1e9:.1f} GB; models have at most {LARGEST_FILE / 1e9:.0f}"
    return f"{header} bytes of names; models have at most {_LARGEST_HEADER}" if header > _LARGEST_HEADER else None


def _checksum(header: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(header.encode())
    for key, value in sorted(arrays.items()):
        digest.update(repr((key, value.dtype.str, value.shape)).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
