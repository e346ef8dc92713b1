"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> Path:
    """Write `content` beside `path` and move it into place: the old file or the new one, never half of one.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; the old file, if any, is untouched.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for the owner only
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    except BaseException:  # also a keyboard interrupt leaves no litter
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _unwritable(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"cannot save {path}: {error.strerror or error}; nothing was changed, choose another place",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
