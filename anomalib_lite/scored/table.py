"""Scores as a table: a line per image, unreadable ones included, for CSV files and data frames.

Every line says by which threshold, at which rate, by which model and when it was judged: tables are cut, joined and
kept for years, and a verdict is worth nothing without them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anomalib_lite.files.tables import as_text, write_csv
from anomalib_lite.fitted.calibration import ALARM, GOOD, LOOK_AGAIN, NO_VERDICT
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.scored.picking import Ordered


class Judged(Ordered, Protocol):
    """Scores with their verdicts."""

    @property
    def alarms(self) -> np.ndarray: ...
    @property
    def verdicts(self) -> list[str]: ...
    @property
    def unreadable(self) -> list[UnreadableImage]: ...
    @property
    def threshold(self) -> float: ...
    @property
    def false_alarm_rate(self) -> float: ...
    @property
    def guarantee_met(self) -> bool: ...
    @property
    def model(self) -> str: ...
    @property
    def time(self) -> str: ...


def columns(scores: Judged, overlays: Mapping[str, Path] | None = None) -> dict[str, list[Any]]:
    """The table by columns; None where an unreadable image has no value. `overlays`: by id, the file that shows it."""
    n, lost = len(scores.ids), len(scores.unreadable)
    ids = [*scores.ids, *(entry.id for entry in scores.unreadable)]
    table: dict[str, list[Any]] = {
        "id": ids,
        "score": [*scores.scores.tolist(), *[None] * lost],
        "p_value": [*scores.p_values.tolist(), *[None] * lost],
        "alarm": [*scores.alarms.tolist(), *[None] * lost],
        "verdict": [*scores.verdicts, *[NO_VERDICT] * lost],
        "unreadable": [*[""] * n, *(entry.reason for entry in scores.unreadable)],
        "threshold": [scores.threshold] * (n + lost),
        "false_alarm_rate": [scores.false_alarm_rate] * (n + lost),
        "model": [scores.model] * (n + lost),
        "time": [scores.time] * (n + lost),
    }
    if overlays is not None:
        table["overlay"] = [os.fspath(overlays.get(image_id, "")) for image_id in ids]
    return table


def to_csv(
    scores: Judged, path: str | os.PathLike[str], overlays: Mapping[str, Path] | None, *, decimal_comma: bool
) -> Path:
    """Write the table as CSV; see `Scores.to_csv`."""
    table = columns(scores, overlays)
    lines = zip(*([_cell(value) for value in column] for column in table.values()), strict=True)
    return write_csv(path, [list(table), *lines], decimal_comma=decimal_comma)


def to_frame(scores: Judged) -> Any:
    """The table as a pandas.DataFrame; see `Scores.to_frame`."""
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "to_frame makes a pandas.DataFrame, and pandas is not installed: pip install pandas; or take to_csv or "
            "to_dict, which need nothing"
        ) from None
    # Whether an image that cannot be read alarms is unknown, which a plain bool cannot be.
    return pandas.DataFrame(columns(scores)).astype({"score": float, "p_value": float, "alarm": "boolean"})


def in_a_line(scores: Judged) -> str:
    """How many got which verdict, by which threshold: "40 images: 35 good, 5 alarm; threshold 2.31, …"."""
    counted = Counter(scores.verdicts)
    told = ", ".join(f"{counted[verdict]} {verdict}" for verdict in (GOOD, LOOK_AGAIN, ALARM) if counted[verdict])
    n = len(scores.ids)
    text = f"{n} image{'' if n == 1 else 's'}{told and ': ' + told}"
    if scores.unreadable:
        text += f"; {len(scores.unreadable)} unreadable"
    text += f"; threshold {scores.threshold:.4g}, false-alarm rate {scores.false_alarm_rate:.4g}"
    return text if scores.guarantee_met else f"{text}, which is not promised"


def _cell(value: Any) -> str | float:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else value if isinstance(value, float) else as_text(value)
