"""The server: pictures come in over HTTP, verdicts go out, and a page shows what happens.

Whoever may reach it from another machine needs a token. No path of the server can be asked for: pictures are known by
the number of their verdict. What a request may be is limited before it is read.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import ipaddress
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Annotated, Any

import numpy as np

from anomalib_lite.fitted.drift import DriftMonitor, tied_share
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.judging import Verdict
from anomalib_lite.results import Scores
from anomalib_lite.serving.history import VERDICTS, History, Version
from anomalib_lite.serving.improving import compare, propose
from anomalib_lite.serving.line import BusyError, Line

try:
    from fastapi import Body, FastAPI, HTTPException, Query, Request, Response
    from fastapi.responses import JSONResponse
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.concurrency import run_in_threadpool
except ImportError as error:
    raise ImportError("serving needs more: pip install 'anomalib_lite[serve]'") from error

_MOST_IN_A_BATCH = 64
_RECENT = 50
_LARGEST_WORDS = 1 << 16  # bytes of a request that brings no picture
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass
class Settings:
    """What a server allows.

    Attributes
    ----------
    tokens : names by token; without any, everybody may do everything, and only on loopback
    hosts : names that the server may be called by, where there are no tokens (a page of a stranger may lead a browser
        here under a name of its own)
    largest_body : bytes of a request
    patience : seconds for a body to come in, and for a verdict
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]", "testserver")
    largest_body: int = 64 << 20
    patience: float = 30.0


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _waiting_of(line: Line) -> float:
    return float(line.waiting)


def _number_of(line: Line) -> float:
    return float(line.version.number)


class _Meters:
    """What /metrics tells, for one server."""

    def __init__(self, lines: Mapping[str, Line]):
        self.registry = CollectorRegistry()
        own, space = self.registry, "anomalib_lite"
        self.verdicts = Counter("verdicts", "Verdicts given", ["part", "verdict"], namespace=space, registry=own)
        self.refused = Counter("refused", "Requests refused, by reason", ["reason"], namespace=space, registry=own)
        self.seconds = Histogram(
            "judging_seconds", "From a picture's arrival to its verdict", ["part"], namespace=space, registry=own
        )
        waiting = Gauge("waiting", "Pictures that wait", ["part"], namespace=space, registry=own)
        version = Gauge("version", "Number of the version that judges", ["part"], namespace=space, registry=own)
        full = Gauge("pictures_full", "1 where there is no room to keep pictures", namespace=space, registry=own)
        full.set_function(lambda: float(any(line.pictures.full for line in lines.values())))
        for part, line in lines.items():
            waiting.labels(part).set_function(partial(_waiting_of, line))
            version.labels(part).set_function(partial(_number_of, line))
            for verdict in VERDICTS:
                self.verdicts.labels(part, verdict)


def make_app(lines: Mapping[str, Line], history: History, settings: Settings | None = None) -> FastAPI:
    """The application that serves these part types.

    Parameters
    ----------
    lines : by part type, started
    history : theirs
    settings : Settings
    """
    settings = settings or Settings()
    meters = _Meters(lines)
    drifts = {part: _Drift(line, history) for part, line in lines.items()}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for line in lines.values():
            line.stop()

    app = FastAPI(title="anomalib_lite", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        problem = _unwelcome(request, settings)
        if problem is not None:
            meters.refused.labels(problem[2]).inc()
            response: Response = JSONResponse({"detail": problem[1]}, problem[0])
            if problem[0] == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
        else:
            response = await proceed(request)
        response.headers.update(_HEADERS)
        return response

    def line_of(part: str) -> Line:
        if part not in lines:
            raise HTTPException(404, f"there is no part type {part!r}")
        return lines[part]

    def entry_of(identity: int) -> dict[str, Any]:
        entry = history.entry(identity) if 0 < identity < 2**62 else None
        if entry is None or entry["part"] not in lines:
            raise HTTPException(404, f"there is no verdict {identity}")
        return entry

    # ------------------------------------------------------------ for machines

    @app.get("/healthz")
    def healthy() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    def ready() -> dict[str, Any]:
        """Whether it can judge: models are loaded, and the history can be read."""
        for part in lines:
            history.current(part)
        return {"status": "ok", "models": sorted(lines)}

    @app.get("/metrics")
    def metrics() -> Response:
        """What is counted, for Prometheus."""
        return Response(generate_latest(meters.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def models() -> list[dict[str, Any]]:
        """The part types, and the version that judges each."""
        return [_model(line) for _, line in sorted(lines.items())]

    @app.post("/v1/models/{part}/score")
    async def score(
        request: Request,
        part: str,
        name: Annotated[str, Query(max_length=500)] = "",
        lot: Annotated[str, Query(max_length=200)] = "",
        camera: Annotated[str, Query(max_length=200)] = "",
    ) -> Any:
        """Judge a picture (the body, or a file of a form), or several (files of a form): a verdict, or a list of them.

        With a camera's name a picture that is the same as its last has no verdict.
        """
        line = line_of(part)
        started = time.perf_counter()
        contents, several = await _pictures(request, settings)
        if not contents:
            raise HTTPException(422, "no picture: send its bytes as the body, or files of a multipart form")
        if len(contents) > _MOST_IN_A_BATCH:
            raise HTTPException(422, f"{len(contents)} pictures; {_MOST_IN_A_BATCH} at once are the most")
        told: list[Future[tuple[int, Verdict]]] = []
        try:
            for number, (own, content) in enumerate(contents):
                called = own or (f"{name} {number + 1}" if several and name else name)
                told.append(await run_in_threadpool(line.submit, content, name=called, lot=lot, camera=camera))
        except BusyError:
            meters.refused.labels("busy").inc()
            if not told:  # what was taken in is judged and answered
                raise HTTPException(429, "too many pictures wait; try again", headers={"Retry-After": "1"}) from None
        found = []
        for one in told:
            try:
                identity, verdict = await asyncio.wait_for(asyncio.wrap_future(one), settings.patience)
            except (asyncio.TimeoutError, OSError) as error:
                meters.refused.labels("no verdict in time").inc()
                reason = (
                    "no verdict in time" if isinstance(error, asyncio.TimeoutError) else "it cannot be written down"
                )
                raise HTTPException(503, f"no verdict: {reason}; try again", headers={"Retry-After": "5"}) from error
            meters.verdicts.labels(part, verdict.verdict).inc()
            meters.seconds.labels(part).observe(time.perf_counter() - started)
            found.append({**verdict.to_dict(), "id": identity, "name": verdict.id, "part": part})
        missing = [
            {"name": own, "verdict": "no verdict", "reason": "too many pictures wait; send it again"}
            for own, _ in contents[len(found) :]
        ]
        return [*found, *missing] if several else found[0]

    # ------------------------------------------------------------ for people

    @app.get("/v1/models/{part}/verdicts")
    def verdicts(
        part: str,
        limit: Annotated[int, Query(ge=1, le=1000)] = _RECENT,
        before: int | None = None,
        since: int | None = None,
        to_look_at: bool = False,
    ) -> list[dict[str, Any]]:
        """Verdicts, the latest first; with to_look_at those that somebody should look at."""
        line_of(part)
        return history.entries(part, limit=limit, before=before, since=since, to_look_at=to_look_at)

    @app.get("/v1/models/{part}/state")
    def state(part: str) -> dict[str, Any]:
        """Counts, the observed alarm rate beside the promised one, drift, and what waits."""
        line = line_of(part)
        counts = history.counts(part, version=line.version.number)
        judged = sum(counts[verdict] for verdict in VERDICTS if verdict != "no verdict")
        return {
            **_model(line),
            "counts": counts,
            "judged": judged,
            "alarm_rate": counts["alarm"] / judged if judged else None,
            "promised_rate": line.judge.detector.fitted_.calibration.guaranteed_rate,
            "waiting": line.waiting,
            "pictures_full": line.pictures.full,
            "to_look_at": history.count_to_look_at(part),
            "drift": drifts[part].tell(),
        }

    @app.get("/v1/verdicts/{identity}")
    def verdict(identity: int) -> dict[str, Any]:
        """One verdict, with what was said of it."""
        return entry_of(identity)

    @app.get("/v1/verdicts/{identity}/picture")
    def picture(identity: int, heat: bool = True, width: Annotated[int, Query(ge=16, le=4096)] = 1024) -> Response:
        """Its picture, with the heat map and the regions over it."""
        entry = entry_of(identity)
        content = _drawn(lines[entry["part"]], entry, heat, width)
        if content is None:
            raise HTTPException(404, f"the picture of verdict {identity} is not kept any more, or cannot be read")
        return Response(content, media_type="image/jpeg")

    @app.post("/v1/verdicts/{identity}/said")
    def say(
        identity: int,
        good: Annotated[bool | None, Body()] = None,
        kind: Annotated[str, Body(max_length=100)] = "",
        note: Annotated[str, Body(max_length=2000)] = "",
        who: Annotated[str, Body(max_length=100)] = "",
    ) -> dict[str, Any]:
        """Say that the part was good, or bad; or, with good=null, take back what was said."""
        entry_of(identity)
        history.say(identity, good, kind=kind, note=note, who=who)
        return entry_of(identity)

    @app.get("/v1/models/{part}/versions")
    def versions(part: str) -> list[dict[str, Any]]:
        """All versions, and which one judges."""
        line = line_of(part)
        return [_version(one, line) for one in history.versions(part)]

    @app.post("/v1/models/{part}/versions")
    def improve(
        part: str, false_alarm_rate: Annotated[float | None, Body(embed=True, gt=0, lt=1)] = None
    ) -> dict[str, Any]:
        """Propose a version from what was confirmed; nothing changes until it is released."""
        line = line_of(part)
        try:
            version, comparison = propose(line, false_alarm_rate=false_alarm_rate)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        return {"version": _version(version, line), "comparison": comparison.to_dict()}

    @app.get("/v1/models/{part}/versions/{number}/comparison")
    def comparison(part: str, number: int) -> dict[str, Any]:
        """The version that judges and another, on everything confirmed so far."""
        try:
            return compare(line_of(part), number).to_dict()
        except KeyError:
            raise HTTPException(404, f"{part} has no version {number}") from None

    @app.post("/v1/models/{part}/versions/{number}/release")
    def release(part: str, number: int) -> dict[str, Any]:
        """Let a version judge from now on: a proposed one, or one of before."""
        line = line_of(part)
        try:
            version = line.release(number)
        except KeyError:
            raise HTTPException(404, f"{part} has no version {number}") from None
        drifts[part] = _Drift(line, history)
        return _version(version, line)

    @app.post("/v1/models/{part}/versions/{number}/discard")
    def discard(part: str, number: int) -> list[dict[str, Any]]:
        """A proposed version is not to judge."""
        line = line_of(part)
        if number == line.version.number or number not in {one.number for one in history.versions(part)}:
            raise HTTPException(409, f"version {number} judges, or is not there")
        history.discard(part, number)
        return versions(part)

    # ------------------------------------------------------------ the page

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return Response(_static("page.html"), media_type="text/html")

    @app.get("/page.css", include_in_schema=False)
    def style() -> Response:
        return Response(_static("page.css"), media_type="text/css")

    @app.get("/page.js", include_in_schema=False)
    def script() -> Response:
        return Response(_static("page.js"), media_type="text/javascript")

    return app


class _Drift:
    """The step-by-step test of a part type's p-values, since its version judges."""

    def __init__(self, line: Line, history: History):
        calibration = line.judge.detector.fitted_.calibration
        self._line, self._history = line, history
        self._monitor = DriftMonitor(
            n_calibration=calibration.n, tolerated_defects=0.05, tied=tied_share(calibration.scores)
        )
        self._seen = 0
        self._telling = threading.Lock()

    def tell(self) -> dict[str, Any]:
        """What it says by now, the latest verdicts included."""
        with self._telling:
            return self._told()

    def _told(self) -> dict[str, Any]:
        new = self._history.entries(self._line.part, limit=1000, since=self._seen)
        for entry in reversed(new):
            if entry["version"] == self._line.version.number and entry["p_value"] is not None:
                self._monitor.update(entry["p_value"])
        self._seen = new[0]["id"] if new else self._seen
        return {
            "alarm": self._monitor.alarm,
            "direction": self._monitor.direction,
            "seen": self._monitor.n_seen,
            "explanation": self._monitor.explain(),
        }


def _model(line: Line) -> dict[str, Any]:
    calibration = line.judge.detector.fitted_.calibration
    return {
        "part": line.part,
        "version": line.version.number,
        "digest": line.version.digest,
        "threshold": calibration.threshold,
        "false_alarm_rate": calibration.false_alarm_rate,
        "guarantee_met": calibration.guarantee_met,
    }


def _version(version: Version, line: Line) -> dict[str, Any]:
    return {**vars(version), "current": version.number == line.version.number}


def _unwelcome(request: Request, settings: Settings) -> tuple[int, str, str] | None:
    """Status, detail and a word for why a request is not answered, or None."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and origin.split("://")[-1] != host:
        return 403, "pages of other servers may not ask this one", "origin"
    takes_pictures = request.url.path.endswith("/score")
    length = request.headers.get("content-length")
    if length is None and not takes_pictures and "transfer-encoding" in request.headers:
        return 411, "tell the length of the body", "size"
    most = settings.largest_body if takes_pictures else _LARGEST_WORDS
    if length is not None and (not length.isdigit() or int(length) > most):
        return 413, f"the body is larger than {most} bytes", "size"
    if not settings.tokens:
        if host.rsplit(":", 1)[0] not in settings.hosts and host not in settings.hosts:
            return 403, "this server is called by another name", "host"
        return None
    path = request.url.path
    if path in ("/", "/page.css", "/page.js", "/healthz", "/readyz"):
        return None
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if any(hmac.compare_digest(given, token.encode()) for token in settings.tokens):
        return None
    return 401, "a token is needed: Authorization: Bearer TOKEN", "token"


async def _pictures(request: Request, settings: Settings) -> tuple[list[tuple[str, bytes]], bool]:
    """Name and bytes of every picture in a request, and whether it asked for several."""
    try:
        body = await asyncio.wait_for(_body(request, settings.largest_body), settings.patience)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not come within {settings.patience:g} seconds") from None
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        return ([("", body)] if body else []), False

    async def once() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    form = await Request(request.scope, once).form(max_files=_MOST_IN_A_BATCH + 1, max_fields=10)
    try:
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        return [(file.filename or "", await file.read()) for file in files], len(files) != 1
    finally:
        await form.close()


async def _body(request: Request, largest: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > largest:  # of a body that does not tell its length
            raise HTTPException(413, f"the body is larger than {largest} bytes")
        parts.append(part)
    return b"".join(parts)


def _drawn(line: Line, entry: dict[str, Any], heat: bool, width: int) -> bytes | None:
    """A kept picture as JPEG, at most so wide, with its heat map; None if it is not there."""
    from PIL import Image

    from anomalib_lite.plotting.overlays import overlaid

    content = line.pictures.read(entry["id"])
    if content is None:
        return None
    try:
        pixels = line.judge.detector.open([content]).read(0)
        grid = line.pictures.grid(entry["id"]) if heat and entry["score"] is not None else None
        fitted = None if grid is None else line.fitted(entry["version"])
    except (UnreadableImageError, KeyError):
        return None
    shrink = max(1.0, max(pixels.shape[:2]) / width)
    size = round(pixels.shape[1] / shrink), round(pixels.shape[0] / shrink)
    shown = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)) if shrink > 1 else pixels
    if grid is not None and fitted is not None:
        threshold = entry["threshold"]
        scores = Scores(
            ids=[entry["name"]],
            scores=np.array([entry["score"]]),
            p_values=np.array([entry["p_value"]]),
            alarms=np.array([entry["verdict"] == "alarm"]),
            threshold=threshold,
            false_alarm_rate=entry["false_alarm_rate"],
            guarantee_met=True,
            image_sizes=[(pixels.shape[0], pixels.shape[1])],
            patch_scores=grid[None],
            map_scale=(0.5 * threshold, 2.0 * threshold),
            frame=fitted.frame,
            pixel_threshold=None if fitted.peaks is None or not entry["regions"] else fitted.peaks.threshold,
            usual_score=fitted.usual_score,
        )
        shown = overlaid(scores, 0, shown)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "jpeg", quality=88)
    return file.getvalue()


def _static(name: str) -> bytes:
    return resources.files("anomalib_lite.serving").joinpath(name).read_bytes()
