"""Files that are either the old one or the new one, never half of one.

What is saved lies beside its target as `.NAME.RANDOM.part`, locked by its writer, until it is whole and on the disk;
then it takes the target's name. What a killed writer left is unlocked, and goes with the next save to the same target.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: without locks, nothing is swept
    fcntl = None  # type: ignore[assignment]


def write_atomically(path: Path, content: bytes) -> Path:
    """Put `content` in place of `path`, or of the file it links to: the old file or the new one, never half of one.

    A file that was there hands on its owner and permissions; a new one gets what the umask allows.

    Raises
    ------
    OSError
        If something other than a file is there, the folder cannot be written or the disk is full; the old file, if
        any, is untouched.
    """
    target = saved_to(path)
    with _named(path):
        _sweep(target)
        old = target.stat() if target.exists() else None
        with _part_of(target, 0o666 if old is None else stat.S_IMODE(old.st_mode)) as file:
            file.write(content)
            file.flush()
            if old is not None:
                with suppress(OSError, AttributeError):  # only root may give files away; Windows has no owners
                    os.chown(file.name, old.st_uid, old.st_gid)
                os.chmod(file.name, stat.S_IMODE(old.st_mode))  # whatever the umask
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # what is open cannot be moved there either
            os.replace(file.name, target)
    with suppress(OSError):  # a name is on the disk only with its folder, which not every system can write out
        folder = os.open(target.parent, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(folder)
        os.close(folder)
    return path


def saved_to(path: Path) -> Path:
    """The file that a save to `path` writes: where it links to, if it is a link. Asked before hours of work.

    Raises
    ------
    OSError
        If a folder, device or pipe is there, or the folder is missing or cannot be written.
    """
    with _named(path):
        target = Path(os.path.realpath(path))
        with suppress(FileNotFoundError):
            mode = os.stat(path).st_mode  # not of `target`: /dev/stdout leads to a name that is no path
            if not stat.S_ISREG(mode):
                folder = stat.S_ISDIR(mode)
                what = "folder" if folder else "device, pipe or socket"
                raise OSError(errno.EISDIR if folder else errno.EINVAL, f"a {what} is there")
        os.stat(target.parent)
        if not os.access(target.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return target


def saved_in(folder: Path) -> Path:
    """A folder, there or still to be made, in which something will be saved. Asked before hours of work.

    Raises
    ------
    OSError
        If something else is there, or it can neither be written nor made.
    """
    with _named(folder):
        there = Path(os.path.realpath(folder))
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return folder


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            error.errno, f"cannot save {path}: {reason}; nothing was changed, choose another place"
        ) from error


@contextmanager
def _part_of(target: Path, mode: int) -> Iterator[BinaryIO]:
    """A new locked file beside `target`, which is gone afterwards; the system applies the umask to `mode`."""
    name = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with open(name, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            with suppress(OSError, AttributeError):  # a system or file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    finally:
        name.unlink(missing_ok=True)  # also a keyboard interrupt leaves no litter


def _sweep(target: Path) -> None:
    """Remove what killed saves to `target` left; not what another process is writing, which holds a lock on it."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 16}.part") if fcntl else ():
        if not part.is_file():
            continue
        with suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = part.stat()
            if found.st_size or found.st_mtime < time.time() - 60:  # empty: created this instant, and locked the next
                part.unlink()
