"""What the commands of the first hour take from start to end: processor seconds and the clock, medians of some runs.

Forty good images and thirty new ones of a folder in MVTec layout are copied aside. Every command is a process of its
own, as a user starts it, so what is imported and compiled counts. Several checkouts take turns, run by run, so
that a busy machine is as busy for all of them.

    python benchmarks/first_hour.py DATA/metal_nut --checkout before=../before --checkout after=.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "score of one picture": "score model.safetensors new/000.png",
    "diagnose, 40 pictures": "diagnose good -o figures",
    "report, 30 pictures": "report model.safetensors new --good good -o page.html",
    "demo": "demo -o demo-output",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="folder in MVTec layout")
    parser.add_argument("--checkout", action="append", metavar="NAME=FOLDER", help="default: this one")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="comma-separated beginnings of commands")
    given = parser.parse_args()
    checkouts = dict(text.split("=", 1) for text in given.checkout or [f"here={Path(__file__).resolve().parents[1]}"])
    wanted = [name for name in COMMANDS if given.only is None or name.startswith(tuple(given.only.split(",")))]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for checkout, folder in checkouts.items():
            copied(given.dataset, Path(place) / checkout)
            run(Path(folder), Path(place) / checkout, "fit good -o model.safetensors")
        for _ in range(given.runs):
            for name in wanted:
                for checkout, folder in checkouts.items():
                    taken = run(Path(folder), Path(place) / checkout, COMMANDS[name])
                    found.setdefault((name, checkout), []).append(taken)
    print(f"| command | {' | '.join(checkouts)} |")
    print(f"| --- |{' --- |' * len(checkouts)}")
    for name in wanted:
        cells = []
        for checkout in checkouts:
            processor, clock = zip(*found[name, checkout], strict=True)
            cells.append(f"{statistics.median(processor):.1f} ({statistics.median(clock):.1f})")
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nprocessor seconds (and seconds by the clock)")


def copied(dataset: Path, place: Path) -> None:
    """Forty good images into `good`, and ten of each of the first three kinds of test images into `new`."""
    for folder in ("good", "new"):
        (place / folder).mkdir(parents=True)
    for path in sorted((dataset / "train" / "good").iterdir())[:40]:
        shutil.copy(path, place / "good")
    kinds = sorted((dataset / "test").iterdir())[:3]
    new = [path for kind in kinds for path in sorted(kind.iterdir())[:10]]
    for number, path in enumerate(new):
        shutil.copy(path, place / "new" / f"{number:03d}{path.suffix}")


def run(checkout: Path, place: Path, command: str) -> tuple[float, float]:
    """Processor seconds and seconds by the clock of a command of a checkout, run in a folder."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "anomalib_lite.cli", *command.split()],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - start


if __name__ == "__main__":
    main()
