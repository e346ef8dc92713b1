"""What a server is made of: its folder, its part types, its tokens."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalib_lite.detector import Detector
from anomalib_lite.images.sources import open_source
from anomalib_lite.machine.threads import computing
from anomalib_lite.serving.history import History
from anomalib_lite.serving.line import Line
from anomalib_lite.serving.pictures import Pictures, private_folder

_LEAST_TOKEN = 16  # characters
_MOST_CONNECTIONS = 500  # more are told 503; a process may have a thousand files open, and pictures are files
_LOOK_EVERY = 3600.0  # seconds, for verdicts that are too old
_LONGEST = 365_000.0  # days: a date of before year 1 is none


def open_lines(
    folder: Path,
    models: Mapping[str, Path],
    *,
    days: float = 30.0,
    gigabytes: float = 20.0,
    queue_size: int = 64,
    load: Mapping[str, Any] | None = None,
    good: Mapping[str, Path] | None = None,
) -> tuple[dict[str, Line], History]:
    """The part types of a server's folder, started, and its history.

    Parameters
    ----------
    folder : made if it is not there, entered by its owner alone
    models : by part type, files that are taken in as a new version if no version is the same; it judges then
    days, gigabytes : see `Pictures`
    queue_size, load : see `Line`
    good : by part type, the folder of pictures that its model was fitted on, to be shown beside what is judged

    Raises
    ------
    ValueError
        If there is no part type, a name is none, or `good` names a part type that is not there.
    FileNotFoundError, ModelFileError
        See `Detector.load`.
    """
    load = {"progress": False, **(load or {})}  # bars of many part types would run through each other
    detectors = {part: computing().submit(Detector.load, path, **load).result() for part, path in models.items()}
    there = {path.name for path in (folder / "models").iterdir()} if (folder / "models").is_dir() else set()
    for part in sorted(set(good or {}) - there - set(models)):
        raise ValueError(f"--good {part}=...: there is no part type {part!r}; give it a model, too")
    for path in (good or {}).values():
        open_source(path)  # what is no folder of pictures is said before anything is begun
    private_folder(folder)
    history = History(folder / "history.sqlite")
    pictures = Pictures(private_folder(folder / "pictures"), days, gigabytes)
    lines = {}
    for part in sorted(there | set(models)):
        line = Line(part, folder / "models" / part, history, pictures, queue_size=queue_size, load=load)
        if part in detectors:
            digest = detectors[part].digest
            known = [version for version in history.versions(part) if version.digest == digest]
            version = known[-1] if known else line.add_model(detectors[part], f"from {models[part].name}")
            if not known:
                history.release(part, version.number)
        if history.current(part) is not None:
            line.start()
            lines[part] = line
    if not lines:
        raise ValueError(f"{folder} has no models yet; give one, such as --model nut=nut.safetensors")
    for part, path in (good or {}).items():
        if part in lines:
            lines[part].good = lines[part].judge.detector.open(path)
    return lines, history


@dataclass(frozen=True)
class Retention:
    """How long verdicts are kept that nobody has ever said anything of; the others are kept for good.

    Attributes
    ----------
    days : of verdicts that were no alarm
    alarm_days : of alarms, at least as long
    """

    days: float = 400.0
    alarm_days: float = 1200.0

    def __post_init__(self) -> None:
        if not 0 < self.days <= self.alarm_days:
            raise ValueError(
                f"verdicts are kept for {self.days:g} days and alarms for {self.alarm_days:g}: give days above 0, and "
                "alarms at least as many (--keep-history-days, --keep-alarm-days)"
            )

    def apply(self, history: History, pictures: Pictures, stop: threading.Event | None = None) -> int:
        """Remove what is too old, with its pictures, a few at a time; how many verdicts that were."""
        now, removed = datetime.datetime.now(datetime.timezone.utc), 0
        before, alarms_before = (
            (now - datetime.timedelta(days=days)).isoformat(timespec="milliseconds")
            for days in (min(days, _LONGEST) for days in (self.days, self.alarm_days))
        )
        while not (stop is not None and stop.is_set()) and (gone := history.forget(before, alarms_before)):
            pictures.forget(gone)
            removed += len(gone)
        return removed


def read_tokens(path: Path | None) -> dict[str, str]:
    """Names by token, from a file of lines "NAME TOKEN"; # begins a comment.

    Raises
    ------
    ValueError
        If a line is none, or a token is short.
    OSError
        If the file cannot be read.
    """
    if path is None:
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, token = line.strip().partition(" ")
        if len(token.strip()) < _LEAST_TOKEN:
            raise ValueError(f"{path}, line {number}: give NAME TOKEN, a token of {_LEAST_TOKEN} characters at least")
        found[token.strip()] = name
    if not found:
        raise ValueError(f"{path} has no tokens")
    return found


def run(
    lines: Mapping[str, Line],
    history: History,
    settings: Any,
    *,
    host: str,
    port: int,
    retention: Retention | None = None,
) -> None:
    """Serve until the process is told to end; what waits is judged then."""
    import uvicorn

    from anomalib_lite.serving.app import make_app
    from anomalib_lite.serving.patience import patient_protocol

    retention, stop = retention or Retention(), threading.Event()
    pictures = next(iter(lines.values())).pictures

    def keep_house() -> None:
        while not stop.is_set():
            with suppress(OSError):  # a full or busy disk: next time
                retention.apply(history, pictures, stop)
            stop.wait(_LOOK_EVERY)

    keeper = threading.Thread(target=keep_house, name="anomalib_lite-retention", daemon=True)
    keeper.start()
    try:
        uvicorn.run(
            make_app(lines, history, settings),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            http=patient_protocol(settings.patience),
            limit_concurrency=_MOST_CONNECTIONS,
        )
    finally:
        stop.set()
        keeper.join()
        history.close()
