"""How scores move when the camera does: brighter, darker, blurred, compressed test images, a detector fitted on none.

    python benchmarks/robustness.py --data metal_nut bottle [--backbone resnet18 --weights resnet18.pth]

Per change: image AUROC with all test images changed alike, the shift of good images' scores in standard deviations of
the calibration scores, and the false alarms at the 5 % threshold.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

RATE = 0.05
Change = Callable[[np.ndarray], np.ndarray]


def brightness(factor: float) -> Change:
    return lambda pixels: np.clip(pixels.astype(np.float32) * factor, 0, 255).astype(np.uint8)


def blur(radius: float) -> Change:
    return lambda pixels: np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def jpeg(quality: int) -> Change:
    def compress(pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return compress


CHANGES: dict[str, Change] = {
    "as it is": lambda pixels: pixels,
    "brightness +20 %": brightness(1.2),
    "brightness -20 %": brightness(0.8),
    "blur, sigma 0.7 px": blur(0.7),
    "JPEG, quality 80": jpeg(80),
}


class Changed:
    """An image source whose images are changed as they are read."""

    def __init__(self, source: Any, change: Change):
        self.source, self.change, self.ids = source, change, source.ids

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> np.ndarray:
        return self.change(self.source.read(i))


def main() -> None:
    from anomalib_lite.detector import Detector
    from anomalib_lite.evaluation.metrics import auroc
    from anomalib_lite.images.mvtec import open_mvtec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    print("| data | change | image AUROC | shift of good scores | false alarms at 5 % | recall |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in arguments.data:
        dataset = open_mvtec(folder)
        detector = Detector(backbone=arguments.backbone, weights=arguments.weights, false_alarm_rate=RATE)
        detector.fit(dataset.train)
        calibration = detector.fitted_.calibration.scores
        defective = np.array([kind != "good" for kind in dataset.kinds])
        usual = detector.score(dataset.test).scores[~defective]
        for name, change in CHANGES.items():
            scores = detector.score(Changed(dataset.test, change))
            shift = float(np.median(scores.scores[~defective] - usual) / calibration.std())
            print(
                f"| {folder.name} | {name} | {auroc(defective, scores.scores):.4f} | {shift:+.2f} | "
                f"{scores.alarms[~defective].mean():.3f} | {scores.alarms[defective].mean():.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
