"""Draw the pictures of `concepts.md` and `labelled.md` from the synthetic set: python docs/figures.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from anomalib_lite import Detector, compare, make_metal_nut
from anomalib_lite.comparison.figures import plot_left_out
from anomalib_lite.diagnosis import statistics as diagnostics
from anomalib_lite.diagnosis.figures import plot_explained_variance
from anomalib_lite.diagnosis.map_figure import TRAINING, plot_embedding_map
from anomalib_lite.diagnosis.projection import Projector
from anomalib_lite.embedding.streaming import EmbeddedImage, embed_source, embed_whole
from anomalib_lite.fitted.coverage import coverage_verdict
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.plotting.curves import plot_calibration, plot_score_histogram
from anomalib_lite.plotting.overlays import contact_sheet
from anomalib_lite.supervised.labelled import open_labelled

PICTURES = Path(__file__).with_name("pictures")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    draw_concepts()
    draw_comparison()


def draw_concepts() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = open_mvtec(make_metal_nut(Path(folder) / "metal_nut", n_train=80, n_good=20, n_defect=8))
        detector = Detector(false_alarm_rate=0.05).fit(data.train)
        scores = detector.score(data.test)
        best = [
            int(np.argmax(np.where(np.array(data.kinds) == kind, scores.scores, -1)))
            for kind in sorted(set(data.kinds))
        ]
        order = sorted(best, key=lambda i: -scores.scores[i])
        contact_sheet(scores, data.test, order=order, columns=5, rows=1).savefig(PICTURES / "parts.png")
        plot_score_histogram(scores.scores, data.kinds, scores.threshold).savefig(PICTURES / "histogram.png")
        good = scores.p_values[~data.labels]
        smallest = detector.fitted_.calibration.smallest_rate
        verdict = coverage_verdict(good, smallest_rate=smallest).explain()
        plot_calibration(good, smallest_rate=smallest, note=verdict).savefig(PICTURES / "calibration.png")

        patches = embed_source(detector.embedder, data.train, np.arange(20))
        rows = np.concatenate(
            [part for image in patches if isinstance(image, EmbeddedImage) for _, part in image.blocks()]
        )
        variance = diagnostics.explained_variance(rows[::7])
        plot_explained_variance(variance).savefig(PICTURES / "variance.png")

        vectors = [embed_whole(detector.embedder, source)[0] for source in (data.train, data.test)]
        placed = Projector("umap").fit(np.concatenate(vectors))
        kinds = [TRAINING] * len(data.train) + list(data.kinds)
        alarms = [False] * len(data.train) + scores.alarms.tolist()
        plot_embedding_map(placed, kinds, alarms=alarms).savefig(PICTURES / "map.png")


def draw_comparison() -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = open_labelled(make_metal_nut(Path(folder) / "metal_nut", n_train=40, n_good=14, n_defect=10, size=128))
        found = compare(
            images,
            models=["cnn-augmented", "bottleneck", "linear", "knn"],
            seeds=3,
            few_labels=[],
            study_models=["cnn-augmented", "bottleneck", "linear", "knn"],
            study_seeds=3,
        )
        plot_left_out(found.left_out).savefig(PICTURES / "left_out.png")


if __name__ == "__main__":
    main()
