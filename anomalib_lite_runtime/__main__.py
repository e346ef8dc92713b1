"""``python -m anomalib_lite_runtime model.onnx FOLDER``: score pictures, and print or write what is said of them."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import sys
from pathlib import Path

from anomalib_lite_runtime.model import Model, Result, load, now

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
# Pictures and films that are not read: listed all the same, as unreadable, so that nobody takes them for looked at.
FOREIGN_SUFFIXES = (
    ".gif", ".apng", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".avif", ".heic", ".heif", ".dng", ".raw", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".rw2", ".raf", ".dib", ".tga", ".pcx", ".ico", ".svg", ".psd", ".exr", ".hdr", ".pfm",
    ".pam", ".dcm", ".fits", ".webm", ".mp4", ".avi", ".mov", ".mkv", ".mpg",
)  # fmt: skip
# What a spreadsheet takes for a formula; as in the library.
_FORMULA = re.compile(r"[\s\x00-\x20\u200b-\u200f\ufeff]*[=+\-@＝＋－＠]|[\t\r\n]")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 something was unreadable with --strict, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="anomalib_lite_runtime", description=__doc__)
    parser.add_argument("model", type=Path, help="graph written by anomalib-lite export")
    parser.add_argument("images", nargs="+", type=Path, help="images, or folders of images")
    parser.add_argument("--csv", type=Path, help="write the scores to this CSV file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when an image is unreadable")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime [default: one per core]")
    given = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may hold characters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        model = load(given.model, threads=given.threads)
        results = model.score_all(listed(given.images), regions=given.json)
        if given.csv is not None:
            write_csv(given.csv, model, results)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(model.to_dict(results)) if given.json else as_text(model, results))
    unreadable = [result for result in results if result.score is None]
    for result in unreadable:
        print(f"unreadable: {result.reason}", file=sys.stderr)
    return int(bool(unreadable) and given.strict)


def listed(paths: list[Path]) -> list[tuple[str, Path]]:
    """Ids and paths of pictures: of one folder their paths in it, as the library calls them."""
    found = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; check the path")
        if not path.is_dir():
            found.append((os.fspath(path), path))
            continue
        inside = sorted(
            (Path(folder, name).relative_to(path).as_posix())
            for folder, folders, names in os.walk(path)
            if not any(part.startswith(".") for part in Path(folder).relative_to(path).parts)
            for name in names
            if not name.startswith(".") and name.lower().endswith((*SUFFIXES, *FOREIGN_SUFFIXES))
        )
        if not any(name.lower().endswith(SUFFIXES) for name in inside):
            raise FileNotFoundError(f"{path}: no images; looked in all its folders for {' '.join(SUFFIXES)}")
        found += [(name if len(paths) == 1 else (path / name).as_posix(), path / name) for name in inside]
    return found


def write_csv(path: Path, model: Model, results: list[Result]) -> None:
    """One line per image, as the library's `Scores.to_csv`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    heads = ["threshold", "false_alarm_rate", "model", "time"]
    writer.writerow(["id", "score", "p_value", "alarm", "verdict", "unreadable", *heads])
    by = [f"{model.threshold:.6g}", f"{model.metadata['false_alarm_rate']:.6g}", model.metadata["model"], now()]
    for result in results:
        if result.score is not None:
            alarm = str(int(result.verdict == "alarm"))
            told = [f"{result.score:.6g}", f"{result.p_value:.6g}", alarm, result.verdict, ""]
            writer.writerow([_cell(result.id), *told, *by])
    for result in results:
        if result.score is None:
            writer.writerow([_cell(result.id), "", "", "", result.verdict, _cell(result.reason), *by])
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(text.getvalue().encode("utf-8", errors="backslashreplace"))
    os.replace(part, path)


def as_text(model: Model, results: list[Result]) -> str:
    """A line per image, and how many alarm."""
    scored = [result for result in results if result.score is not None]
    lines = [
        f"{result.verdict:10}  score {result.score:8.4f}  p {result.p_value:.4f}  {result.id}" for result in scored
    ]
    alarms = sum(result.verdict == "alarm" for result in scored)
    return "\n".join([*lines, f"{alarms} of {len(scored)} images alarm (threshold {model.threshold:.4f})"])


def _cell(value: str) -> str:
    return ("'" + value if _FORMULA.match(value) else value).replace("\0", "\\x00")


if __name__ == "__main__":
    sys.exit(main())
