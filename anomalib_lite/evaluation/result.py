"""What comes back of an evaluation: every metric of a detector on a data set. Frozen, plain values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from anomalib_lite.fitted.coverage import MEANING, Direction
from anomalib_lite.images.loading import UnreadableImage


@dataclass(frozen=True)
class AtRate:
    """What a threshold for one false-alarm rate did on a test set; intervals and the band of chance are 95 %, binomial.

    `coverage` says on which side of the band of the target the false alarms lie: "above" is more than chance allows,
    "below" is fewer, which costs recall. None where there are no good test images.
    """

    false_alarm_rate_target: float
    threshold: float
    guarantee_met: bool
    false_alarm_rate_observed: float | None
    false_alarm_rate_interval: tuple[float, float] | None
    false_alarm_rate_within_band: bool | None
    recall_at_threshold: float | None
    recall_interval: tuple[float, float] | None = None
    coverage: Direction | None = None

    def to_text(self, n_good: int) -> str:
        """One line: recall beside the false alarms of `n_good` good images, and whether chance explains these."""
        rate = f"at {100 * self.false_alarm_rate_target:.3g} % "
        rate += "promised" if self.guarantee_met else "asked, which is not promised"
        recall = f"recall {_number(self.recall_at_threshold, 3)}"
        if self.recall_interval is not None:
            recall += f" (95 % interval {_number(self.recall_interval[0], 3)} to {_number(self.recall_interval[1], 3)})"
        if self.false_alarm_rate_observed is None:
            return f"{rate}: {recall}, false alarms n/a: no good test image"
        alarms = f"false alarms {_number(self.false_alarm_rate_observed, 3)} "
        alarms += f"({round(self.false_alarm_rate_observed * n_good)} of {n_good} good images)"
        return f"{rate}: {recall}, {alarms}{self._aside()}"

    def _aside(self) -> str:
        if self.coverage in (None, "within"):
            return ""
        meaning = MEANING[self.coverage]
        return f"; {meaning if self.guarantee_met else meaning.replace('promised', 'asked', 1)}"


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How a detector did on a data set in MVTec layout. Metrics that cannot be computed are None, with `reasons`.

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import make_metal_nut
    >>> from anomalib_lite import evaluate
    >>> folder = make_metal_nut(tempfile.mkdtemp(), n_train=10, n_good=4, n_defect=1, size=64)
    >>> found = evaluate(folder, image_size=64, level="global")
    >>> found.n_test_good, found.pixel_auroc, len(found.reasons) > 0
    (4, None, True)
    """

    image_auroc: float | None
    image_auroc_ci: tuple[float, float] | None
    misordered_pairs: float | None
    image_ap: float | None
    f1_max: float | None
    fpr_at_full_recall: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    aupro: float | None
    n_train: int
    n_test: int
    n_test_good: int
    n_masks: int
    n_unreadable: int
    fit_seconds: float | None
    seconds_per_image: float | None
    peak_rss_mb: float | None
    model_mb: float | None
    threshold: float
    false_alarm_rate_target: float
    false_alarm_rate_observed: float | None
    recall_at_threshold: float | None
    guarantee_met: bool
    guarantee: str
    at_rates: list[AtRate]
    per_defect: dict[str, float]
    reasons: list[str]
    unreadable: list[UnreadableImage]
    pairing_problems: list[str]
    config: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"Evaluation({self.n_test_good} good and {self.n_test - self.n_test_good} defective images: recall "
            f"{_number(self.recall_at_threshold, 3)} and false alarms {_number(self.false_alarm_rate_observed, 3)} at "
            f"{100 * self.false_alarm_rate_target:.3g} % {'promised' if self.guarantee_met else 'asked'}, image AUROC "
            f"{_number(self.image_auroc)}, pixel AUROC {_number(self.pixel_auroc)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict())

    def to_text(self) -> str:
        """The metrics, to read: first what happens on the line at each rate, then how well scores are ordered."""
        low, high = self.image_auroc_ci or (None, None)
        lines = [
            *(at.to_text(self.n_test_good) for at in self.at_rates),
            f"image AUROC   {_number(self.image_auroc)}  (95 % interval {_number(low)} to {_number(high)}, "
            f"{_number(self.misordered_pairs, 1)} misordered pairs)",
            f"image AP      {_number(self.image_ap)}",
            f"best F1       {_number(self.f1_max)}",
            f"FPR at full recall {_number(self.fpr_at_full_recall)}",
            f"pixel AUROC   {_number(self.pixel_auroc)}   pixel AP {_number(self.pixel_ap)}   "
            f"AUPRO {_number(self.aupro)}   ({self.n_masks} masks)",
            *(f"  {kind:<20} image AUROC {_number(value)}" for kind, value in self.per_defect.items()),
            self.guarantee,
            f"{self.n_train} images fitted in {_number(self.fit_seconds, 1)} s; "
            f"{_number(None if self.seconds_per_image is None else 1000 * self.seconds_per_image, 1)} ms per image; "
            f"model {_number(self.model_mb, 2)} MB; peak memory {_number(self.peak_rss_mb, 0)} MB",
            *self.reasons,
            *(f"pairing: {problem}" for problem in self.pairing_problems[:3]),
        ]
        if len(self.pairing_problems) > 3:
            lines.append(f"… and {len(self.pairing_problems) - 3} more pairing problems")
        return "\n".join(lines)


def _number(value: float | None, digits: int = 4) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
