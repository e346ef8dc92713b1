"""What a server is made of: its folder, its part types, its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib_lite.detector import Detector
from anomalib_lite.machine.threads import computing
from anomalib_lite.serving.history import History
from anomalib_lite.serving.line import Line
from anomalib_lite.serving.pictures import Pictures, private_folder

_LEAST_TOKEN = 16  # characters
_MOST_CONNECTIONS = 500  # more are told 503; a process may have a thousand files open, and pictures are files


def open_lines(
    folder: Path,
    models: Mapping[str, Path],
    *,
    days: float = 30.0,
    gigabytes: float = 20.0,
    queue_size: int = 64,
    load: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Line], History]:
    """The part types of a server's folder, started, and its history.

    Parameters
    ----------
    folder : made if it is not there, entered by its owner alone
    models : by part type, files that are taken in as a new version if no version is the same; it judges then
    days, gigabytes : see `Pictures`
    queue_size, load : see `Line`

    Raises
    ------
    ValueError
        If there is no part type, or a name is none.
    FileNotFoundError, ModelFileError
        See `Detector.load`.
    """
    detectors = {
        part: computing().submit(Detector.load, path, **(load or {})).result() for part, path in models.items()
    }
    private_folder(folder)
    history = History(folder / "history.sqlite")
    pictures = Pictures(private_folder(folder / "pictures"), days, gigabytes)
    there = {path.name for path in (folder / "models").iterdir()} if (folder / "models").is_dir() else set()
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
    return lines, history


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


def run(lines: Mapping[str, Line], history: History, settings: Any, *, host: str, port: int) -> None:
    """Serve until the process is told to end; what waits is judged then."""
    import uvicorn

    from anomalib_lite.serving.app import make_app
    from anomalib_lite.serving.patience import patient_protocol

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
        history.close()
