"""Draw the pictures of `gallery.md` from the synthetic set alone: python docs/gallery.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from anomalib_lite import Detector, capability, make_metal_nut, operating_points
from anomalib_lite.diagnosis.capability_figure import plot_capability
from anomalib_lite.fitted.drift import DriftMonitor
from anomalib_lite.images.mvtec import MVTecDataset, open_mvtec
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.plotting.overlays import overlaid, overlay
from anomalib_lite.plotting.retrieval import plot_retrieval
from anomalib_lite.results import Scores

PICTURES = Path(__file__).with_name("pictures")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = open_mvtec(make_metal_nut(Path(folder) / "metal_nut", n_train=60, n_good=20, n_defect=6, size=160))
        detector = Detector(false_alarm_rate=0.05).fit(data.train)
        scores = detector.score(data.test)
        worst = {kind: _worst(scores, data, kind) for kind in ("bent", "color", "flip", "scratch")}
        draw_maps(scores, data, list(worst.values()))
        draw_regions(scores, data, worst["scratch"])
        save(plot_retrieval(scores, worst["bent"], data.test, data.train), "gallery_nearest")
        save(plot_capability(capability(detector, pictures(data, good_ones(data)), per_kind=30)), "gallery_capability")
        draw_operating_points(detector, scores, data)
        draw_region_of_interest(data)
        draw_drift(detector)


def _worst(scores: Scores, data: MVTecDataset, kind: str) -> int:
    return int(np.argmax(np.where(np.array(data.kinds) == kind, scores.scores, -1)))


def good_ones(data: MVTecDataset) -> list[int]:
    return [i for i, kind in enumerate(data.kinds) if kind == "good"]


def pictures(data: MVTecDataset, indices: list[int]) -> list[np.ndarray]:
    return [data.test.read(i) for i in indices]


def save(figure: Figure, name: str) -> None:
    """At most 900 pixels wide and in 160 colours: pictures of a page, not of a paper."""
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
    with Image.open(path) as opened:
        small = opened.convert("RGB")
    small.thumbnail((900, 900))
    small.quantize(160, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_maps(scores: Scores, data: MVTecDataset, shown: list[int]) -> None:
    figure, axes = plt.subplots(2, len(shown), figsize=(7, 3.6))
    for column, i in enumerate(shown):
        picture = data.test.read(i)
        axes[0, column].imshow(picture)
        axes[0, column].set_title(f"{data.kinds[i]}: {scores.verdicts[i]}", fontsize=9)
        axes[1, column].imshow(overlay(picture, scores.anomaly_map(i), scores.map_scale))
    for axis in axes.flat:
        axis.axis("off")
    save(figure, "gallery_maps")


def draw_regions(scores: Scores, data: MVTecDataset, i: int) -> None:
    figure, axis = plt.subplots(figsize=(3.2, 3.2))
    axis.imshow(overlaid(scores, i, data.test.read(i)))
    areas = ", ".join(f"{region.area:.0f} px" for region in scores.regions(i))
    axis.set_title(f"{data.kinds[i]}: {areas}", fontsize=9)
    axis.axis("off")
    save(figure, "gallery_regions")


def draw_operating_points(detector: Detector, scores: Scores, data: MVTecDataset) -> None:
    bad = pictures(data, [i for i, kind in enumerate(data.kinds) if kind in ("scratch", "color")])
    points = list(operating_points(detector, bad))
    good, missable = np.sort(detector.fitted_.calibration.scores), np.sort(detector.score(bad).scores)
    at = np.sort(np.concatenate([good, missable]))
    alarms, missed = len(good) - np.searchsorted(good, at, "right"), np.searchsorted(missable, at, "right")
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    (line,) = axis.step(at, alarms, where="post", label=f"of {len(good)} good images alarm")
    axis.plot([p.threshold for p in points], [p.alarms for p in points], "o", color=line.get_color(), markersize=4)
    (line,) = axis.step(at, missed, where="post", label=f"of {len(missable)} defects are missed")
    axis.plot([p.threshold for p in points], [p.missed for p in points], "o", color=line.get_color(), markersize=4)
    axis.axvline(scores.threshold, color="grey", linestyle=":", label="threshold promised for 5 %")
    axis.set_xlabel("threshold")
    axis.set_ylabel("images")
    axis.legend(fontsize=8)
    save(figure, "gallery_operating")


def draw_region_of_interest(data: MVTecDataset) -> None:
    detector = Detector(roi="auto", ignore=[(0.4, 0.4, 0.6, 0.6)], false_alarm_rate=0.05).fit(data.train)
    region = detector.score(pictures(data, [0])).looked_at(0, (160, 160))
    assert region is not None
    figure, axis = plt.subplots(figsize=(3.2, 3.2))
    axis.imshow(np.where(region[..., None], data.test.read(0), data.test.read(0) // 4))
    axis.axis("off")
    save(figure, "gallery_region_of_interest")


def draw_drift(detector: Detector) -> None:
    monitor = DriftMonitor(n_calibration=detector.fitted_.calibration.n)
    parts = [render_part(np.random.default_rng(7000 + i), 160)[0] for i in range(130)]
    seen = [(part * (1.0 if i < 50 else 1.6)).clip(0, 255).astype(np.uint8) for i, part in enumerate(parts)]
    evidence, first = [], None
    for i, p in enumerate(detector.score(seen).p_values):
        if monitor.update(p) and first is None:
            first = i
        evidence.append(monitor.wealth)
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    axis.semilogy(range(1, len(evidence) + 1), evidence)
    axis.axhline(monitor.level, color="grey", linewidth=0.8)
    axis.axvline(50, color="grey", linestyle=":", label="the lamp gets 60 % stronger")
    if first is not None:
        axis.axvline(first + 1, color="#d62728", label=f"drift is told at part {first + 1}")
    axis.set_xlabel("part")
    axis.set_ylabel("evidence of drift")
    axis.legend(fontsize=8)
    save(figure, "gallery_drift")


if __name__ == "__main__":
    main()
