"""A better version from what people confirmed, and what it would have changed: nothing changes by itself.

Parts that alarmed and were good are learnt (`Detector.add`, without moving the threshold); and the threshold can be set
anew, for another rate, from the good ones, or so that every bad one alarms. Then every part that somebody confirmed is
judged by both versions, so that what is cured and what is lost is seen before a release.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

from anomalib_lite.detector import Detector
from anomalib_lite.evaluation.operating import operating_points
from anomalib_lite.fitted.calibration import ALARM, images_needed
from anomalib_lite.fitted.coverage import binomial_band, direction_of
from anomalib_lite.judging import Judge
from anomalib_lite.serving.history import PROPOSED, Version
from anomalib_lite.serving.line import Line

_LEARNT = re.compile(r"verdict (\d{1,18})")


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


@dataclass(frozen=True)
class Wish:
    """What a new version is to change.

    Attributes
    ----------
    learn : whether alarms that were good are learnt
    false_alarm_rate : another rate to set the threshold for
    recalibrate : whether the threshold is set anew from the parts confirmed as good that have not been learnt
    find_confirmed : whether the threshold is lowered until every part confirmed as bad alarms

    Raises
    ------
    ValueError
        If the threshold is to be set in two ways, or a rate is no share.
    """

    learn: bool = True
    false_alarm_rate: float | None = None
    recalibrate: bool = False
    find_confirmed: bool = False

    def __post_init__(self) -> None:
        if self.find_confirmed and (self.recalibrate or self.false_alarm_rate is not None):
            raise ValueError("the threshold can be set by the confirmed defects, or by a rate: choose one")
        if self.false_alarm_rate is not None and not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate={self.false_alarm_rate} is a share of good parts, in (0, 1)")


def propose(line: Line, wish: Wish | None = None) -> tuple[Version, Comparison, list[str]]:
    """A new version from what was confirmed, how it compares with the one that judges, and what speaks against it.

    Raises
    ------
    ValueError
        If nothing that was confirmed gives reason to change anything.
    OSError
        If pictures or the model cannot be kept.
    """
    wish = wish or Wish()
    detector = line.detector(line.version.number)
    confirmed = line.history.confirmed(line.part)
    notes: list[str] = []
    doubts: list[str] = []
    if wish.learn:
        detector, learnt = _learning(line, detector, confirmed)
        notes += [f"{learnt} false alarm{'s' * (learnt > 1)} learnt"] if learnt else []
    if wish.recalibrate:
        detector, told = _recalibrated(line, detector, confirmed, doubts)
        notes.append(told)
    if wish.false_alarm_rate is not None:
        detector = detector.at_rate(wish.false_alarm_rate)
        notes.append(f"threshold for {100 * wish.false_alarm_rate:g} % of good parts")
        if not detector.fitted_.calibration.guarantee_met:
            doubts.append(
                f"{100 * wish.false_alarm_rate:g} % cannot be promised by {detector.fitted_.calibration.n} good parts; "
                f"{100 * detector.fitted_.calibration.guaranteed_rate:.2g} % can"
            )
    if wish.find_confirmed:
        detector, told = _finding(line, detector, confirmed)
        notes.append(told)
    if not notes:
        raise ValueError("no part that alarmed was confirmed as good since; there is nothing to learn")
    version = line.add_model(detector, ", ".join(notes), state=PROPOSED)
    return version, compare(line, version.number), doubts


def learnt_as(train_id: str) -> int | None:
    """The verdict whose picture a version has learnt under this id; None of a picture it was fitted on."""
    found = _LEARNT.fullmatch(train_id)
    return None if found is None else int(found[1])


def _learning(line: Line, detector: Detector, confirmed: list[dict[str, Any]]) -> tuple[Detector, int]:
    """The detector that has learnt the alarms that were good, and how many those were."""
    known = set(detector.fitted_.train.ids)
    wrong = [entry["id"] for entry in confirmed if entry["good"] and entry["verdict"] == ALARM]
    # First they are made to stay, so that none is swept away while it is learnt.
    news = [identity for identity in wrong if _name(identity) not in known and line.pictures.keep_as_learnt(identity)]
    contents = {identity: line.pictures.read(identity) for identity in news}
    to_learn = {identity: content for identity, content in contents.items() if content is not None}
    if not to_learn:
        return detector, 0
    source = _Confirmed(detector, to_learn)
    return detector.add(source, groups="each", calibrating=False, everything_is_good=True), len(to_learn)


def _recalibrated(
    line: Line, detector: Detector, confirmed: list[dict[str, Any]], doubts: list[str]
) -> tuple[Detector, str]:
    """The detector with a threshold from the parts confirmed as good, and a note of it; what speaks against it."""
    known = set(detector.fitted_.train.ids)
    good = [entry for entry in confirmed if entry["good"] and _name(entry["id"]) not in known]
    contents = {entry["id"]: line.pictures.read(entry["id"]) for entry in good}
    fresh = {identity: content for identity, content in contents.items() if content is not None}
    if not fresh:
        raise ValueError(
            "no part that was confirmed as good, and has not been learnt, still has its picture: say 'it was good' of "
            "parts as they come, of all of them for a while"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        changed = detector.recalibrate(_Confirmed(detector, fresh), groups="each", everything_is_good=True)
    doubts += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    promised, calibration = detector.fitted_.calibration.guaranteed_rate, changed.fitted_.calibration
    alarms = sum(entry["verdict"] == ALARM for entry in good if entry["id"] in fresh)
    if 0 < promised < 1 and direction_of(alarms, binomial_band(promised, len(fresh))) == "above":
        doubts.append(
            f"{alarms} of the {len(fresh)} parts are alarms that were good, more than come by themselves. People look "
            "at alarms first, and a threshold from such parts is too high: defects are missed. Confirm every good part "
            "of a stretch, such as a lot, and then set it"
        )
    if not calibration.guarantee_met:
        doubts.append(
            f"{calibration.n} parts are too few for {100 * calibration.false_alarm_rate:g} %; it takes "
            f"{images_needed(calibration.false_alarm_rate)}, and until then {100 * calibration.guaranteed_rate:.2g} % "
            "is what can be promised"
        )
    return changed, f"threshold from {len(fresh)} confirmed good parts"


def _finding(line: Line, detector: Detector, confirmed: list[dict[str, Any]]) -> tuple[Detector, str]:
    """The detector with a threshold by which every confirmed defect alarms, and a note of what that costs."""
    contents = [line.pictures.read(entry["id"]) for entry in confirmed if not entry["good"]]
    kept = [content for content in contents if content is not None]
    if not kept:
        raise ValueError("no part that was confirmed as bad still has its picture: say 'it was bad' of defects first")
    points = operating_points(detector, kept)
    point, now = points.none_missed(), detector.fitted_.calibration.threshold
    if point.threshold >= now:  # a handful of plain defects is no reason to let more pass
        raise ValueError(
            f"all {point.n_bad} confirmed defects alarm at {now:.4g} already, as it is; there is no reason to change it"
        )
    changed = detector.at_threshold(point.threshold)
    low, high = point.alarm_interval
    return changed, (
        f"threshold lowered until all {point.n_bad} confirmed defects alarm; of good parts "
        f"{100 * point.alarms / point.n_good:.2g} % will ({100 * low:.2g} to {100 * high:.2g} %); of defects like "
        f"these {100 * point.missed_interval[1]:.2g} % at most are missed"
    )


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
        self.ids = [_name(identity) for identity in contents]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> Any:
        return self._read.read(i)


def _name(identity: int) -> str:
    """What the picture of a verdict is called among the images that a version has learnt."""
    return f"verdict {identity}"
