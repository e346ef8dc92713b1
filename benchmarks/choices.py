"""What each default buys: kNN patches with one choice changed at a time, on one or more category folders.

    python benchmarks/choices.py --data metal_nut bottle --weights resnet18.pth

Recall / false alarms at the 5 % promised / image AUROC / pixel AUROC. The defaults were chosen with tables like this
one, so it shows the choice, not a test of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

RATE = 0.05
CHOICES: dict[str, dict[str, Any]] = {
    "default (bank 4096, k 2, 128 components)": {},
    "bank 2000": {"bank_size": 2000},
    "bank 10000": {"bank_size": 10_000},
    "k 1": {"k": 1},
    "k 9": {"k": 9},
    "bank 2000, k 9": {"bank_size": 2000, "k": 9},
    "random bank of 4096": {"selection": "random"},
    "random bank of 40000": {"selection": "random", "bank_size": 40_000},
    "whitened": {"whiten": True},
    "32 components": {"n_components": 32},
    "max of patches": {"top_share": 1e-9},
    "float32": {"dtype": "float32"},
    "kmeans, 1024 centroids": {"scorer": "kmeans"},
    "kmeans, 64 centroids": {"scorer": "kmeans", "n_clusters": 64},
    "kmeans, 1024, not whitened": {"scorer": "kmeans", "whiten": False},
}


def main() -> None:
    from anomalib_lite.evaluation.measuring import evaluate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet18 state dict")
    arguments = parser.parse_args()
    print("| choice | " + " | ".join(folder.name for folder in arguments.data) + " |")
    print("|" + " --- |" * (1 + len(arguments.data)))
    for name, parameters in CHOICES.items():
        cells = []
        for folder in arguments.data:
            found = evaluate(folder, rates=(RATE,), backbone="resnet18", weights=arguments.weights, **parameters)
            at = next(at for at in found.at_rates if at.false_alarm_rate_target == RATE)
            line = f"{at.recall_at_threshold or 0:.3f} / {at.false_alarm_rate_observed or 0:.3f}"
            cells.append(f"{line} / {found.image_auroc or 0:.4f} / {found.pixel_auroc or 0:.4f}")
            print(f"{folder.name}: {name}: {cells[-1]}", file=sys.stderr, flush=True)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
