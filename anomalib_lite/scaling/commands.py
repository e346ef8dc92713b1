"""What the command line does to score into Parquet; the command itself is `score`, with --parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer


def score_to_parquet(
    detector: Any, images: Any, folder: Path, *, chunk: int | None, as_json: bool, others: dict[str, Any]
) -> Any:
    """Score into a folder of Parquet files, or go on where that stopped, and print how many have which verdict.

    Returns what was written, see `parquet.score_to_parquet`.

    Raises
    ------
    ValueError
        If something else is to be written as well, which would have to be held in memory: `others`, by its flag.
    """
    from anomalib_lite.scaling import parquet

    if asked := [flag for flag, value in others.items() if value is not None]:
        raise ValueError(f"--parquet keeps no scores in memory to write {', '.join(asked)} from; score again for it")
    written = parquet.score_to_parquet(detector, images, folder, chunk=parquet.CHUNK if chunk is None else chunk)
    if as_json:
        typer.echo(json.dumps({"folder": str(written.folder), "rows": written.rows, "verdicts": written.verdicts}))
    else:
        told = ", ".join(f"{number} {verdict}" for verdict, number in sorted(written.verdicts.items()))
        before = f" ({written.resumed} were there)" if written.resumed else ""
        typer.echo(f"{written.rows} images: {told}; {written.folder}{before}")
    for reason in written.reasons.values():
        typer.echo(f"unreadable: {reason}", err=True)
    return written
