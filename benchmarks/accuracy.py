"""Defaults on real sets, over seeds: recall at the promised rate beside the rate that was observed, then areas.

    python benchmarks/accuracy.py --data metal_nut bottle magnetic_tile kolektor elpv_poly --seeds 5
    python benchmarks/accuracy.py --data … --backbone resnet18 --weights resnet18.pth

Mean and, behind ±, half of the distance between the largest and the smallest of the seeds.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np

from anomalib_lite import evaluate

RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quality", default="balanced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"| set | recall at {RATE:.0%} | observed | image AUROC | pixel AUROC | AUPRO | in |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder in arguments.data:
        rows, dtype = [], ""
        for seed in range(arguments.seeds):
            result = evaluate(
                folder, rates=(RATE,), backbone=arguments.backbone, weights=arguments.weights,
                dtype=arguments.dtype, quality=arguments.quality, random_state=seed,
            )  # fmt: skip
            (at,) = (at for at in result.at_rates if abs(at.false_alarm_rate_target - RATE) < 1e-9)
            areas = (result.image_auroc, result.pixel_auroc, result.aupro)
            rows.append([at.recall_at_threshold, at.false_alarm_rate_observed, *(x or np.nan for x in areas)])
            dtype = str(result.config["dtype"])
        means, halves = np.mean(rows, axis=0), np.ptp(rows, axis=0) / 2
        cells = [f"{m:.{d}f} ± {h:.{d}f}" for m, h, d in zip(means, halves, (3, 3, 4, 4, 3), strict=True)]
        cells = ["–" if cell.startswith("nan") else cell for cell in cells]
        print(f"| {folder.name} | {' | '.join(cells)} | {dtype} |", flush=True)


if __name__ == "__main__":
    main()
