"""How a part type goes: the model that judges, and whether its p-values still are those of good parts."""

from __future__ import annotations

import threading
from typing import Any

from anomalib_lite.fitted.drift import DriftMonitor, tied_share
from anomalib_lite.serving.history import History
from anomalib_lite.serving.line import Line


def described(line: Line) -> dict[str, Any]:
    """The version that judges, JSON-able."""
    calibration = line.judge.detector.fitted_.calibration
    return {
        "part": line.part,
        "version": line.version.number,
        "digest": line.version.digest,
        "threshold": calibration.threshold,
        "false_alarm_rate": calibration.false_alarm_rate,
        "guarantee_met": calibration.guarantee_met,
    }


class Drift:
    """The step-by-step test of a part type's p-values, since its version judges."""

    def __init__(self, line: Line, history: History):
        calibration = line.judge.detector.fitted_.calibration
        self._line, self._history = line, history
        self._monitor = DriftMonitor(
            n_calibration=calibration.n, tolerated_defects=0.05, tied=tied_share(calibration.scores)
        )
        self._seen = 0
        self._telling = threading.Lock()

    def tell(self) -> dict[str, Any]:
        """What it says by now, the latest verdicts included."""
        with self._telling:
            return self._told()

    def _told(self) -> dict[str, Any]:
        new = self._history.entries(self._line.part, limit=1000, since=self._seen)
        for entry in reversed(new):
            if entry["version"] == self._line.version.number and entry["p_value"] is not None:
                self._monitor.update(entry["p_value"])
        self._seen = new[0]["id"] if new else self._seen
        return {
            "alarm": self._monitor.alarm,
            "direction": self._monitor.direction,
            "seen": self._monitor.n_seen,
            "explanation": self._monitor.explain(),
        }
