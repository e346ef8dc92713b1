"""How a part type goes: which model judges, and what its last verdicts say of alarms, of drift, and of time.

In: the history. Out: numbers for charts, each computed once as verdicts come, all since the version that judges was
released. What is promised speaks of good parts, and among those that come are bad ones; so the alarm rate stands beside
the band of counts that chance allows if all are good, and lying above it is news, not a fault.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import cache
from typing import Any

import numpy as np

from anomalib_lite.fitted.calibration import NO_VERDICT
from anomalib_lite.fitted.coverage import alarm_band
from anomalib_lite.fitted.drift import DriftMonitor, tied_share
from anomalib_lite.serving.history import ALARM, History
from anomalib_lite.serving.line import Line

# The last parts that charts show, and that a rate is of: a shift's trouble is seen, an hour's chance is not.
_SHOWN = 200
_MOST_AGAIN = 5000  # verdicts that are gone through again when the server starts


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


class Course:
    """What the verdicts of a part type's current version say, one after the other; safe from any thread.

    After a restart it goes on with the last 5000 verdicts of that version.
    """

    def __init__(self, line: Line, history: History):
        calibration = line.judge.detector.fitted_.calibration
        self._line, self._history, self._version = line, history, line.version.number
        self._promised, self._smallest = calibration.guaranteed_rate, calibration.smallest_rate
        self._band = cache(self._band_of)
        self._monitor = DriftMonitor(
            n_calibration=calibration.n, tolerated_defects=0.05, tied=tied_share(calibration.scores)
        )
        self._seen = 0
        # Of the last parts: whether they alarmed; and as of each, the share of alarms with its band, and the evidence.
        self._alarms: deque[bool] = deque(maxlen=_SHOWN)
        self._rates: deque[tuple[float, float, float]] = deque(maxlen=_SHOWN)
        self._evidence: deque[float] = deque(maxlen=_SHOWN)
        self._milliseconds: deque[float] = deque(maxlen=_SHOWN)
        self._asking = threading.Lock()

    def tell(self) -> dict[str, Any]:
        """Alarms, drift and time taken, by now."""
        with self._asking:
            self._go_on()
            return {"alarms": self._of_alarms(), "drift": self._of_drift(), "latency": self._of_latency()}

    def _go_on(self) -> None:
        new = self._history.course(self._line.part, self._version, since=self._seen, limit=_MOST_AGAIN)
        for entry in new:
            self._milliseconds.append(entry["milliseconds"])
            if entry["verdict"] == NO_VERDICT:
                continue
            self._alarms.append(entry["verdict"] == ALARM)
            self._rates.append((sum(self._alarms) / len(self._alarms), *self._band(len(self._alarms))))
            self._monitor.update(entry["p_value"])
            self._evidence.append(self._monitor.wealth)
        self._seen = new[-1]["id"] if new else self._seen

    def _of_alarms(self) -> dict[str, Any]:
        rates, low, high = zip(*self._rates, strict=True) if self._rates else ((), (), ())
        return {
            "promised": self._promised,
            "judged": len(self._alarms),
            "alarms": sum(self._alarms),
            "rates": rates,
            "low": low,
            "high": high,
        }

    def _of_drift(self) -> dict[str, Any]:
        return {
            "alarm": self._monitor.alarm,
            "direction": self._monitor.direction,
            "seen": self._monitor.n_seen,
            "explanation": self._monitor.explain(),
            "evidence": list(self._evidence),
            "level": self._monitor.level,
            "alarmed_at": self._monitor.alarmed_at,
        }

    def _of_latency(self) -> dict[str, Any]:
        taken = list(self._milliseconds)
        median, p95 = np.percentile(taken, [50, 95]).tolist() if taken else (None, None)
        return {"milliseconds": taken, "median": median, "p95": p95}

    def _band_of(self, n: int) -> tuple[float, float]:
        """Shares of alarms among `n` parts that chance allows 19 times in 20, if all are good and the promise holds."""
        if not 0 < self._promised < 1:
            return 0.0, 1.0
        low, high = alarm_band(self._promised, n, self._smallest)
        return low / n, high / n
