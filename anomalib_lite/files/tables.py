"""Tables as CSV files, whose cells come from strangers: a spreadsheet shows them rather than runs them."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from anomalib_lite.files.atomic import write_atomically

# What a spreadsheet takes for a formula, behind what it strips; a full-width sign counts for some of them.
_FORMULA = re.compile(r"[\s\x00-\x20\u200b-\u200f\ufeff]*[=+\-@＝＋－＠]|[\t\r\n]")


def write_csv(
    path: str | os.PathLike[str], lines: Iterable[Sequence[str | float]], *, decimal_comma: bool = False
) -> Path:
    """Write lines of cells, atomically, numbers with six digits; returns the path.

    `decimal_comma` is for spreadsheets of countries that write 0,5: semicolons between cells, and a mark of UTF-8 at
    the start, without which they take the file for one in their own old character set.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=";" if decimal_comma else ",")
    writer.writerows([_digits(cell, decimal_comma) for cell in line] for line in lines)
    # File names need not be valid text; what is not comes out as \\x.. instead of stopping the run.
    content = text.getvalue().encode("utf-8", errors="backslashreplace")
    return write_atomically(Path(path), codecs.BOM_UTF8 + content if decimal_comma else content)


def as_text(value: str) -> str:
    """A cell that a spreadsheet shows rather than runs or cuts short: file names come from strangers."""
    return ("'" + value if _FORMULA.match(value) else value).replace("\0", "\\x00")


def _digits(cell: str | float, decimal_comma: bool) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:.6g}".replace(".", "," if decimal_comma else ".")
