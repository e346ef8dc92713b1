"""Tables as CSV files, whose cells come from strangers: a spreadsheet shows them rather than runs them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from anomalib_lite.files.atomic import write_atomically

# What a spreadsheet takes for a formula, behind what it strips; a full-width sign counts for some of them.
_FORMULA = re.compile(r"[\s\x00-\x20\u200b-\u200f\ufeff]*[=+\-@＝＋－＠]|[\t\r\n]")


def write_csv(path: str | os.PathLike[str], lines: Iterable[Sequence[str]]) -> Path:
    """Write lines of cells, atomically; returns the path."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    # File names need not be valid text; what is not comes out as \\x.. instead of stopping the run.
    return write_atomically(Path(path), text.getvalue().encode("utf-8", errors="backslashreplace"))


def as_text(value: str) -> str:
    """A cell that a spreadsheet shows rather than runs or cuts short: file names come from strangers."""
    return ("'" + value if _FORMULA.match(value) else value).replace("\0", "\\x00")
