"""What people ask of the server, by its page: verdicts and pictures, what is said of them, and versions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Query, Response

from anomalib_lite.serving.access import PAGE, known_entry, known_line
from anomalib_lite.serving.beside import Beside, Side
from anomalib_lite.serving.course import Course, described
from anomalib_lite.serving.drawing import drawn, outlines
from anomalib_lite.serving.history import ALARM, NO_VERDICT, VERDICTS, History, Version
from anomalib_lite.serving.improving import Wish, compare, propose
from anomalib_lite.serving.line import Line

_RECENT = 50


def people_routes(lines: Mapping[str, Line], history: History) -> APIRouter:
    """The routes for the page and whoever else looks at what was judged; see `app.make_app`."""
    routes = APIRouter()
    courses = {part: Course(line, history) for part, line in lines.items()}
    beside = {part: Beside(line) for part, line in lines.items()}

    def line_of(part: str) -> Line:
        return known_line(lines, part)

    def entry_of(identity: int) -> dict[str, Any]:
        return known_entry(lines, history, identity)

    @routes.get("/v1/models/{part}/verdicts")
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

    @routes.get("/v1/models/{part}/state")
    def state(part: str) -> dict[str, Any]:
        """Counts, the observed alarm rate beside the promised one, drift, what was confirmed, and what waits."""
        line = line_of(part)
        counts = history.counts(part, version=line.version.number)
        judged = sum(counts[verdict] for verdict in VERDICTS if verdict != NO_VERDICT)
        drift = courses[part].tell()["drift"]
        return {
            **described(line),
            "counts": counts,
            "judged": judged,
            "alarm_rate": counts[ALARM] / judged if judged else None,
            "promised_rate": line.judge.detector.fitted_.calibration.guaranteed_rate,
            "waiting": line.waiting,
            "pictures_full": line.pictures.full,
            "to_look_at": history.count_to_look_at(part),
            "confirmed": history.count_confirmed(part),
            "drift": {name: drift[name] for name in ("alarm", "direction", "seen", "explanation")},
        }

    @routes.get("/v1/models/{part}/course")
    def course(part: str) -> dict[str, Any]:
        """Of the last 200 parts: the share of alarms with its band, the evidence of drift, and the time taken."""
        line_of(part)
        return courses[part].tell()

    @routes.get("/v1/verdicts/{identity}")
    def verdict(identity: int) -> dict[str, Any]:
        """One verdict, with what was said of it."""
        return entry_of(identity)

    @routes.get("/v1/verdicts/{identity}/picture")
    def picture(
        identity: int,
        heat: bool = True,
        outline: bool = True,
        width: Annotated[int, Query(ge=16, le=4096)] = 1024,
    ) -> Response:
        """Its picture, with the heat map and, over that, the regions."""
        entry = entry_of(identity)
        content = drawn(lines[entry["part"]], entry, heat=heat, outline=outline, width=width)
        if content is None:
            raise HTTPException(404, f"the picture of verdict {identity} is not kept any more, or cannot be read")
        return Response(content, media_type="image/jpeg")

    @routes.get("/v1/verdicts/{identity}/outlines")
    def outlines_of(identity: int) -> dict[str, Any]:
        """Lines around its regions, in pixels of the picture: of every region its rings of corners (x, y)."""
        entry = entry_of(identity)
        found = outlines(lines[entry["part"]], entry)
        return {"height": entry["height"], "width": entry["width"], "regions": found}

    @routes.get("/v1/verdicts/{identity}/nearest")
    def nearest(identity: int) -> dict[str, Any]:
        """Its worst patch, and the good patch it is most like; with why the latter's picture cannot be shown."""
        entry = entry_of(identity)
        found = beside[entry["part"]].find(entry)
        if isinstance(found, str):
            raise HTTPException(404, found)
        return {**vars(found.nearest), "missing": found.missing}

    @routes.get("/v1/verdicts/{identity}/nearest/{side}")
    def nearest_picture(identity: int, side: Side, width: Annotated[int, Query(ge=64, le=1024)] = 320) -> Response:
        """One of the two patches, enlarged: "part" or "good"."""
        entry = entry_of(identity)
        content = beside[entry["part"]].drawn(entry, side, width)
        if content is None:
            raise HTTPException(404, "there is no picture to show")
        return Response(content, media_type="image/jpeg")

    @routes.post("/v1/verdicts/{identity}/said")
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

    @routes.get("/v1/models/{part}/versions")
    def versions(part: str) -> list[dict[str, Any]]:
        """All versions, and which one judges."""
        line = line_of(part)
        return [_version(one, line) for one in history.versions(part)]

    @routes.post("/v1/models/{part}/versions")
    def improve(
        part: str,
        learn: Annotated[bool, Body()] = True,
        false_alarm_rate: Annotated[float | None, Body(gt=0, lt=1)] = None,
        recalibrate: Annotated[bool, Body()] = False,
        find_confirmed: Annotated[bool, Body()] = False,
    ) -> dict[str, Any]:
        """Propose a version from what was confirmed; nothing changes until it is released."""
        line = line_of(part)
        try:
            version, comparison, doubts = propose(line, Wish(learn, false_alarm_rate, recalibrate, find_confirmed))
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        return {"version": _version(version, line), "comparison": comparison.to_dict(), "doubts": doubts}

    @routes.get("/v1/models/{part}/versions/{number}/comparison")
    def comparison(part: str, number: int) -> dict[str, Any]:
        """The version that judges and another, on everything confirmed so far."""
        try:
            return compare(line_of(part), number).to_dict()
        except KeyError:
            raise HTTPException(404, f"{part} has no version {number}") from None

    @routes.post("/v1/models/{part}/versions/{number}/release")
    def release(part: str, number: int) -> dict[str, Any]:
        """Let a version judge from now on: a proposed one, or one of before."""
        line = line_of(part)
        try:
            version = line.release(number)
        except KeyError:
            raise HTTPException(404, f"{part} has no version {number}") from None
        courses[part] = Course(line, history)
        return _version(version, line)

    @routes.post("/v1/models/{part}/versions/{number}/discard")
    def discard(part: str, number: int) -> list[dict[str, Any]]:
        """A proposed version is not to judge."""
        line = line_of(part)
        if number == line.version.number or number not in {one.number for one in history.versions(part)}:
            raise HTTPException(409, f"version {number} judges, or is not there")
        history.discard(part, number)
        return versions(part)

    for path, (name, kind) in PAGE.items():
        routes.add_api_route(path, _static(name, kind), include_in_schema=False)
    return routes


def _version(version: Version, line: Line) -> dict[str, Any]:
    return {**vars(version), "current": version.number == line.version.number}


def _static(name: str, kind: str) -> Any:
    """A route that answers with a file of the page."""
    content = resources.files("anomalib_lite").joinpath(name).read_bytes()
    return lambda: Response(content, media_type=kind)
