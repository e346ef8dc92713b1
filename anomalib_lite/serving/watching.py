"""Pictures that arrive in a folder, judged as they come: each once, written down before it is moved or told of.

A picture is known by its name, size and time of change. It is judged when it has not changed for a moment and can be
read to its end; one that cannot, for seconds, is unreadable and gets "no verdict". What is in the journal is not judged
again, whatever happens to the process; what was judged but not moved yet is moved after a restart.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomalib_lite.fitted.calibration import NO_VERDICT
from anomalib_lite.images.listing import SUFFIXES
from anomalib_lite.judging import Judge, Verdict
from anomalib_lite.serving.journal import Journal

# Seconds, where the system does not tell of changes, as on network shares; and as a multiple of what looking takes.
_LOOK_EVERY, _AT_REST = 0.2, 20
_TRY_AGAIN = 1.0  # seconds, after a verdict could not be written down
_MOST_COMPLAINTS = 1000  # remembered, so that none is made twice
_OLD = 2.0  # seconds since the last change, after which a picture met for the first time needs no waiting

Key = tuple[str, int, int]  # path relative to the folder, bytes, nanoseconds of the last change


@dataclass
class Watch:
    """A folder that is watched.

    Parameters
    ----------
    folder : path
        Looked through with all its folders, but for hidden ones.
    judge : Judge
    journal : Journal
    settle : seconds for which a picture must not have changed
    patience : seconds, after which one that cannot be read to its end is unreadable
    move_to : folder, optional
        Pictures are moved to a folder in it that is called like the verdict: good, look-again, alarm, no-verdict.
    silence : seconds without a picture, after which that is written down as "no verdict"; None: never
    tell : called with every entry of the journal
    complain : called with a text where something is in the way

    Raises
    ------
    ValueError
        If the folder is none, or pictures would be moved within it.
    """

    folder: Path
    judge: Judge
    journal: Journal
    settle: float = 0.1
    patience: float = 5.0
    move_to: Path | None = None
    silence: float | None = None
    tell: Callable[[dict[str, Any]], None] = lambda entry: None
    complain: Callable[[str], None] = lambda text: None
    counts: Counter[str] = field(default_factory=Counter)
    _done: dict[Key, str] = field(default_factory=dict, repr=False)
    _changed: dict[Key, float] = field(default_factory=dict, repr=False)
    _complaints: set[str] = field(default_factory=set, repr=False)
    _blocked_until: float = 0.0  # the journal could not be written to

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder that could be watched")
        if self.move_to is not None:
            target = self.move_to.resolve()
            if target == self.folder.resolve() or self.folder.resolve() in target.parents:
                raise ValueError(f"{self.move_to} lies in {self.folder}: what is moved there would be judged again")
        if self.settle < 0 or self.patience < 0 or (self.silence is not None and self.silence <= 0):
            raise ValueError(f"settle={self.settle}, patience={self.patience}, silence={self.silence}: seconds")
        there = set(self._found())
        for entry in self.journal.lines():
            if (key := _key_of(entry)) in there:
                self._done[key] = str(entry.get("verdict"))
        if self.journal.last is not None:
            self.judge.last = str(self.journal.last.get("picture", ""))
        self._heard = time.monotonic()

    def run(self, stop: threading.Event, *, once: bool = False) -> Counter[str]:
        """Judge what is there and what arrives, until `stop`; with `once` until all that is there has been judged."""
        waiting, looked, took = 0, 0.0, 0.0
        for changed in self._wakes(stop):
            if not changed and not waiting and time.monotonic() - looked < _AT_REST * took:
                continue
            looked = time.monotonic()
            waiting = self.look(stop)
            took = time.monotonic() - looked
            if stop.is_set() or (once and not waiting):
                break
        return self.counts

    def look(self, stop: threading.Event | None = None) -> int:
        """Judge all that can be by now; returns how many pictures are waited for."""
        now, waiting = time.monotonic(), 0
        there = list(self._found())
        for known in (self._done, self._changed):  # of what is gone nothing is kept
            for key in known.keys() - set(there):
                del known[key]
        for key in sorted(there, key=lambda key: (key[2], key[0])):
            if stop is not None and stop.is_set():
                return waiting
            if key in self._done:
                self._move(key)
                continue
            if time.monotonic() < self._blocked_until:
                waiting += 1
                continue
            since = self._changed.setdefault(key, now - (_OLD if time.time() - key[2] / 1e9 > _OLD else 0.0))
            if now - since < self.settle or not self._judged(key, patient=now - since < self.patience):
                waiting += 1
        if self.silence is not None and time.monotonic() - self._heard > self.silence:
            self._heard = time.monotonic()
            self._write(self.judge.nothing("", f"no picture came for {self.silence:g} seconds"), {})
        return waiting

    def _judged(self, key: Key, patient: bool) -> bool:
        """Whether it could be judged, or at least could be said to be unreadable."""
        path = self.folder / key[0]
        before = self.judge.last
        verdict = self.judge.judge(path, key[0])
        if verdict.verdict == NO_VERDICT and not verdict.picture and (patient or not path.exists()):
            return False  # it is still being written, or gone
        self._heard = time.monotonic()
        _, size, changed = key
        if not self._write(verdict, {"bytes": size, "changed": changed}):
            self.judge.last = before  # it will be judged again
            return False
        self._done[key] = verdict.verdict
        self._changed.pop(key, None)
        self._move(key)
        return True

    def _write(self, verdict: Verdict, about: dict[str, Any]) -> bool:
        try:
            entry = self.journal.append({**about, **verdict.to_dict()})
        except OSError as error:
            self._complain_once(f"{verdict.id}: its verdict, {verdict.verdict}, cannot be written down: {error}")
            self._blocked_until = time.monotonic() + _TRY_AGAIN
            return False
        self.counts[verdict.verdict] += 1
        self.tell(entry)
        return True

    def _move(self, key: Key) -> None:
        if self.move_to is None:
            return
        source = self.folder / key[0]
        target = self.move_to / self._done[key].replace(" ", "-") / key[0]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while target.exists():  # nothing is overwritten
                number += 1
                target = target.with_name(f"{source.stem} ({number}){source.suffix}")
            if _key(self.folder, source) == key:  # and not another picture by now
                shutil.move(source, target)
        except OSError as error:
            self._complain_once(f"{key[0]}: cannot be moved to {target}: {error}")

    def _complain_once(self, text: str) -> None:
        if text not in self._complaints:
            if len(self._complaints) >= _MOST_COMPLAINTS:
                self._complaints.clear()
            self._complaints.add(text)
            self.complain(text)

    def _found(self) -> Iterator[Key]:
        """Every picture in the folder."""
        for path, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    key = _key(self.folder, Path(path, name))
                    if key is not None:
                        yield key
                    elif os.path.lexists(os.path.join(path, name)):
                        self._complain_once(f"{Path(path, name)} is no file, and is not judged")

    def _wakes(self, stop: threading.Event) -> Iterator[bool]:
        """Now, whenever something has changed (True), and from time to time (False)."""
        yield True
        try:
            import watchfiles
        except ImportError:
            while not stop.wait(_LOOK_EVERY):
                yield False
            return
        milliseconds = round(1000 * _LOOK_EVERY)
        for changes in watchfiles.watch(
            self.folder,
            stop_event=stop,
            debounce=50,
            step=10,
            rust_timeout=milliseconds,
            yield_on_timeout=True,
            watch_filter=None,
            raise_interrupt=False,
        ):
            yield bool(changes)


def _key(folder: Path, path: Path) -> Key | None:
    """What a picture is known by; None of what is gone, or no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns) if path.is_file() else None


def _key_of(entry: dict[str, Any]) -> Key | None:
    name, size, changed = (entry.get(part) for part in ("id", "bytes", "changed"))
    if isinstance(name, str) and isinstance(size, int) and isinstance(changed, int):
        return name, size, changed
    return None
