"""Does the capability curve say what real defects do? Predicted and real detection by size, on sets with masks.

    python benchmarks/capability.py --data metal_nut bottle magnetic_tile kolektor

A detector is fitted on three quarters of the good training images, and painted defects on the rest give a curve for
each kind (`anomalib_lite.capability`). Of every real defective image with a mask the size is that of its largest
connected part (the diameter of a disc of that area); predicted is the mean of the curves at it, and found is whether
the image alarms. Printed are means by thirds of size, and Spearman's rank correlation of predicted with found.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage, stats


def main() -> None:
    from anomalib_lite import Detector, capability
    from anomalib_lite.images.mvtec import open_mvtec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--rate", type=float, default=0.05, help="promised false-alarm rate")
    parser.add_argument("--contrast", type=float, default=0.25)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| data | defects | diameter px, thirds | predicted | found | rank correlation (p) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in arguments.data:
        data = open_mvtec(folder)
        order = np.random.default_rng(0).permutation(len(data.train))
        held = len(order) // 4
        paths = [data.train.item(int(i)) for i in order]
        detector = Detector(false_alarm_rate=arguments.rate).fit(paths[held:])
        curves = capability(detector, paths[:held], contrast=arguments.contrast).curves.values()
        scores = detector.score(data.test)
        position = {name: i for i, name in enumerate(data.test.ids)}
        sizes, found = [], []
        for i, name in enumerate(scores.ids):
            at = position[name]
            try:
                mask = data.read_mask(at, scores.image_sizes[i]) if data.labels[at] and data.has_mask[at] else None
            except ValueError:  # nothing is marked, or all
                continue
            if mask is not None:
                labels, _ = ndimage.label(mask, np.ones((3, 3)))
                sizes.append(2 * np.sqrt(np.bincount(labels.ravel())[1:].max() / np.pi))
                found.append(bool(scores.alarms[i]))
        predicted = np.mean([curve.probability(sizes) for curve in curves], axis=0)
        correlation = stats.spearmanr(predicted, found)
        thirds = np.array_split(np.argsort(sizes), 3)
        cells = [
            ", ".join(f"{np.mean(np.asarray(values, dtype=float)[some]):{form}}" for some in thirds)
            for values, form in ((sizes, ".0f"), (predicted, ".2f"), (found, ".2f"))
        ]
        told = "none: all are found" if all(found) else f"{correlation.statistic:.2f} ({correlation.pvalue:.2g})"
        print(f"| {folder.name} | {len(sizes)} | {' | '.join(cells)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
