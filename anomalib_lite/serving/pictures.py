"""Pictures of judged parts on the disk, and the scores of their patches; the first to go when room gets short.

Those that a version has learnt stay, since they are shown beside what is judged by it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# Folders, in the order in which they are swept.
_KINDS = _PASSES, _ALARMS, _LEARNT = "passes", "alarms", "learnt"
_SWEPT = (_PASSES, _ALARMS)
_PER_FOLDER = 1000
_LEAST_FREE = 500_000_000  # bytes of the disk that pictures leave to verdicts
_SWEEP_EVERY = 60.0  # seconds


@dataclass
class Pictures:
    """A folder of pictures by the id of their verdict.

    Parameters
    ----------
    folder : path
    days : pictures of parts that passed are kept so long
    gigabytes : of all pictures; the oldest passes go first, then the oldest alarms, and what was learnt never
    """

    folder: Path
    days: float = 30.0
    gigabytes: float = 20.0
    full: bool = False  # no room: nothing is kept, and judging goes on
    _swept: float = field(default=-_SWEEP_EVERY, repr=False)

    def keep(self, identity: int, content: bytes, grid: np.ndarray | None, *, alarm: bool) -> bool:
        """Keep a picture as it came, with its patch scores; False where there is no room."""
        try:
            if shutil.disk_usage(self.folder.parent).free < _LEAST_FREE + len(content):
                self.full = True
                return False
            path = self._path(identity, _ALARMS if alarm else _PASSES)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if grid is not None:
                np.save(path.with_suffix(".npy"), grid.astype(np.float16))
        except OSError:
            self.full = True
            return False
        self.full = False
        return True

    def read(self, identity: int) -> bytes | None:
        """A picture as it came, None if it is not kept."""
        for kind in _KINDS:
            with suppress(FileNotFoundError):
                return self._path(identity, kind).read_bytes()
        return None

    def keep_as_learnt(self, identity: int) -> bool:
        """A version has learnt this picture, so it stays; False where it is not kept any more.

        Raises
        ------
        OSError
            If it cannot be moved to those that stay.
        """
        target = self._path(identity, _LEARNT)
        for kind in _SWEPT:
            source = self._path(identity, kind)
            if not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the scores of its patches; there are none at the global level
                source.with_suffix(".npy").replace(target.with_suffix(".npy"))
            with suppress(FileNotFoundError):  # swept away this moment
                source.replace(target)
        return target.exists()

    def forget(self, identities: Iterable[int]) -> None:
        """Remove the pictures of verdicts that are forgotten; what was learnt stays."""
        for identity in identities:
            for kind in _SWEPT:
                for path in (self._path(identity, kind), self._path(identity, kind).with_suffix(".npy")):
                    with suppress(OSError):
                        path.unlink()

    def grid(self, identity: int) -> np.ndarray | None:
        """Its patch scores, None if they are not kept."""
        for kind in _KINDS:
            with suppress(FileNotFoundError):
                return np.load(self._path(identity, kind).with_suffix(".npy"), allow_pickle=False).astype(np.float32)
        return None

    def sweep(self, *, now: bool = False) -> int:
        """Remove what is too old or too much, from time to time; how many files that were."""
        if not now and time.monotonic() - self._swept < _SWEEP_EVERY:
            return 0
        self._swept = time.monotonic()
        oldest, removed = time.time() - 86400 * self.days, 0
        files: list[tuple[int, float, int, Path]] = []
        for place, kind in enumerate(_KINDS):
            for path in (self.folder / kind).rglob("*.*"):
                with suppress(OSError):
                    found = path.stat()
                    files.append((place, found.st_mtime, found.st_size, path))
        left = sum(size for _, _, size, _ in files)
        for place, changed, size, path in sorted(files):
            if _KINDS[place] == _LEARNT:
                break
            too_old = _KINDS[place] == _PASSES and changed < oldest
            if too_old or left > 1e9 * self.gigabytes:
                with suppress(OSError):
                    path.unlink()
                    removed, left = removed + 1, left - size
        return removed

    def _path(self, identity: int, kind: str) -> Path:
        return self.folder / kind / f"{identity // _PER_FOLDER:06d}" / f"{identity}.picture"


def private_folder(folder: Path) -> Path:
    """A folder that only its owner enters, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.chmod(folder, 0o700)
    return folder
