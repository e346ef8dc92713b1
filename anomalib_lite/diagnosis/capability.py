"""What size of defect can a detector see, and where? Defects of known size painted onto good images it has not learnt.

At the alarm threshold in force, and from good images alone. What is painted is not what a line will meet, so the curves
say what the detector cannot see rather than what it will find.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from anomalib_lite.detector import Detector
from anomalib_lite.diagnosis.detection import DetectionCurve, fit_curve
from anomalib_lite.fitted.recalibration import doubts
from anomalib_lite.images.fixture import RegisteredSource
from anomalib_lite.images.foreground import estimate_foreground
from anomalib_lite.images.painting import KINDS, Kind, paint
from anomalib_lite.images.sources import ImageSource

_CELLS = 5  # rows and columns of the map of where
_LEAST_IN_CELL = 4  # defects, below which a cell says nothing
_RIM = 1 / 3  # of the way from the edge of the part to its innermost
_SURE = 2.0  # standard deviations from what is expected that are worth a word
_PLURAL = {"spot": "spots", "scratch": "scratches", "dent": "dents", "missing": "missing pieces"}


@dataclass(frozen=True)
class PaintedDefect:
    """One painted defect, lengths in pixels of the image; `x` and `y` are shares of its width and height."""

    id: str
    kind: Kind
    size: float
    x: float
    y: float
    score: float
    found: bool


@dataclass(frozen=True)
class Capability:
    """What size of defect a detector finds, at the threshold in force.

    Attributes
    ----------
    curves : by kind of defect
    contrast : share of the range from black to white that defects are darker or lighter by
    defects : every one that was painted
    threshold, false_alarm_rate : in force
    n_images : good images that were painted on
    alarming : good images that alarm as they are, and were left out
    where : (5, 5), share found of those expected, over the image; NaN where too few were painted
    rim : share found of those expected in the outer third of the part, None if that is what chance may do
    pixel_size : millimetres, or None

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]
    >>> detector = Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:16])
    >>> found = capability(detector, parts[16:], kinds=["spot"], per_kind=10)
    >>> list(found.curves), found.n_images, len(found.defects)
    (['spot'], 8, 10)
    """

    curves: dict[Kind, DetectionCurve]
    contrast: float
    defects: tuple[PaintedDefect, ...]
    threshold: float
    false_alarm_rate: float
    n_images: int
    alarming: int
    where: np.ndarray
    rim: float | None
    pixel_size: float | None = None

    def a90_95(self, kind: Kind) -> float | None:
        """Pixels from which on 90 % of a kind are found, with 95 % confidence; None if none that was tried is."""
        return self.curves[kind].size_found(0.9, confident=True)

    def to_text(self) -> str:
        """The findings in words, a line for each kind."""
        lines = [
            f"{len(self.defects)} defects painted onto {self.n_images} good images, {100 * self.contrast:.0f} % of the "
            f"range darker or lighter; found if the image alarms (threshold {self.threshold:.4g}, false-alarm rate "
            f"{self.false_alarm_rate:.4g})"
        ]
        lines += [self._sentence(kind) for kind in self.curves]
        if self.rim is not None:
            word = "weaker" if self.rim < 1 else "stronger"
            lines.append(f"{word} at the rim of the part: {100 * self.rim:.0f} % of those expected there are found")
        if self.alarming:
            lines.append(f"{self.alarming} good images alarm as they are, and nothing was painted on them")
        return "\n".join(lines)

    def _sentence(self, kind: Kind) -> str:
        curve, name = self.curves[kind], _PLURAL[kind]
        most, sure, half = curve.size_found(0.9), self.a90_95(kind), curve.size_found(0.5)
        tried = f"of {curve.n} from {self._length(curve.smallest)} to {self._length(curve.largest)}"
        if curve.slope <= 0:
            return f"{name}: {curve.hits} {tried} are found, whatever their size"
        if half is None:
            return f"{name}: blind; {curve.hits} {tried} are found"
        parts = [f"half from {self._length(half)} on"]
        if most is not None:
            parts.insert(0, f"nine of ten from {self._length(most)} on")
            parts[0] += f" ({self._length(sure)} with 95 % confidence)" if sure else " (not with 95 % confidence)"
        blind = float(np.exp((np.log(1 / 9) - curve.intercept) / curve.slope))
        if blind > curve.smallest:
            parts.append(f"blind below {self._length(blind)}")
        return f"{name}: found {', '.join(parts)} ({curve.hits} {tried})"

    def _length(self, pixels: float) -> str:
        text = f"{pixels:.0f} px" if pixels >= 9.5 else f"{pixels:.1f} px"
        return text if self.pixel_size is None else f"{text} = {pixels * self.pixel_size:.2g} mm"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        kinds = {}
        for kind, curve in self.curves.items():
            kinds[kind] = {
                "a50": curve.size_found(0.5),
                "a90": curve.size_found(0.9),
                "a90_95": self.a90_95(kind),
                "intercept": curve.intercept,
                "slope": curve.slope,
                "n": curve.n,
                "found": curve.hits,
                "smallest": curve.smallest,
                "largest": curve.largest,
            }
        return {
            "kinds": kinds,
            "contrast": self.contrast,
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "images": self.n_images,
            "alarming": self.alarming,
            "where": [[None if np.isnan(share) else float(share) for share in row] for row in self.where],
            "rim": self.rim,
            "pixel_size": self.pixel_size,
        }


class PaintedSource:
    """An image source with one defect painted on each of some images, see `capability`.

    `plan` are tuples of position in `source`, kind, size, (y, x) as shares, angle.
    """

    def __init__(self, source: ImageSource, plan: Sequence[tuple[Any, ...]], contrast: float, ground: Any = None):
        self.source, self.plan, self.contrast, self.ground = source, plan, contrast, ground
        self.ids = [f"{source.ids[i]}@{kind}-{number}" for number, (i, kind, *_) in enumerate(plan)]

    def __len__(self) -> int:
        return len(self.plan)

    def read(self, i: int) -> np.ndarray:
        at, kind, size, (y, x), angle = self.plan[i]
        pixels = self.source.read(at)
        place = y * pixels.shape[0], x * pixels.shape[1]
        return paint(pixels, kind, at=place, size=size, contrast=self.contrast, angle=angle, ground=self.ground)


def capability(
    detector: Detector,
    good: Any,
    *,
    kinds: Sequence[Kind] = KINDS,
    contrast: float = 0.25,
    sizes: tuple[float, float] | None = None,
    per_kind: int = 80,
    random_state: int = 0,
) -> Capability:
    """Measure what size of defect a fitted detector finds.

    Parameters
    ----------
    detector : fitted
    good : folder, paths, arrays, PIL images, tensor or ImageSource
        Good images that it was not fitted on.
    kinds : of "spot", "scratch", "dent", "missing"; see `images.painting`
    contrast : float in (0, 1]
        Share of the range from black to white by which defects are darker (on a bright part) or lighter.
    sizes : (smallest, largest), optional
        Pixels of an image. Default: from two pixels (one of those that the network sees, if that is more) to a fifth of
        the shorter side.
    per_kind : int
        Defects painted of each kind, one on an image; images take turns.
    random_state : int

    Warns
    -----
    UserWarning
        If the images seem to have been learnt from, or some cannot be read.

    Raises
    ------
    ValueError
        If parameters are out of range, or no image is left that can be read and does not alarm as it is.

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]
    >>> detector = Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:16])
    >>> found = capability(detector, parts[16:], kinds=["spot"], per_kind=10)
    >>> found.to_text().splitlines()[1].startswith("spots: ")
    True
    """
    if unknown := [kind for kind in kinds if kind not in KINDS] or not len(kinds):
        raise ValueError(f"kinds={list(kinds)}: {unknown or 'none'}; choose of {', '.join(KINDS)}")
    if not 0 < contrast <= 1 or per_kind < 10:
        raise ValueError(f"contrast={contrast} is a share in (0, 1]; per_kind={per_kind} is 10 at least")
    source = detector.open(good)
    if (fixture := detector.fitted_.fixture) is not None:  # places on the part are those of the template
        source = RegisteredSource(source, fixture)
    plain = detector.score(source)
    if plain.unreadable:
        warnings.warn(f"{len(plain.unreadable)} images cannot be read: {plain.unreadable[0].reason}", stacklevel=2)
    for doubt in doubts(detector.fitted_, plain.scores, plain.ids):
        warnings.warn(doubt, stacklevel=2)
    position = {name: i for i, name in enumerate(source.ids)}
    usable = [position[name] for name, alarm in zip(plain.ids, plain.alarms, strict=True) if not alarm]
    if not usable:
        raise ValueError(
            f"no image is left to paint on: {len(plain)} of {len(source)} can be read, and all of them alarm"
        )
    size = sorted(plain.image_sizes, key=math.prod)[len(plain) // 2]
    seen = max(1.0, min(size) / min(detector.embedder.frame.size))
    low, high = sizes or (2 * max(1.0, seen / 2), min(size) / 5)
    if not 0 < low < high:
        raise ValueError(f"sizes={(low, high)}: the smallest and the largest in pixels, above 0")
    mask, ground = _part(detector, source, usable[0])
    rng = np.random.default_rng(random_state)
    plan = _plan(rng, usable, kinds, per_kind, (low, high), mask)
    scores = detector.score(PaintedSource(source, plan, contrast, ground))
    score_of = dict(zip(scores.ids, scores.scores.tolist(), strict=True))
    defects = []
    for name, (_, kind, length, (y, x), _) in zip(PaintedSource(source, plan, contrast).ids, plan, strict=True):
        if name in score_of:
            score = score_of[name]
            defects.append(PaintedDefect(name, kind, float(length), float(x), float(y), score, score > plain.threshold))
    curves = {
        kind: fit_curve(
            np.array([defect.size for defect in defects if defect.kind == kind]),
            np.array([defect.found for defect in defects if defect.kind == kind]),
        )
        for kind in kinds
    }
    where, rim = _where(defects, curves, mask)
    return Capability(
        curves=curves,
        contrast=contrast,
        defects=tuple(defects),
        threshold=plain.threshold,
        false_alarm_rate=plain.false_alarm_rate,
        n_images=len(usable),
        alarming=int(plain.alarms.sum()),
        where=where,
        rim=rim,
        pixel_size=detector.pixel_size,
    )


def _part(detector: Detector, source: ImageSource, first: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Where to paint, bool (256, 256) over the image; and the colour (3,) behind the part, if there is a ground."""
    side = (256, 256)
    region = detector.fitted_.frame.region if detector.fitted_.frame else None
    try:
        part = estimate_foreground(source, side, workers=detector.workers)
        pixels = source.read(first)
        ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    except ValueError:  # a surface
        part, ground = np.ones(side, dtype=bool), None
    return (part if region is None else region.at(side)), ground


def _plan(
    rng: np.random.Generator,
    usable: list[int],
    kinds: Sequence[Kind],
    per_kind: int,
    sizes: tuple[float, float],
    mask: np.ndarray,
) -> list[tuple[Any, ...]]:
    """What to paint: position of the image, kind, size, (y, x) as shares, angle; logarithms of sizes evenly spread."""
    places = np.argwhere(mask)
    plan: list[tuple[Any, ...]] = []
    order = rng.permutation(np.resize(usable, per_kind * len(kinds)))
    for kind in kinds:
        steps = (np.arange(per_kind) + rng.random(per_kind)) / per_kind
        for length in np.exp(np.log(sizes[0]) + steps * np.log(sizes[1] / sizes[0])).tolist():
            y, x = (places[rng.integers(len(places))] + rng.random(2)) / mask.shape
            plan.append((int(order[len(plan)]), kind, length, (y, x), rng.uniform(0, np.pi)))
    return plan


def _where(
    defects: Sequence[PaintedDefect], curves: dict[Kind, DetectionCurve], mask: np.ndarray
) -> tuple[np.ndarray, float | None]:
    """Found over expected by cell of the image (5, 5), and in the outer third of the part if that is no chance."""
    expected = np.array([float(curves[defect.kind].probability(defect.size)) for defect in defects])
    found = np.array([defect.found for defect in defects])
    y, x = (np.array([getattr(defect, axis) for defect in defects]) for axis in ("y", "x"))
    cells = (np.minimum(y * _CELLS, _CELLS - 1).astype(int), np.minimum(x * _CELLS, _CELLS - 1).astype(int))
    painted, hits, hoped = (np.zeros((_CELLS, _CELLS)) for _ in range(3))
    for array, values in ((painted, np.ones(len(found))), (hits, found), (hoped, expected)):
        np.add.at(array, cells, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        where = np.where((painted >= _LEAST_IN_CELL) & (hoped > 0.5), hits / hoped, np.nan)
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    height, width = mask.shape
    place = np.minimum(y * height, height - 1).astype(int), np.minimum(x * width, width - 1).astype(int)
    rim = depth[place] < _RIM * depth.max()
    deviation = np.sqrt((expected * (1 - expected))[rim].sum())
    hoped_there = expected[rim].sum()
    if not rim.any() or hoped_there == 0 or abs(found[rim].sum() - hoped_there) < _SURE * deviation:
        return where, None
    return where, float(found[rim].sum() / hoped_there)
