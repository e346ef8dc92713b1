"""One picture after the other, as they come from a line: a verdict for each, and none for what shows nothing.

`Judge` reads a picture, asks whether it can be judged at all, and has it scored. What cannot be judged (unreadable, of
another shape, black, saturated, blurred, the same as the one before) gets "no verdict", which is never "good".
"""

from __future__ import annotations

import datetime
import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from anomalib_lite.fitted.calibration import ALARM
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.images.proportions import same_proportions
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.locating.regions import DefectRegion
from anomalib_lite.results import NO_VERDICT, Scores

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

    def to_dict(self, *, outlines: bool = False) -> dict[str, Any]:
        """JSON-able; the outlines of regions, which make a line of ten thousand characters, if asked for."""
        values = {name: value for name, value in vars(self).items() if name != "regions"}
        regions = [region.to_dict() for region in self.regions]
        if not outlines:
            regions = [{name: value for name, value in region.items() if name != "outline"} for region in regions]
        return {**values, "regions": regions}


class Judging(Protocol):
    """A fitted detector."""

    @property
    def fitted_(self) -> Fitted: ...
    @property
    def digest(self) -> str: ...
    def open(self, images: Any) -> ImageSource: ...
    def score(self, images: Any) -> Scores: ...


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
    """

    def __init__(self, detector: Judging, *, channels: Channels = "rgb"):
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
        started = time.perf_counter()
        if picture is None:
            return self._none(name, "the camera gave no picture", started)
        if self.channels == "bgr" and isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] >= 3:
            picture = np.concatenate([picture[..., 2::-1], picture[..., 3:]], axis=2)
        try:
            pixels = self.detector.open([picture]).read(0)
        except (UnreadableImageError, ValueError, TypeError) as error:
            return self._none(name, f"it cannot be read: {error}", started)
        digest = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
        if fault := self._fault(pixels, digest):
            return self._none(name, fault, started, digest)
        self.last = digest
        scores = self.detector.score([pixels])
        if scores.unreadable:  # such as of a shape that a region of interest was not drawn for
            return self._none(name, scores.unreadable[0].reason, started, digest)
        regions = [] if scores.patch_scores is None else scores.regions(0, max_regions=_MOST_REGIONS)
        reason = "; ".join(scores.notes.values())
        if scores.as_a_whole(0):
            reason = "it is unlike the good ones as a whole"
        return Verdict(
            id=name,
            verdict=scores.verdicts[0],
            reason=reason,
            score=float(scores.scores[0]),
            p_value=float(scores.p_values[0]),
            threshold=scores.threshold,
            false_alarm_rate=scores.false_alarm_rate,
            regions=tuple(regions) if scores.verdicts[0] == ALARM else (),
            model=self.model,
            picture=digest,
            time=_now(),
            milliseconds=_since(started),
        )

    def nothing(self, name: str, reason: str) -> Verdict:
        """The verdict where there is no picture to judge, such as for too long."""
        return self._none(name, reason, time.perf_counter())

    def _fault(self, pixels: np.ndarray, digest: str) -> str | None:
        """What is wrong with a picture, so that it cannot be judged."""
        if digest == self.last:
            return "it is the same as the one before, to the last pixel: is the camera frozen?"
        if self._one_shape is not None and not same_proportions((pixels.shape[0], pixels.shape[1]), self._one_shape):
            height, width = self._one_shape
            return (
                f"it has {pixels.shape[0]} × {pixels.shape[1]} pixels (height × width), and what was learnt from "
                f"has the proportions of {height} × {width}"
            )
        sight = self.detector.fitted_.sight
        return None if sight is None else sight.fault(pixels)

    def _none(self, name: str, reason: str, started: float, digest: str = "") -> Verdict:
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
            picture=digest,
            time=_now(),
            milliseconds=_since(started),
        )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 3)
