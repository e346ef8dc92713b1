"""How scores move when the camera does: changed test images, and a detector that was told of such changes or was not.

    python benchmarks/robustness.py --data metal_nut bottle magnetic_tile --rate 0.05 \\
        --vary "brightness=0.2,contrast=0.2,white_balance=0.1,blur=1,jpeg=75,shift=0.02,turn=2" --both

Per change, all test images changed alike: the recall at the promised rate of false alarms, the false alarms observed,
image AUROC, and how far the good images' scores moved from those of the unchanged ones, in standard deviations of the
calibration scores. With --both every cell has the detector without and the one with --vary: plain → varied.

What a turned or moved picture shows at its edges no camera took: it is reflected. With `--inside 0.05` that share of
every picture's height and width is cut off at each edge, after the change and for training alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.images.variations import Variations
from anomalib_lite.images.varying import Draw, varied

CHANGES = {
    "as it is": Draw(),
    "brightness +20 %": Draw(brightness=1.2),
    "brightness −20 %": Draw(brightness=0.8),
    "contrast +20 %": Draw(contrast=1.2),
    "contrast −20 %": Draw(contrast=0.8),
    "warmer light, 10 %": Draw(white_balance=0.1),  # grey pictures stay as they are
    "colder light, 10 %": Draw(white_balance=-0.1),
    "blur, sigma 0.7 px": Draw(blur=0.7),
    "JPEG, quality 80": Draw(jpeg=80),
    "shift 2 %, both ways": Draw(shift=(0.02, 0.02)),
    "turn 2°": Draw(turn=2),
}


class Changed:
    """An image source whose images are changed as they are read, and lose a share of their size at each edge."""

    def __init__(self, source: Any, change: Draw, inside: float):
        self.source, self.change, self.inside, self.ids = source, change, inside, source.ids

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> np.ndarray:
        image = varied(self.source.read(i), self.change)
        top, left = (round(self.inside * side) for side in image.shape[:2])
        return np.ascontiguousarray(image[top : image.shape[0] - top, left : image.shape[1] - left])


def measured(dataset: Any, parameters: dict[str, Any], inside: float = 0.0) -> tuple[dict[str, list[str]], float]:
    """Fit, then score under every change; returns the cells of each, and the seconds of the fit."""
    from anomalib_lite.detector import Detector
    from anomalib_lite.evaluation.metrics import auroc

    start = time.perf_counter()
    detector = Detector(**parameters).fit(Changed(dataset.train, Draw(), inside))
    seconds = time.perf_counter() - start
    deviation = detector.fitted_.calibration.scores.std()
    defective = np.array([kind != "good" for kind in dataset.kinds])
    usual: np.ndarray | None = None  # scores of the good images as they are, the first change
    cells = {}
    for name, change in CHANGES.items():
        scores = detector.score(Changed(dataset.test, change, inside), on_unreadable="raise")
        good = scores.scores[~defective]
        usual = good if usual is None else usual
        cells[name] = [
            f"{scores.alarms[defective].mean():.3f}",
            f"{scores.alarms[~defective].mean():.3f}",
            f"{auroc(defective, scores.scores):.4f}",
            f"{np.median(good - usual) / deviation:+.2f}",
        ]
    return cells, seconds


def main() -> None:
    from anomalib_lite.images.mvtec import open_mvtec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights")
    parser.add_argument("--rate", type=float, default=0.05, help="promised share of good images that alarm")
    parser.add_argument("--vary", metavar="TEXT", help="variations of the fit, as brightness=0.2,shift=0.02,draws=5")
    parser.add_argument("--inside", type=float, default=0.0, help="share that is cut off at each edge, as 0.05")
    parser.add_argument("--both", action="store_true", help="without --vary and with it, side by side")
    arguments = parser.parse_args()
    if arguments.both and not arguments.vary:
        parser.error("--both compares with --vary; say what varies")
    plain = {"backbone": arguments.backbone, "weights": arguments.weights, "false_alarm_rate": arguments.rate}
    fits = [plain]
    if arguments.vary:
        variations = Variations.parse(arguments.vary)
        fits = [plain] * arguments.both + [{**plain, "variations": variations}]
        print(f"Varied: {variations.describe()}.\n")
    rate = f"{100 * arguments.rate:g} %"
    print(f"| data | change | recall at {rate} | false alarms observed | image AUROC | shift of good scores |")
    print("| --- | --- | --- | --- | --- | --- |")
    times = []
    for folder in arguments.data:
        dataset = open_mvtec(folder)
        runs = [measured(dataset, parameters, arguments.inside) for parameters in fits]
        for name in CHANGES:
            cells = (" → ".join(of_runs) for of_runs in zip(*(cells[name] for cells, _ in runs), strict=True))
            print(f"| {folder.name} | {name} | {' | '.join(cells)} |", flush=True)
        times.append(f"{folder.name} {' → '.join(f'{seconds:.1f}' for _, seconds in runs)}")
    print(f"\nSeconds to fit: {', '.join(times)}.")


if __name__ == "__main__":
    main()
