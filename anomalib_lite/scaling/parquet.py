"""Any number of images scored into a folder of Parquet files, so that what was written stays when the run is killed.

Every chunk of images becomes one file with one row group, ``part-000000.parquet``, put in place whole; a manifest
beside them says of which model and images they are. A run that finds such a folder goes on where the other
stopped: a chunk is done when its file is there, so no row comes twice, whatever was killed when. The folder is read as
one table by whatever reads Parquet data sets (``pandas.read_parquet(folder)``). Memory does not grow with the number of
images, but for their ids.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.fitted.calibration import NO_VERDICT
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.machine.threads import one_blas_thread
from anomalib_lite.results import Scores, Scoring
from anomalib_lite.scaling.chunks import Chunk, Packed, each_alone, engine_in_force, over_chunks
from anomalib_lite.scaling.sending import Some
from anomalib_lite.version import __version__

CHUNK = 256  # images of a file, unless something else is said
MANIFEST = "_manifest.json"
_FORMAT = 1
_MOST_REGIONS = 100  # told of one picture, as on the line


@dataclass(frozen=True)
class Written:
    """What is in a folder of scores.

    Attributes
    ----------
    folder : Path
    rows : images there, one row each
    verdicts : how many rows have which verdict
    resumed : rows that were there already
    reasons : the first few of those without a verdict, by id
    """

    folder: Path
    rows: int
    verdicts: dict[str, int]
    resumed: int
    reasons: dict[str, str]


def score_to_parquet(detector: Scoring, images: Any, folder: str | os.PathLike[str], *, chunk: int = CHUNK) -> Written:
    """Score images into a folder of Parquet files, or go on where a run into it stopped.

    With ``joblib.parallel_config`` around it, other processes or machines score the chunks; see `scaling.chunks`.

    Parameters
    ----------
    detector : Detector, fitted
    images : as for `Detector.score`
    folder : path
        Made if missing. Columns: ``number`` (place in the list), ``id``, ``score``, ``p_value``, ``verdict``,
        ``reason`` (why there is no verdict, or what is not shown of the picture), ``regions`` (a list of left, top,
        right, bottom, area in pixels, peak, mean), ``height``, ``width``, ``threshold``, ``look_again``,
        ``false_alarm_rate``, ``model`` (SHA-256). An image that cannot be judged is a row too, with the verdict "no
        verdict" and no score.
    chunk : int
        Images of a file; what is lost at most when the run is killed. A run that goes on takes that of the first.

    Returns
    -------
    Written

    Raises
    ------
    ImportError
        Without pyarrow.
    ValueError
        If the folder holds scores of another model or of other images, or something else.
    OSError
        If it cannot be written.
    """
    _arrow()
    if chunk < 1:
        raise ValueError(f"chunk={chunk} is a number of images, at least 1")
    source = detector.open(images)
    folder = Path(folder)
    manifest = _begun(folder, detector, source, chunk)
    size = manifest["chunk"]
    starts = range(0, len(source), size)
    missing = [number for number, start in enumerate(starts) if not _is_there(folder, number, source, start, size)]
    rows, verdicts = 0, Counter[str]()
    reasons: dict[str, str] = {}
    for number in sorted(set(range(len(starts))) - set(missing)):
        rows += _count(folder / _name(number), verdicts, reasons)
    resumed = rows
    for number, table in _tables(detector, source, missing, size):
        content = io.BytesIO()
        _arrow().parquet.write_table(table, content, row_group_size=len(table))
        path = write_atomically(folder / _name(number), content.getvalue())
        rows += _count(path, verdicts, reasons)
    return Written(folder, rows, dict(verdicts), resumed, reasons)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'anomalib_lite[parquet]'") from error
    return pyarrow


def _begun(folder: Path, detector: Scoring, source: ImageSource, chunk: int) -> dict[str, Any]:
    """The manifest of a folder, read or written."""
    path = folder / MANIFEST
    ids = hashlib.sha256()
    for name in source.ids:
        ids.update(name.encode("utf-8", "backslashreplace") + b"\0")
    wanted = {"format": _FORMAT, "model": detector.digest, "images": ids.hexdigest(), "count": len(source)}
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            there = {name: found[name] for name in wanted}
            if not isinstance(found["chunk"], int) or found["chunk"] < 1:
                raise ValueError("chunk")
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); give another folder") from error
        for name, what in (("format", "of another format"), ("model", "of another model (or another threshold of it)")):
            if there[name] != wanted[name]:
                raise ValueError(f"{folder} holds scores {what}; give another folder")
        if there != wanted:
            raise ValueError(
                f"{folder} holds scores of {there['count']} images, and other ones than these {len(source)}; give the "
                "same images to go on, or another folder"
            )
        return dict(found)
    if folder.exists() and (not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir())):
        raise ValueError(f"{folder} is there and holds no scores of a run before; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {**wanted, "chunk": chunk, "anomalib_lite": __version__}
    write_atomically(path, json.dumps(manifest, indent=1).encode())
    return manifest


def _name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _is_there(folder: Path, number: int, source: ImageSource, start: int, size: int) -> bool:
    """Whether a chunk's file is there, and whole: it was put there so, but a disk may have lost it."""
    path = folder / _name(number)
    if not path.is_file():
        return False
    try:
        return bool(_arrow().parquet.read_metadata(path).num_rows == min(size, len(source) - start))
    except (OSError, ValueError):  # pyarrow's own error is a ValueError
        warnings.warn(f"{path} is damaged, and written again", stacklevel=3)
        return False


def _count(path: Path, verdicts: Counter[str], reasons: dict[str, str]) -> int:
    table = _arrow().parquet.read_table(path, columns=["id", "verdict", "reason"])
    column = table.column("verdict").to_pylist()
    verdicts.update(column)
    if NO_VERDICT in column and len(reasons) < 5:
        lost = [row for row in table.to_pylist() if row["verdict"] == NO_VERDICT]
        reasons.update({row["id"]: row["reason"] for row in lost[: 5 - len(reasons)]})
    return len(column)


def _tables(detector: Scoring, source: ImageSource, numbers: Sequence[int], size: int) -> Iterator[tuple[int, Any]]:
    """The tables of chunks by their numbers, here or by other processes."""
    engine = engine_in_force() if numbers else None
    if engine is None:
        for number in numbers:
            chunk = _chunk(source, number, size)
            yield number, _table(detector, chunk.indices, _rows(detector, chunk))
        return
    waiting: list[dict[str, Any]] = []
    left = list(numbers)
    chunks = (_chunk(source, number, size) for number in numbers)
    for done in over_chunks(engine, _rows, Packed(detector), chunks):
        # What came back in pieces, since a worker died at one of the images, is put together again.
        waiting += [_no_verdict(entry) if isinstance(entry, UnreadableImage) else entry for entry in done.found]
        while left and len(waiting) >= (here := min(size, len(source) - left[0] * size)):
            number = left.pop(0)
            yield number, _table(detector, range(number * size, number * size + here), waiting[:here])
            waiting = waiting[here:]


def _chunk(source: ImageSource, number: int, size: int) -> Chunk:
    return Chunk.of(source, range(number * size, min((number + 1) * size, len(source))))


def _rows(detector: Scoring, chunk: Chunk) -> list[dict[str, Any]]:
    """A row for every image of a chunk, in their order; without what is the same for all."""

    def work(some: Chunk) -> list[dict[str, Any]]:
        part = Some(some.source, some.indices)
        with one_blas_thread():
            scores = detector.score(part)
            lost = {entry.index: entry for entry in scores.unreadable}
            readable = iter(range(len(scores)))
            return [
                _no_verdict(replace(lost[i], index=index)) if i in lost else _row(scores, next(readable), index)
                for i, index in enumerate(some.indices)
            ]

    found = each_alone(work, chunk, strict=False)
    return [_no_verdict(row) if isinstance(row, UnreadableImage) else row for row in found]


def _row(scores: Scores, i: int, number: int) -> dict[str, Any]:
    regions = scores.regions(i, max_regions=_MOST_REGIONS) if scores.patch_scores is not None else []
    height, width = scores.image_sizes[i]
    return {
        "number": number,
        "id": scores.ids[i],
        "score": float(scores.scores[i]),
        "p_value": float(scores.p_values[i]),
        "verdict": scores.verdicts[i],
        "reason": scores.notes.get(scores.ids[i], ""),
        "height": height,
        "width": width,
        "regions": [
            {
                **dict(zip(("left", "top", "right", "bottom"), map(float, region.box), strict=True)),
                "area": float(region.area),
                "peak": float(region.peak),
                "mean": float(region.mean),
            }
            for region in regions
        ],
    }


def _no_verdict(image: UnreadableImage) -> dict[str, Any]:
    return {"number": image.index, "id": image.id, "verdict": NO_VERDICT, "reason": image.reason, "regions": []}


def _table(detector: Scoring, numbers: Sequence[int], rows: list[dict[str, Any]]) -> Any:
    assert [row["number"] for row in rows] == list(numbers)
    arrow = _arrow()
    calibration = detector.fitted_.calibration
    same = {
        "threshold": calibration.threshold,
        "look_again": calibration.look_again,
        "false_alarm_rate": calibration.false_alarm_rate,
        "model": detector.digest,
    }
    number, text = arrow.float64(), arrow.string()
    region = [(name, number) for name in ("left", "top", "right", "bottom", "area", "peak", "mean")]
    schema = arrow.schema(
        [
            ("number", arrow.int64()),
            ("id", text),
            ("score", number),
            ("p_value", number),
            ("verdict", text),
            ("reason", text),
            ("regions", arrow.list_(arrow.struct(region))),
            ("height", arrow.int32()),
            ("width", arrow.int32()),
            ("threshold", number),
            ("look_again", number),
            ("false_alarm_rate", number),
            ("model", text),
        ],
        metadata={"anomalib_lite": __version__, "model": detector.digest},
    )
    # File names need not be valid text, and Parquet's are.
    return arrow.Table.from_pylist([{**_valid(row), **same} for row in rows], schema=schema)


def _valid(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: row[name].encode("utf-8", "backslashreplace").decode() for name in ("id", "reason")}
    return {**row, **texts}
