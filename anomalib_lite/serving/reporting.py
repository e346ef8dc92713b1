"""Reports of what was judged, by shift, day or lot, and its export for other programs."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anomalib_lite.files.tables import as_text as cell
from anomalib_lite.files.tables import write_csv
from anomalib_lite.serving.history import COLUMNS, VERDICTS

_FIRST_SHIFT, _HOURS = 6, 8
_COLUMNS = ("id", *(one.name for one in COLUMNS))


def report(entries: Iterable[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Counts of verdicts, and what people said, per part type and shift, day or lot, in the order they come.

    Raises
    ------
    ValueError
        If it is by something else.
    """
    if by not in ("shift", "day", "lot"):
        raise ValueError(f"--by {by}: choose shift, day or lot")
    found: dict[tuple[str, str], Counter[str]] = {}
    for entry in entries:
        counts = found.setdefault((entry["part"], _period(entry, by)), Counter())
        counts[entry["verdict"]] += 1
        if entry["good"] is not None:
            alarm = entry["verdict"] == "alarm"
            counts[
                "false alarms" if entry["good"] and alarm else "misses" if not entry["good"] and not alarm else ""
            ] += 1
    return [
        {
            "part": part,
            by: period,
            **{verdict: counts[verdict] for verdict in VERDICTS},
            "false alarms": counts["false alarms"],
            "misses": counts["misses"],
        }
        for (part, period), counts in found.items()
    ]


def as_text(found: list[dict[str, Any]], by: str) -> str:
    """A report as a table to read."""
    if not found:
        return "nothing has been judged"
    rows = [list(found[0]), *([str(value) for value in line.values()] for line in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = ["  ".join(f"{value:{'<' if i < 2 else '>'}{widths[i]}}" for i, value in enumerate(row)) for row in rows]
    return "\n".join([*text, "", f"by {by}; false alarms and misses are what people said of them"])


def export_csv(entries: Iterable[dict[str, Any]], path: Path, *, decimal_comma: bool = False) -> Path:
    """Write every verdict to a CSV file; `decimal_comma` as of `Scores.to_csv`."""

    def text(value: Any) -> str:
        if decimal_comma and isinstance(value, float):
            return str(value).replace(".", ",")
        return cell("" if value is None else str(_plain(value)))

    def lines() -> Iterator[list[str]]:
        yield list(_COLUMNS)
        for entry in entries:
            yield [text(entry[name]) for name in _COLUMNS]

    return write_csv(path, lines(), decimal_comma=decimal_comma)


def export_parquet(entries: Iterable[dict[str, Any]], path: Path) -> Path:
    """Write every verdict to a Parquet file.

    Raises
    ------
    ImportError
        Without pyarrow.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install pyarrow") from error
    kinds = {"Text": arrow.string(), "Float": arrow.float64(), "Integer": arrow.int64(), "Boolean": arrow.bool_()}
    schema = arrow.schema([("id", arrow.int64()), *((one.name, kinds[one.kind]) for one in COLUMNS)])
    rows = [{name: _plain(entry[name]) for name in _COLUMNS} for entry in entries]
    parquet.write_table(arrow.Table.from_pylist(rows, schema=schema), path)
    return path


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _period(entry: dict[str, Any], by: str) -> str:
    if by == "lot":
        return str(entry["lot"])
    time = datetime.datetime.fromisoformat(entry["time"])
    if by == "day":
        return time.date().isoformat()
    began = time - datetime.timedelta(hours=(time.hour - _FIRST_SHIFT) % _HOURS)
    return f"{began:%Y-%m-%d %H}:00"
