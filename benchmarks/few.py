"""Few good images: what 1, 2, 4, 8 and 16 of them find, and what they can promise.

    python benchmarks/few.py --data metal_nut bottle magnetic_tile kolektor elpv_poly [--backbone resnet18 --weights …]

Per set and number of images: five draws from train/good, fitted as they are and with varied copies, scored on test/.
Printed are image AUROC, mean and standard deviation over the draws; the recall at the smallest rate that so many images
can promise, 1 / (n + 1), beside the share of good images that alarm there; and that rate. `fit` refuses one image,
since nothing tells how much good parts differ; here it is given twice, with a grey level of noise, for its ranks alone.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np

from anomalib_lite import Detector, Variations
from anomalib_lite.evaluation.metrics import auroc
from anomalib_lite.images.mvtec import open_mvtec

WAYS = {
    "as they are": None,
    "light, 5 % shift, 10° turn × 7": Variations(brightness=0.1, shift=0.05, turn=10, draws=7),
    "any angle × 7": Variations(turn=180, draws=7),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| set | good images | learnt | recall / alarms of good ones | promised | image AUROC |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in arguments.data:
        data = open_mvtec(folder)
        bad = np.asarray(data.labels, dtype=bool)
        for shots in arguments.shots:
            rate = 1 / (shots + 1)
            for way in arguments.ways:
                found = []
                for draw in range(arguments.draws):
                    chosen = np.random.default_rng(draw).choice(len(data.train), shots, replace=False)
                    detector = Detector(
                        backbone=arguments.backbone, weights=arguments.weights, variations=WAYS[way],
                        false_alarm_rate=min(rate, 0.5), random_state=draw,
                    )  # fmt: skip
                    images = [data.train.read(i) for i in chosen]
                    if shots == 1:
                        noise = np.random.default_rng(draw).integers(-1, 2, images[0].shape)
                        images.append(np.clip(images[0] + noise, 0, 255).astype(np.uint8))
                    detector.fit(images, groups="each")
                    scores = detector.score(data.test)
                    alarms = np.asarray(scores.alarms)
                    found.append((alarms[bad].mean(), alarms[~bad].mean(), auroc(bad, scores.scores)))
                recall, false, area = np.mean(found, axis=0)
                spread = np.std(found, axis=0)[2]
                promise = "nothing | " if shots == 1 else f"{rate:.0%} | "
                counts = "– | " if shots == 1 else f"{recall:.3f} / {false:.3f} | "
                print(f"| {folder.name} | {shots} | {way} | {counts}{promise}{area:.4f} ± {spread:.4f} |", flush=True)


if __name__ == "__main__":
    main()
