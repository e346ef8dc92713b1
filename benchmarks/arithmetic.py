"""What integers cost in accuracy: the same detectors in float32, bf16 and int8, every scorer, means over seeds.

    python benchmarks/arithmetic.py --data metal_nut bottle magnetic_tile kolektor elpv_poly [--seeds 5]

A seed draws the folds, the bank, the images that integers are calibrated on and the initial centroids; the bank's luck
alone moves image AUROC by up to 0.01. Per seed and arithmetic images are embedded once, for all scorers. `spread` is
the standard deviation of image AUROC over the seeds.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from coverage import Embedded

RATE = 0.05
DTYPES = ("float32", "bfloat16", "int8")


def main() -> None:
    from anomalib_lite.detector import Detector
    from anomalib_lite.evaluation.metrics import auroc
    from anomalib_lite.images.mvtec import open_mvtec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--scorers", nargs="+", default=["knn", "kmeans", "dbscan", "subspace"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    network = {"backbone": arguments.backbone, "weights": arguments.weights}
    print(f"| data, scorer | dtype | recall at {RATE:.0%} | false alarms | image AUROC | spread |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in arguments.data:
        data = open_mvtec(folder)
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for seed in range(arguments.seeds):
            for dtype in arguments.dtypes:
                train, test = embedded(data, seed, dtype=dtype, **network)
                for scorer in arguments.scorers:
                    detector = Detector(
                        scorer=scorer, random_state=seed, false_alarm_rate=RATE, dtype="float32", **network
                    )
                    scores = detector.fit(train).score(test)
                    found.setdefault((scorer, dtype), []).append(
                        (
                            float(scores.alarms[data.labels].mean()),
                            float(scores.alarms[~data.labels].mean()),
                            auroc(data.labels, scores.scores),
                        )
                    )
        for scorer in arguments.scorers:
            for dtype in arguments.dtypes:
                values = np.array(found[scorer, dtype])
                recall, alarms, ranking = values.mean(axis=0)
                spread = values[:, 2].std(ddof=1) if len(values) > 1 else 0.0
                cells = f"{recall:.3f} | {alarms:.3f} | {ranking:.4f} | {spread:.4f}"
                print(f"| {folder.name}, {scorer} | {dtype} | {cells} |", flush=True)


def embedded(data: Any, seed: int, **options: Any) -> tuple[Embedded, Embedded]:
    """Training and test images with their embeddings; integers calibrated on training images that the seed draws."""
    from anomalib_lite.embedding.embedder import Embedder
    from anomalib_lite.embedding.streaming import embed_source

    embedder = Embedder(**options)
    order = np.random.default_rng(seed).permutation(len(data.train))
    train = {image.index: image.stored() for image in embed_source(embedder, data.train, order)}
    test = {image.index: image.stored() for image in embed_source(embedder, data.test, np.arange(len(data.test)))}
    return Embedded(data.train, train), Embedded(data.test, test)


if __name__ == "__main__":
    main()
