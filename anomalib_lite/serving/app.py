"""The server: pictures come in over HTTP, and verdicts go out; what machines ask is here, what people ask in `people`.

Who is let in is for `access` to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from anomalib_lite.judging import Verdict
from anomalib_lite.serving.access import Guard, Settings, UnknownError, known_line
from anomalib_lite.serving.course import described
from anomalib_lite.serving.history import VERDICTS, History
from anomalib_lite.serving.line import BusyError, Line

try:
    from fastapi import FastAPI, HTTPException, Query, Request, Response
    from fastapi.responses import JSONResponse
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.concurrency import run_in_threadpool

    from anomalib_lite.serving.people import people_routes
except ImportError as error:
    raise ImportError("serving needs more: pip install 'anomalib_lite[serve]'") from error

_MOST_IN_A_BATCH = 64


def _waiting_of(line: Line) -> float:
    return float(line.waiting)


def _number_of(line: Line) -> float:
    return float(line.version.number)


_PICTURE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": {"type": "array", "items": _PICTURE}}, "required": ["file"]}
_TAKES_PICTURES = {  # the body is read by hand, so that what is too large is refused before it is taken in
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _PICTURE},
            "application/octet-stream": {"schema": _PICTURE},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


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

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for line in lines.values():
            line.stop()

    app = FastAPI(title="anomalib_lite", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings

    app.add_middleware(Guard, settings=settings, refused=lambda word: meters.refused.labels(word).inc())

    @app.exception_handler(UnknownError)
    def unknown(_: Request, error: UnknownError) -> Response:
        return JSONResponse({"detail": str(error)}, 404)

    @app.get("/healthz")
    def healthy() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "nothing can be written down, so nothing is judged"}})
    def ready() -> dict[str, Any]:
        """Whether it can judge: models are loaded, and verdicts can be written down."""
        try:
            history.check()
        except OSError as error:
            raise HTTPException(503, "nothing can be written down", headers={"Retry-After": "5"}) from error
        return {"status": "ok", "models": sorted(lines)}

    @app.get("/metrics")
    def metrics() -> Response:
        """What is counted, for Prometheus."""
        return Response(generate_latest(meters.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def models() -> list[dict[str, Any]]:
        """The part types, and the version that judges each."""
        return [described(line) for _, line in sorted(lines.items())]

    @app.post("/v1/models/{part}/score", openapi_extra=_TAKES_PICTURES)
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
        line = known_line(lines, part)
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

    app.include_router(people_routes(lines, history))
    return app


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
