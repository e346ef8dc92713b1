"""How large is a report of 5 000 images, and how long does it take?

    python benchmarks/report.py [--images 5000]

The images are drawn textures of 192 pixels, one in fifty with a square in it; nothing is read from disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 192


class Textures:
    """Images made when they are read, as an `ImageSource`."""

    def __init__(self, count: int, seed: int, every: int = 0) -> None:
        self.ids = [f"line/{i:05d}.png" for i in range(count)]
        self.seed, self.every = seed, every

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, i))
        tiles = rng.integers(60, 200, (24, 24, 3)).repeat(8, axis=0).repeat(8, axis=1) // 4
        image = tiles + 90 + rng.integers(-12, 13, (SIDE, SIDE, 3))
        if self.every and i % self.every == 0:
            image[60:90, 60:90] = (250, 20, 20)
        return np.clip(image, 0, 255).astype(np.uint8)


def main() -> None:
    from anomalib_lite import Detector, write_report
    from anomalib_lite.machine.memory import peak_rss_mb

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    count = parser.parse_args().images
    good, new = Textures(200, seed=0), Textures(count, seed=1, every=50)
    detector = Detector(image_size=128, bank_size=1000, false_alarm_rate=0.05).fit(good)
    start = time.perf_counter()
    scores = detector.score(new)
    scored = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = write_report(detector, new, Path(folder) / "report.html", training_images=good, scores=scores)
        size = Path(path).stat().st_size / 1e6
    print(
        f"{count} images, {int(scores.alarms.sum())} alarms: scored in {scored - start:.0f} s, report of {size:.1f} MB "
        f"written in {time.perf_counter() - scored:.0f} s, peak memory {peak_rss_mb():.0f} MB"
    )


if __name__ == "__main__":
    main()
