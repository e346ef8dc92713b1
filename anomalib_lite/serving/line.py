"""A part type on a server: its versions, the one that judges, and the queue of pictures before it.

Pictures that wait are scored together (micro-batching), their verdicts are written down, and only then is anybody told.
While one batch is written down the next is scored. Whatever changes the version that judges does so between two
batches.
"""

from __future__ import annotations

import queue
import random
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalib_lite.detector import Detector
from anomalib_lite.fitted.calibration import ALARM, GOOD
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.judging import Judge, Seen, Verdict
from anomalib_lite.machine.threads import computing
from anomalib_lite.serving.history import RELEASED, History, Version
from anomalib_lite.serving.pictures import Pictures

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_CORES = 4  # of earlier versions, in memory
_SAMPLED = 0.02  # share of the passes that people are asked to look at, so that misses become visible


class BusyError(Exception):
    """So many pictures wait already that another would wait too long."""


@dataclass
class _Waiting:
    seen: Seen
    name: str
    content: bytes
    about: dict[str, Any]
    told: Future[tuple[int, Verdict]]


@dataclass(frozen=True)
class _Judged:
    batch: list[_Waiting]
    verdicts: list[Verdict]
    version: int


class Line:
    """One part type.

    Parameters
    ----------
    part : its name
    folder : where its versions are, ``1.safetensors`` and so on
    history, pictures : shared by all part types
    queue_size : pictures that may wait
    load : options of `Detector.load`

    Raises
    ------
    ValueError
        If the name is none that can stand in a URL.
    """

    def __init__(
        self,
        part: str,
        folder: Path,
        history: History,
        pictures: Pictures,
        *,
        queue_size: int = 64,
        load: Mapping[str, Any] | None = None,
    ):
        if not NAME.fullmatch(part):
            raise ValueError(f"part type {part!r}: letters, digits, _, - and . are allowed, 64 at most")
        self.part, self.folder, self.history, self.pictures = part, folder, history, pictures
        self._load = dict(load or {})
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(queue_size)
        self._judged: queue.Queue[_Judged | None] = queue.Queue(1)
        self._changing = threading.Lock()
        self._random = random.Random()
        self._last: dict[str, str] = {}  # of each camera the last picture
        self._cores: dict[int, Fitted] = {}
        self.judge: Judge
        self.version: Version
        self._threads: list[threading.Thread] = []
        self.good: ImageSource | None = None  # what the model was fitted on, where the server was given it

    def add_model(self, model: Path | Detector, note: str, *, state: str = RELEASED) -> Version:
        """Take a model in as a new version; the first one judges."""
        detector = model if isinstance(model, Detector) else Detector.load(model, **self._load)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._changing:
            # First the file, then the history that names it: nobody reads one that the history does not know.
            number = len(self.history.versions(self.part)) + 1
            detector.save(self._file(number))
            return self.history.add_version(self.part, detector.digest, note, state=state)

    def start(self) -> None:
        """Load the version that judges, and begin.

        Raises
        ------
        ValueError
            If there is none.
        """
        version = self.history.current(self.part)
        if version is None:
            raise ValueError(f"{self.part} has no model yet; give one")
        self._take(version)
        for work in (self._judge, self._write):
            name = f"anomalib_lite-{self.part}-{work.__name__}"
            self._threads.append(threading.Thread(target=work, name=name, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """Judge what waits, and end."""
        if self._threads:
            self._queue.put(None)
        while self._threads:
            self._threads.pop().join()

    @property
    def waiting(self) -> int:
        """Pictures that wait."""
        return self._queue.qsize()

    def submit(self, content: bytes, *, name: str = "", lot: str = "", camera: str = "") -> Future[tuple[int, Verdict]]:
        """Have a picture judged: its id and verdict, once both are on the disk.

        With `camera` a picture that is the same as that camera's last has no verdict.

        Raises
        ------
        BusyError
            If too many wait.
        """
        if self._queue.full():  # before a picture is decoded for nothing
            raise BusyError
        seen = self.judge.look(content)
        told: Future[tuple[int, Verdict]] = Future()
        about = {"part": self.part, "lot": lot, "camera": camera}
        try:
            self._queue.put_nowait(_Waiting(seen, name, content, about, told))
        except queue.Full:
            raise BusyError from None
        return told

    def detector(self, number: int) -> Detector:
        """A version's detector, loaded if it is not the one that judges.

        Raises
        ------
        KeyError
            If there is no such version.
        """
        if number == self.version.number:
            detector = self.judge.detector
            assert isinstance(detector, Detector)
            return detector
        if number not in {version.number for version in self.history.versions(self.part)}:
            raise KeyError(number)
        return self._loaded(number)

    def fitted(self, number: int) -> Fitted:
        """A version's core, for those who draw what it said; the last few are kept.

        Raises
        ------
        KeyError
            If there is no such version.
        """
        if number == self.version.number:
            return self.judge.detector.fitted_
        if number not in self._cores:
            if len(self._cores) >= _MOST_CORES:
                self._cores.clear()
            self._cores[number] = self.detector(number).fitted_
        return self._cores[number]

    def release(self, number: int) -> Version:
        """Let another version judge from now on, such as an earlier one.

        Raises
        ------
        KeyError
            If there is no such version.
        """
        detector = self.detector(number)  # before anything changes
        with self._changing:
            self.history.release(self.part, number)
            version = self.history.current(self.part)
            assert version is not None
            self._take(version, detector)
        return version

    def _take(self, version: Version, detector: Detector | None = None) -> None:
        detector = detector or self._loaded(version.number)
        judge = Judge(computing().submit(detector.warm_up).result())
        self.judge, self.version = judge, version

    def _loaded(self, number: int) -> Detector:
        return computing().submit(Detector.load, self._file(number), **self._load).result()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def _judge(self) -> None:
        ended = False
        while not ended:
            some = [self._queue.get()]
            with self._changing:
                judge, version = self.judge, self.version
                size = judge.detector.embedder.batch_size if isinstance(judge.detector, Detector) else 1
                while len(some) < size and some[-1] is not None:
                    try:
                        some.append(self._queue.get_nowait())
                    except queue.Empty:
                        break
                ended = some[-1] is None
                # Of those who have given up waiting nobody is to be told; from here on they cannot.
                batch = [one for one in some if one is not None and one.told.set_running_or_notify_cancel()]
                if not batch:
                    continue
                try:
                    seen = [self._not_frozen(one) for one in batch]
                    names = [one.name for one in batch]
                    verdicts = computing().submit(judge.judge_all, seen, names).result()
                except Exception as error:  # whatever it is, those who wait are told, and the next ones are judged
                    for one in batch:
                        one.told.set_exception(error)
                    continue
            self._judged.put(_Judged(batch, verdicts, version.number))
        self._judged.put(None)

    def _write(self) -> None:
        while (judged := self._judged.get()) is not None:
            batch, verdicts = judged.batch, judged.verdicts
            try:
                entries = []
                for one, verdict in zip(batch, verdicts, strict=True):
                    sampled = verdict.verdict == GOOD and self._random.random() < _SAMPLED
                    entries.append((verdict, {**one.about, "version": judged.version, "sampled": sampled}))
                identities = self.history.write(entries)
            except Exception as error:  # as above
                for one in batch:
                    one.told.set_exception(error)
                continue
            for one, verdict, identity in zip(batch, verdicts, identities, strict=True):
                self.pictures.keep(identity, one.content, verdict.grid, alarm=verdict.verdict == ALARM)
                one.told.set_result((identity, verdict))
            with suppress(OSError):  # a folder that somebody else tidies: the next ones are judged
                self.pictures.sweep()

    def _not_frozen(self, one: _Waiting) -> Seen:
        camera, seen = one.about["camera"], one.seen
        if not camera or not seen.digest or seen.fault is not None:
            return seen
        last, self._last[camera] = self._last.get(camera), seen.digest
        if last != seen.digest:
            if len(self._last) > 1000:  # names of cameras that a stranger makes up
                self._last = {camera: seen.digest}
            return seen
        return Seen(seen.pixels, seen.digest, "it is the same as the camera's last one: is it frozen?", seen.started)
