"""Where to put the threshold when a few defects are known: a detector and pictures of them in, a table of counts out.

Good images alarm and bad ones are missed; which is worse, the line knows. Every row says how many of each, and between
which shares the truth may lie (Clopper and Pearson, Biometrika 26 (1934)): that none of three known defects is missed
still allows most of them to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomalib_lite.detector import Detector
from anomalib_lite.evaluation.metrics import binomial_interval


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold would have done.

    Attributes
    ----------
    threshold : in the unit of the scores; an image above it alarms
    n_good, alarms : good images, and how many of them alarm
    n_bad, missed : known defects, and how many of them do not
    alarm_interval, missed_interval : 95 % intervals of the two shares
    """

    threshold: float
    n_good: int
    alarms: int
    n_bad: int
    missed: int
    alarm_interval: tuple[float, float]
    missed_interval: tuple[float, float]

    def to_text(self) -> str:
        """One line."""
        good, bad = (f"{low:.1%} to {high:.1%}" for low, high in (self.alarm_interval, self.missed_interval))
        return (
            f"above {self.threshold:.6g}: {self.alarms} of {self.n_good} good alarm ({good}), "
            f"{self.missed} of {self.n_bad} bad are missed ({bad})"
        )


@dataclass(frozen=True)
class OperatingPoints:
    """The thresholds worth choosing from, the lowest first: each next one misses more, and alarms less.

    Examples
    --------
    >>> points = OperatingPoints.of(good=[1.0, 2.0, 3.0, 6.0], bad=[5.0, 8.0, 9.0])
    >>> [(point.threshold, point.alarms, point.missed) for point in points]
    [(4.0, 1, 0), (7.0, 0, 1)]
    >>> points.none_missed().threshold, points.by_cost(missed=1, alarm=50, defect_rate=0.5).threshold
    (4.0, 7.0)
    """

    points: tuple[OperatingPoint, ...]

    @classmethod
    def of(cls, good: Any, bad: Any) -> OperatingPoints:
        """From scores of good images (n,), each as if unseen, and of known defects (m,).

        Raises
        ------
        ValueError
            If there are none of one kind, or a score is no number.
        """
        goods, bads = (np.sort(np.asarray(values, dtype=np.float64).ravel()) for values in (good, bad))
        if not len(goods) or not len(bads):
            raise ValueError(f"{len(goods)} good and {len(bads)} bad images; at least one of each is needed")
        if not np.isfinite(goods).all() or not np.isfinite(bads).all():
            raise ValueError("a score is no finite number")
        points: list[OperatingPoint] = []
        for missed in range(len(bads) + 1):
            # The highest threshold that misses no more, in the middle of the gap below the next bad image.
            if missed < len(bads):
                known = np.concatenate([goods, bads[:missed]])
                below = known[known < bads[missed]]
                lower = below.max() if len(below) else bads[missed] - 1.0
                threshold = float((lower + bads[missed]) / 2)
                if threshold >= bads[missed]:  # neighbours among floats
                    threshold = float(lower)
            else:
                threshold = float(max(goods[-1], bads[-1]))
            alarms, lost = int((goods > threshold).sum()), int((bads <= threshold).sum())
            if points and alarms >= points[-1].alarms:
                continue
            points.append(
                OperatingPoint(
                    threshold,
                    len(goods),
                    alarms,
                    len(bads),
                    lost,
                    binomial_interval(alarms, len(goods)),
                    binomial_interval(lost, len(bads)),
                )
            )
        return cls(tuple(points))

    def __iter__(self) -> Iterator[OperatingPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def none_missed(self) -> OperatingPoint:
        """The highest threshold that finds every known defect."""
        return self.points[0]

    def by_cost(self, *, missed: float, alarm: float, defect_rate: float) -> OperatingPoint:
        """The cheapest threshold.

        Parameters
        ----------
        missed : what a missed defect costs, in any unit
        alarm : what a false alarm costs, in the same
        defect_rate : share of defects among all parts, in (0, 1)

        Raises
        ------
        ValueError
            For a negative cost, or a rate that is no share.
        """
        if not (missed >= 0 and alarm >= 0 and 0 < defect_rate < 1):
            raise ValueError(
                f"missed={missed}, alarm={alarm}, defect_rate={defect_rate}: costs are not negative, and the rate is a "
                "share in (0, 1), such as 0.01"
            )

        def cost(point: OperatingPoint) -> float:
            lost = defect_rate * missed * point.missed / point.n_bad
            return lost + (1 - defect_rate) * alarm * point.alarms / point.n_good

        return min(self.points, key=cost)

    def to_text(self) -> str:
        """The table, to read."""
        return "\n".join(point.to_text() for point in self.points)


def operating_points(detector: Detector, bad: Any) -> OperatingPoints:
    """The thresholds worth choosing from, given a few known defects.

    Good images are those that calibrate the detector, each scored as if it had not been learnt from. Take one with
    ``detector.at_threshold(point.threshold)``, or two: alarm above the one and ``look_again`` above the other.

    Parameters
    ----------
    detector : a fitted Detector
    bad : folder, paths, arrays, PIL images, tensor or ImageSource

    Raises
    ------
    ValueError
        If none of the bad images can be read.

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]
    >>> bad = [render_part(np.random.default_rng(i), 64, "bent")[0] for i in range(3)]
    >>> points = operating_points(Detector(image_size=64, false_alarm_rate=0.1).fit(parts), bad)
    >>> points.none_missed().missed
    0
    """
    scores = detector.score(bad)
    if not len(scores):
        reasons = "".join(f"\n  {entry.reason}" for entry in scores.unreadable[:5])
        raise ValueError(f"none of the images of defects can be read{reasons}")
    return OperatingPoints.of(detector.fitted_.calibration.scores, scores.scores)
