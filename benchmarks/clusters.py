"""Which picks the K-means count that detects better, elbow or silhouette? Neither, if the count may be large.

    python benchmarks/clusters.py --data metal_nut bottle --backbone resnet18 --weights resnet18.pth

Per set and level: the count k that each rule picks on the good training rows; recall / false alarms at the 5 % promised
and the image AUROC with it; and a sweep of fixed counts. Test labels measure only; no rule sees them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

SWEEP = {"global": (2, 4, 8, 16, 32), "patch": (8, 32, 128, 512, 1024)}
RATE = 0.05
ROWS = 4000  # of patches that the elbow and the silhouette look at


def main() -> None:
    from anomalib_lite.diagnosis import statistics as diagnostics
    from anomalib_lite.evaluation.measuring import evaluate
    from anomalib_lite.images.mvtec import open_mvtec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    network = {"backbone": arguments.backbone, "weights": arguments.weights}
    figures = "k, recall / false alarms / AUROC"
    print(f"| data | level | elbow: {figures} | silhouette: {figures} | best fixed: {figures} | all fixed: k: AUROC |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in arguments.data:
        dataset = open_mvtec(folder)
        for level, counts in SWEEP.items():
            rows = training_rows(dataset.train, level, network)
            picked = {
                "elbow": diagnostics.elbow(rows).k,
                "silhouette": diagnostics.silhouette(rows).k,
            }
            measured = {
                k: evaluate(dataset, level=level, scorer="kmeans", n_clusters=k, false_alarm_rate=RATE, **network)
                for k in sorted({*counts, *picked.values()})
            }
            found = {k: one.image_auroc or 0.0 for k, one in measured.items()}
            best = max(counts, key=found.__getitem__)
            cells = [
                f"{k}, {measured[k].recall_at_threshold or 0:.3f} / {measured[k].false_alarm_rate_observed or 0:.3f} / "
                f"{found[k]:.4f}"
                for k in (picked["elbow"], picked["silhouette"], best)
            ]
            sweep = ", ".join(f"{k}: {found[k]:.3f}" for k in counts)
            print(f"| {folder.name} | {level} | {' | '.join(cells)} | {sweep} |", flush=True)


def training_rows(images: Any, level: str, network: dict[str, Any]) -> np.ndarray:
    """Good rows as K-means sees them: all images at the global level, patches of a sample of them otherwise."""
    from anomalib_lite.detector import Detector
    from anomalib_lite.embedding.streaming import EmbeddedImage, embed_source

    detector = Detector(level=level, scorer="kmeans", n_clusters=2, **network).fit(images)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    if level == "patch":
        order = order[:40]
    stream = embed_source(detector.embedder, images, order)
    images = (image for image in stream if isinstance(image, EmbeddedImage))
    rows = np.concatenate([rows for image in images for _, rows in image.blocks()])
    if len(rows) > ROWS:
        rows = rows[rng.choice(len(rows), ROWS, replace=False)]
    return detector.fitted_.reduction.transform(rows)


if __name__ == "__main__":
    main()
