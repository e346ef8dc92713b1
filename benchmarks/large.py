"""Line-scan pictures and 20 megapixels: time per megapixel and peak memory, each in a process of its own.

    python benchmarks/large.py

Draws brushed surfaces of 20 000 × 4 096 and 4 000 × 5 000 pixels, fits on three of each, and scores and draws a fourth,
which has a dark streak, from a JPEG and from a PNG in colour: as a whole, and closer, by tiles. Memory is that of the
whole process; what it needs before it has seen a picture is told first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = {"line": (20_000, 4096), "20 megapixels": (4000, 5000)}
TILES = {"line": 1024, "20 megapixels": 512}


def surface(seed: int, size: tuple[int, int], streak: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width = size
    brushed = np.kron(rng.normal(size=(height // 4, width // 64 + 1)), np.ones((4, 64)))[:, :width]
    grey = 150 + 14 * brushed + 6 * rng.standard_normal(size, dtype=np.float32)
    if streak:
        grey[height // 3 : height // 3 + 60, width // 2 : width // 2 + 300] -= 90
    return np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def fit_one(folder: Path, parameters: dict) -> None:
    from anomalib_lite import Detector

    pictures = sorted(folder.glob("good_*.jpg"))
    detector = Detector(false_alarm_rate=0.25, **parameters).fit(pictures, groups="each")
    detector.save(folder / "model.safetensors")


def before(folder: Path) -> None:
    from anomalib_lite import Detector
    from anomalib_lite.machine.memory import peak_rss_mb

    Detector.load(folder / "model.safetensors").score([np.zeros((64, 64, 3), np.uint8)])
    print(json.dumps({"peak": peak_rss_mb()}))


def score_one(folder: Path, name: str) -> None:
    from anomalib_lite import Detector
    from anomalib_lite.machine.memory import peak_rss_mb

    detector = Detector.load(folder / "model.safetensors")
    start = time.perf_counter()
    scores = detector.score([folder / name])
    scored = time.perf_counter()
    scores.save_overlays(folder / f"overlays_{time.time_ns()}", [folder / name])
    drawn = time.perf_counter()
    megapixels = scores.image_sizes[0][0] * scores.image_sizes[0][1] / 1e6
    found = {
        "seen": detector.embedder.frame.size,
        "score": (scored - start) / megapixels,
        "draw": (drawn - scored) / megapixels,
        "peak": peak_rss_mb(),
        "alarm": bool(scores.alarms[0]),
    }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        kind, folder, *rest = arguments.run
        if kind == "fit":
            fit_one(Path(folder), json.loads(rest[0]))
        elif kind == "before":
            before(Path(folder))
        else:
            score_one(Path(folder), *rest)
        return

    def run(*words: str) -> str:
        command = [sys.executable, "-W", "ignore", __file__, "--run", *words]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    print("| picture | seen at | file | score s / megapixel | draw s / megapixel | peak memory GB | alarm |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name, size in PICTURES.items():
            folder = Path(scratch, name.replace(" ", "_"))
            folder.mkdir()
            for seed in range(3):
                Image.fromarray(surface(seed, size, False)).save(folder / f"good_{seed}.jpg", quality=90)
            bad = Image.fromarray(surface(9, size, True))
            bad.save(folder / "bad.jpg", quality=90)
            bad.save(folder / "bad.png", compress_level=1)
            del bad
            for parameters in ({}, {"tiles": TILES[name]}):
                run("fit", str(folder), json.dumps(parameters))
                for file in ("bad.jpg", "bad.png"):
                    found = json.loads(run("score", str(folder), file))
                    seen = " × ".join(map(str, found["seen"]))
                    closer = f", tiles={parameters['tiles']}" if parameters else ""
                    print(
                        f"| {name}, {size[0]} × {size[1]} | {seen}{closer} | {file[4:]} | {found['score']:.3f} | "
                        f"{found['draw']:.3f} | {found['peak'] / 1000:.2f} | {found['alarm']} |",
                        flush=True,
                    )
        small = json.loads(run("before", str(folder)))
        print(f"after a picture of 64 × 64 pixels: {small['peak'] / 1000:.2f} GB")


if __name__ == "__main__":
    main()
