"""One picture after the other, as they come from a line: a verdict for each, and none for what shows nothing.

`Judge` reads a picture, asks whether it can be judged at all, and has it scored. What cannot be judged (unreadable, of
another shape, black, saturated, blurred, the same as the one before) gets "no verdict", which is never "good".
"""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from anomalib_lite.fitted.calibration import ALARM, NO_VERDICT
from anomalib_lite.images.decoding import UnreadableImageError
from anomalib_lite.images.proportions import same_proportions
from anomalib_lite.locating.regions import DefectRegion
from anomalib_lite.machine.threads import one_blas_thread
from anomalib_lite.results import Scores, Scoring

Channels = Literal["rgb", "bgr"]
# Where fewer of the training pictures than this have one shape, others are laid into the frame, as those were.
_ONE_SHAPE = 0.95
_MOST_REGIONS = 100  # told of one picture


@dataclass(frozen=True)
class Verdict:
    """What is to be done with one picture.

    Attributes
    ----------
    id : str
    verdict : "good", "look again", "alarm" or "no verdict"
    reason : why there is none, or what an alarm is for where it is no place in the picture; "" otherwise
    score, p_value : float, None without a verdict
    threshold, false_alarm_rate : float, of the alarm
    regions : tuple of DefectRegion, where it is unlike the good ones, the highest first
    model : SHA-256 of the model, see `Detector.digest`
    picture : SHA-256 of its pixels, "" of one that cannot be read
    time : when it was judged, ISO 8601 in UTC
    milliseconds : how long it took, reading included
    size : (height, width) of the picture, None of one that cannot be read
    grid : float32 (gh, gw), scores of its patches, for those who draw it; not among what `to_dict` tells

    Examples
    --------
    >>> from anomalib_lite import fit
    >>> from anomalib_lite.images.synthetic import render_part
    >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]
    >>> judge = Judge(fit(parts[:20], image_size=64, false_alarm_rate=0.1))
    >>> found = judge.judge(np.zeros((64, 64, 3), dtype=np.uint8), "dark")
    >>> found.verdict, found.score, found.reason  # doctest: +ELLIPSIS
    ('no verdict', None, '...')
    """

    id: str
    verdict: str
    reason: str
    score: float | None
    p_value: float | None
    threshold: float
    false_alarm_rate: float
    regions: tuple[DefectRegion, ...]
    model: str
    picture: str
    time: str
    milliseconds: float
    size: tuple[int, int] | None = None
    grid: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self, *, outlines: bool = False) -> dict[str, Any]:
        """JSON-able; the outlines of regions, which make a line of ten thousand characters, if asked for."""
        values = {name: value for name, value in vars(self).items() if name not in ("regions", "grid")}
        regions = [region.to_dict() for region in self.regions]
        if not outlines:
            regions = [{name: value for name, value in region.items() if name != "outline"} for region in regions]
        return {**values, "size": None if self.size is None else list(self.size), "regions": regions}


@dataclass(frozen=True)
class Seen:
    """A picture that was looked at: its pixels and their SHA-256, what keeps it from being judged, and since when."""

    pixels: np.ndarray | None
    digest: str
    fault: str | None
    started: float


class Judge:
    """Judges pictures of one camera, one after the other; not from several threads at once.

    Parameters
    ----------
    detector : Detector, fitted
    channels : "rgb" or "bgr"
        Order of the channels in arrays; OpenCV's is "bgr". Files tell their own.

    Attributes
    ----------
    last : SHA-256 of the last picture that could be judged: one like it shows a frozen camera

    Examples
    --------
    >>> from anomalib_lite import fit
    >>> from anomalib_lite.images.synthetic import render_part
    >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]
    >>> judge = Judge(fit(parts[:20], image_size=64, false_alarm_rate=0.1))
    >>> [judge.judge(picture, "part").verdict for picture in (parts[20], parts[20], None)]
    ['good', 'no verdict', 'no verdict']
    """

    def __init__(self, detector: Scoring, *, channels: Channels = "rgb"):
        if channels not in ("rgb", "bgr"):
            raise ValueError(f"channels={channels!r}; choose 'rgb' or 'bgr' (OpenCV's)")
        self.detector, self.channels = detector, channels
        self.model = detector.digest
        self.last = ""
        train = detector.fitted_.train
        shapes = train.sizes[train.sizes.all(axis=1)]
        frame = detector.fitted_.frame
        alike = [frame is not None and same_proportions((int(h), int(w)), frame.size) for h, w in shapes]
        self._one_shape = frame.size if frame is not None and np.mean(alike) >= _ONE_SHAPE else None

    def judge(self, picture: Any, name: str) -> Verdict:
        """The verdict on a picture: a path, bytes, an array, or None where the camera gave nothing."""
        seen = self.look(picture)
        if seen.digest and seen.digest == self.last:
            seen = replace(seen, fault="it is the same as the one before, to the last pixel: is the camera frozen?")
        elif seen.fault is None:
            self.last = seen.digest
        return self.judge_all([seen], [name])[0]

    def look(self, picture: Any) -> Seen:
        """Read a picture, and find what keeps it from being judged; safe from any thread."""
        started = time.perf_counter()
        if picture is None:
            return Seen(None, "", "the camera gave no picture", started)
        if self.channels == "bgr" and isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] >= 3:
            picture = np.concatenate([picture[..., 2::-1], picture[..., 3:]], axis=2)
        try:
            pixels = self.detector.open([picture]).read(0)
        except (UnreadableImageError, ValueError, TypeError) as error:
            text = str(error).removeprefix("image_0000: ")  # the name of an only one
            return Seen(None, "", f"it cannot be read: {text}", started)
        digest = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
        return Seen(pixels, digest, self._fault(pixels), started)

    def judge_all(self, seen: Sequence[Seen], names: Sequence[str]) -> list[Verdict]:
        """The verdicts on pictures that were looked at, scored together; safe from any thread."""
        with one_blas_thread():
            return self._judged(seen, names)

    def _judged(self, seen: Sequence[Seen], names: Sequence[str]) -> list[Verdict]:
        to_score = [i for i, one in enumerate(seen) if one.fault is None]
        scores = self.detector.score([seen[i].pixels for i in to_score]) if to_score else None
        found: list[Verdict] = []
        place = 0  # among the scores, which leave out what turned out to be unreadable
        lost = {} if scores is None else {to_score[entry.index]: entry.reason for entry in scores.unreadable}
        for i, (one, name) in enumerate(zip(seen, names, strict=True)):
            if scores is None or one.fault is not None or i in lost:
                found.append(self._none(name, one.fault or lost[i], one))
                continue
            found.append(self._scored(scores, place, name, one))
            place += 1
        return found

    def _scored(self, scores: Scores, i: int, name: str, seen: Seen) -> Verdict:
        alarms = scores.verdicts[i] == ALARM
        regions = scores.regions(i, max_regions=_MOST_REGIONS) if alarms and scores.patch_scores is not None else []
        reason = (
            "it is unlike the good ones as a whole" if scores.as_a_whole(i) else scores.notes.get(scores.ids[i], "")
        )
        return Verdict(
            id=name,
            verdict=scores.verdicts[i],
            reason=reason,
            score=float(scores.scores[i]),
            p_value=float(scores.p_values[i]),
            threshold=scores.threshold,
            false_alarm_rate=scores.false_alarm_rate,
            regions=tuple(regions),
            model=self.model,
            picture=seen.digest,
            time=_now(),
            milliseconds=_since(seen.started),
            size=scores.image_sizes[i],
            grid=None if scores.patch_scores is None else scores.patch_scores[i],
        )

    def nothing(self, name: str, reason: str) -> Verdict:
        """The verdict where there is no picture to judge, such as for too long."""
        return self._none(name, reason, Seen(None, "", None, time.perf_counter()))

    def _fault(self, pixels: np.ndarray) -> str | None:
        """What is wrong with a picture, so that it cannot be judged."""
        if self._one_shape is not None and not same_proportions((pixels.shape[0], pixels.shape[1]), self._one_shape):
            height, width = self._one_shape
            return (
                f"it has {pixels.shape[0]} × {pixels.shape[1]} pixels (height × width), and what was learnt from "
                f"has the proportions of {height} × {width}"
            )
        sight = self.detector.fitted_.sight
        return None if sight is None else sight.fault(pixels)

    def _none(self, name: str, reason: str, seen: Seen) -> Verdict:
        calibration = self.detector.fitted_.calibration
        return Verdict(
            id=name,
            verdict=NO_VERDICT,
            reason=reason,
            score=None,
            p_value=None,
            threshold=calibration.threshold,
            false_alarm_rate=calibration.false_alarm_rate,
            regions=(),
            model=self.model,
            picture=seen.digest,
            time=_now(),
            milliseconds=_since(seen.started),
            size=None if seen.pixels is None else (seen.pixels.shape[0], seen.pixels.shape[1]),
        )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 3)
