"""A journal of verdicts: one line of JSON each, on the disk before anybody is told.

Lines are only ever appended, each by one write that is brought to the disk. Of a line that a power cut left half
written nobody was told; it is taken off when the journal is opened again.
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: without locks
    fcntl = None  # type: ignore[assignment]

_CHUNK = 1 << 20


class JournalError(OSError):
    """A journal that cannot be opened: it is another's, or no journal."""


class Journal:
    """An append-only file of JSON lines, one process's at a time.

    Parameters
    ----------
    path : path
        Made if it is not there.

    Attributes
    ----------
    count, last : entries, and the last of them or None
    end : bytes of it that are on the disk

    Raises
    ------
    JournalError
        If another process writes to it, or it holds something else.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.end = self._mended()
            self.count, last = 0, None
            for line in self.lines():
                self.count, last = self.count + 1, line
        except BlockingIOError as error:
            os.close(self._file)
            raise JournalError(errno.EAGAIN, f"{path} is in use by another process; give each its own") from error
        except BaseException:
            os.close(self._file)
            raise
        self.last: dict[str, Any] | None = last

    def append(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Write an entry down, with its number `seq`; when this returns it is on the disk.

        Raises
        ------
        OSError
            If it cannot be, such as for a full disk; nothing of it is left then.
        """
        numbered = {"seq": self.count + 1, **entry}
        line = json.dumps(numbered).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"{self.path}: {os.strerror(errno.ENOSPC)}")
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self.end)
            raise
        self.end += len(line)
        self.count += 1
        self.last = numbered
        return numbered

    def lines(self) -> Iterator[dict[str, Any]]:
        """All entries, in their order."""
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise JournalError(errno.EINVAL, f"{self.path} is no journal of verdicts: {line[:80]!r}") from error
                if not isinstance(entry, dict):
                    raise JournalError(errno.EINVAL, f"{self.path} is no journal of verdicts: {line[:80]!r}")
                yield entry

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mended(self) -> int:
        """Take off a line that was not written to its end; returns how long the journal is."""
        size = os.fstat(self._file).st_size
        end, start = 0, size
        while start > 0 and not end:
            start = max(0, start - _CHUNK)
            with self.path.open("rb") as file:
                file.seek(start)
                found = file.read(min(_CHUNK, size - start)).rfind(b"\n")
            end = start + found + 1 if found >= 0 else 0
        if end < size:
            if end == 0 and size > _CHUNK:
                raise JournalError(errno.EINVAL, f"{self.path} is no journal of verdicts: it has no lines")
            warnings.warn(
                f"{self.path}: the last line was not written to its end, and is taken off; its picture is judged again",
                stacklevel=3,
            )
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        return end
