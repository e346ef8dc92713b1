"""A better version from what people confirmed, and what it would have changed: nothing changes by itself.

Parts that alarmed and were good are learnt (`Detector.add`, without moving the threshold). Then every part that
somebody confirmed is judged by both versions, so that what is cured and what is lost is seen before a release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anomalib_lite.fitted.calibration import ALARM
from anomalib_lite.judging import Judge
from anomalib_lite.serving.history import PROPOSED, Version
from anomalib_lite.serving.line import Line


@dataclass(frozen=True)
class Comparison:
    """Two versions on everything confirmed so far, whose pictures are still kept.

    Attributes
    ----------
    before, after : dict
        Of each version: number, threshold, and of the parts confirmed as good how many alarm, of the bad how many do.
    good, bad : parts confirmed as such
    cured, lost, newly_alarming, newly_found : ids of verdicts
        Good ones that alarm no longer, bad ones that alarm no longer; good ones that alarm now, bad ones that do now.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    good: int
    bad: int
    cured: list[int]
    lost: list[int]
    newly_alarming: list[int]
    newly_found: list[int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dict(vars(self))


def propose(line: Line, *, false_alarm_rate: float | None = None) -> tuple[Version, Comparison]:
    """A new version from the good parts that alarmed, and how it compares with the one that judges.

    Parameters
    ----------
    false_alarm_rate : another rate to set the threshold for

    Raises
    ------
    ValueError
        If nothing that was confirmed gives reason to change anything, or a rate is no share.
    """
    standing = line.detector(line.version.number)
    confirmed = line.history.confirmed(line.part)
    known = set(standing.fitted_.train.ids)
    wrong = [entry for entry in confirmed if entry["good"] and entry["verdict"] == ALARM]
    news = {entry["id"]: line.pictures.read(entry["id"]) for entry in wrong if _learnt_as(entry) not in known}
    to_learn = {identity: content for identity, content in news.items() if content is not None}
    if not to_learn and false_alarm_rate is None:
        raise ValueError("no part that alarmed was confirmed as good since; there is nothing to learn")
    detector = standing
    notes = []
    if to_learn:
        source = _Confirmed(detector, to_learn)
        detector = detector.add(source, groups="each", calibrating=False, everything_is_good=True)
        notes.append(f"{len(to_learn)} false alarms learnt")
    if false_alarm_rate is not None:
        detector = detector.at_rate(false_alarm_rate)
        notes.append(f"threshold for {100 * false_alarm_rate:g} % of good parts")
    version = line.add_model(detector, ", ".join(notes), state=PROPOSED)
    return version, compare(line, version.number)


def compare(line: Line, number: int) -> Comparison:
    """The version that judges and another, on everything that was confirmed.

    Raises
    ------
    KeyError
        If there is no such version.
    """
    judges = Judge(line.detector(line.version.number)), Judge(line.detector(number))
    alarms: dict[bool, dict[int, tuple[bool, bool]]] = {True: {}, False: {}}
    for entry in line.history.confirmed(line.part):
        content = line.pictures.read(entry["id"])
        if content is None:
            continue
        seen = judges[0].look(content)
        both = [judge.judge_all([seen], [""])[0].verdict == ALARM for judge in judges]
        alarms[bool(entry["good"])][entry["id"]] = both[0], both[1]

    def told(place: int) -> dict[str, Any]:
        return {
            "version": (line.version.number, number)[place],
            "threshold": judges[place].detector.fitted_.calibration.threshold,
            "good_that_alarm": sum(both[place] for both in alarms[True].values()),
            "bad_that_alarm": sum(both[place] for both in alarms[False].values()),
        }

    def which(good: bool, wanted: tuple[bool, bool]) -> list[int]:
        return [identity for identity, both in alarms[good].items() if both == wanted]

    return Comparison(
        before=told(0),
        after=told(1),
        good=len(alarms[True]),
        bad=len(alarms[False]),
        cured=which(True, (True, False)),
        lost=which(False, (True, False)),
        newly_alarming=which(True, (False, True)),
        newly_found=which(False, (False, True)),
    )


class _Confirmed:
    """Pictures of confirmed parts, by the id of their verdict, as an image source."""

    def __init__(self, detector: Any, contents: dict[int, bytes]):
        self._read = detector.open(list(contents.values()))
        self.ids = [_learnt_as({"id": identity}) for identity in contents]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> Any:
        return self._read.read(i)


def _learnt_as(entry: dict[str, Any]) -> str:
    """Its name among the images that a version has learnt."""
    return f"verdict {entry['id']}"
