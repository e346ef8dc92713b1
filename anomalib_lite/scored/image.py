"""One image out of many that were scored: what `Scores` hands out when it is asked for one, or gone through."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from anomalib_lite.fitted.calibration import ALARM
from anomalib_lite.fitted.core import Nearest
from anomalib_lite.locating.regions import DefectRegion


class Mapped(Protocol):
    """Scores with maps, by position."""

    @property
    def patch_scores(self) -> np.ndarray | None: ...
    def anomaly_map(self, i: int, size: tuple[int, int] | None = None) -> np.ndarray: ...
    def regions(self, i: int, *, min_area: float = 0.0, max_regions: int | None = None) -> list[DefectRegion]: ...


@dataclass(frozen=True)
class ScoredImage:
    """What a detector says of one image.

    Attributes
    ----------
    id : str
    score : float
        Anomaly score; higher = more anomalous.
    p_value : float
        Share of good images expected to score at least as high.
    verdict : "good", "look again" or "alarm"
    note : str
        What is not shown of the image, or why it alarms whatever its score; "" for nothing.
    size : (height, width) in pixels
    nearest : Nearest or None
        The worst patch, and the patch of a training image nearest to it; see `Scores.nearest`.
    whole_score : float or None
        Level "both": the score of the image compared as a whole, in the same unit.
    registered : bool or None
        Whether the fixture found the part; None without one.
    """

    id: str
    score: float
    p_value: float
    verdict: str
    note: str
    size: tuple[int, int]
    nearest: Nearest | None
    whole_score: float | None
    registered: bool | None
    _scores: Mapped = field(repr=False, compare=False)
    _position: int = field(repr=False, compare=False)

    @property
    def alarm(self) -> bool:
        """Whether the verdict is "alarm"."""
        return self.verdict == ALARM

    def anomaly_map(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Anomaly map (H, W) float32; see `Scores.anomaly_map`, also for what is raised."""
        return self._scores.anomaly_map(self._position, size)

    def regions(self, *, min_area: float = 0.0, max_regions: int | None = None) -> list[DefectRegion]:
        """Where it is unlike the good ones, found when asked for; see `Scores.regions`, also for what is raised."""
        return self._scores.regions(self._position, min_area=min_area, max_regions=max_regions)

    def to_dict(self, *, min_area: float = 0.0, max_regions: int | None = None) -> dict[str, Any]:
        """Everything but the map, JSON-able, with its `regions` if there are maps; see `Scores.to_dict`."""
        entry: dict[str, Any] = {
            "id": self.id,
            "score": self.score,
            "p_value": self.p_value,
            "alarm": self.alarm,
            "verdict": self.verdict,
        }
        if self.registered is not None:
            entry["registered"] = self.registered
        if self.whole_score is not None:
            entry["whole_score"] = self.whole_score
        if self.nearest is not None:
            entry["nearest"] = asdict(self.nearest)
        if self._scores.patch_scores is not None:
            found = self.regions(min_area=min_area, max_regions=max_regions)
            entry["regions"] = [region.to_dict() for region in found]
        return entry
