"""Figures of a comparison: every method's AUROC, defects never labelled, few labels, and the images misclassified.

Rows are those of `comparison.tables`; supervised models are drawn as circles and solid lines, detectors as squares
and dashed ones. Names come from folders and users: they are written as they are (`parse_math`), never as formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from anomalib_lite.images.framing import resize
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.plotting.overlays import plot_masks
from anomalib_lite.plotting.style import (
    ALARM,
    COLOURS,
    GOOD,
    MARKERS,
    TEXT,
    axes_of,
    label,
    new_figure,
    shortened,
)

_KINDS = {"supervised": (COLOURS[0], "o", "-"), "unsupervised": (ALARM, "s", "--")}


def plot_comparison(rows: Sequence[Any]) -> Figure:
    """Image AUROC of every method, the best on top, with its spread over seeds."""
    known = sorted((row for row in rows if row.image_auroc_mean is not None), key=lambda row: row.image_auroc_mean)
    figure = new_figure(height=1.2 + 0.24 * len(known))
    (axis,) = axes_of(figure)
    for place, row in enumerate(known):
        colour, marker, _ = _KINDS[row.kind]
        mean, spread = row.image_auroc_mean, row.image_auroc_std or 0.0
        axis.errorbar(mean, place, xerr=spread, fmt=marker, color=colour, markersize=5, capsize=2, linewidth=1)
        axis.annotate(
            f"{mean:.3f}",
            (min(1.0, mean + spread), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=TEXT - 1,
        )
    axis.set_yticks(range(len(known)), [row.name for row in known], fontsize=TEXT - 1, parse_math=False)
    axis.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axis.set_axisbelow(True)
    lowest = min((row.image_auroc_mean - (row.image_auroc_std or 0.0) for row in known), default=0.5)
    axis.set_xlim(min(0.5, lowest) - 0.02, 1.045)
    seeds = max((row.seeds for row in known), default=0)
    label(axis, f"image AUROC on the held-out half (mean and deviation of {seeds} seed{'s' * (seeds != 1)})", "")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, label=kind)
        for kind, (colour, marker, _) in _KINDS.items()
        if any(row.kind == kind for row in known)
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=TEXT - 1, frameon=False)
    return figure


def plot_left_out(rows: Sequence[Any]) -> Figure:
    """Per kind of defect, from the AUROC with labels of it (hollow) to that without (filled)."""
    defects = list(dict.fromkeys(row.defect for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    figure = new_figure(height=0.9 + 0.75 * -(-len(defects) // 2) + 0.2 * len(names) * -(-len(defects) // 2))
    columns = min(2, len(defects))
    axes = axes_of(figure, -(-len(defects) // columns), columns, sharex=True, sharey=True)
    for axis in axes[len(defects) :]:
        axis.set_axis_off()
    by_place = {(row.defect, row.name): row for row in rows}
    values = [value for row in rows for value in (row.seen_auroc, row.unseen_auroc) if value is not None]
    for axis, defect in zip(axes, defects, strict=False):
        for place, name in enumerate(reversed(names)):
            row = by_place.get((defect, name))
            if row is None or row.seen_auroc is None or row.unseen_auroc is None:
                continue
            colour, marker, _ = _KINDS[row.kind]
            axis.plot([row.seen_auroc, row.unseen_auroc], [place, place], color=colour, linewidth=1.2)
            axis.plot(row.seen_auroc, place, marker, color=colour, markerfacecolor="white", markersize=5)
            axis.plot(row.unseen_auroc, place, marker, color=colour, markersize=5)
        axis.set_yticks(range(len(names)), list(reversed(names)), fontsize=TEXT - 1, parse_math=False)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_xlim(min([0.5, *values]) - 0.03, 1.03)
        axis.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_title(shortened(defect), fontsize=TEXT + 1, loc="left", parse_math=False)
    for axis in axes[max(0, len(defects) - columns) : len(defects)]:
        axis.set_xlabel("image AUROC", fontsize=TEXT)
        axis.tick_params(labelbottom=True)
    handles = [
        Line2D([], [], color=GOOD, marker="o", linestyle="", markerfacecolor="white", label="labelled in training"),
        Line2D([], [], color=GOOD, marker="o", linestyle="", label="never labelled"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=TEXT - 1, frameon=False)
    return figure


def plot_few_labels(rows: Sequence[Any]) -> Figure:
    """Image AUROC over the number of labelled defects; detectors, which use none, are level lines."""
    figure = new_figure(width=5.2, height=3.2)
    (axis,) = axes_of(figure)
    names = list(dict.fromkeys(row.name for row in rows))
    counts = sorted({row.labels for row in rows})
    supervised = [name for name in names if any(row.name == name and row.kind == "supervised" for row in rows)]
    for name in names:
        own = [row for row in rows if row.name == name and row.image_auroc_mean is not None]
        if not own:
            continue
        if name in supervised:
            number = supervised.index(name)
            axis.errorbar(
                [row.labels for row in own],
                [row.image_auroc_mean for row in own],
                yerr=[row.image_auroc_std or 0.0 for row in own],
                fmt="-" + MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                markersize=4,
                capsize=2,
                linewidth=1.2,
                label=name,
            )
    # One detector is enough to compare with: the best known without labels is the library's default.
    detectors = [row for row in rows if row.kind == "unsupervised" and row.image_auroc_mean is not None]
    if detectors:
        shown = next((row for row in detectors if row.name.startswith("knn")), detectors[0])
        axis.axhline(
            shown.image_auroc_mean, color=ALARM, linestyle="--", linewidth=1.2, label=f"{shown.name}, no labels"
        )
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_ylim(top=1.02)
    label(axis, "labelled defects to learn from", "image AUROC on the held-out half")
    legend = figure.legend(loc="outside upper center", ncols=3, fontsize=TEXT - 1, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def plot_misclassified(wrong: Sequence[Any], source: ImageSource, *, columns: int = 4, rows: int = 3) -> Figure:
    """The surest mistakes as a gallery: what each was predicted as, how surely, and what it is."""
    shown = list(wrong)[: columns * rows]
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    columns = max(1, min(columns, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure = new_figure(width=max(3.0, 1.6 * columns), height=2.1 * lines)
    axes = axes_of(figure, lines, columns)
    for axis in axes:
        axis.set_axis_off()
    for axis, one in zip(axes, shown, strict=False):
        axis.imshow(source.read(position[one.id]))
        named = f"{shortened(one.id)}\npredicted {shortened(one.predicted)} ({one.probability:.2f})"
        axis.set_title(f"{named}\nis {shortened(one.actual)}", fontsize=TEXT - 1, parse_math=False)
    return figure


def plot_predicted_masks(maps: Mapping[str, np.ndarray], images: Any) -> Figure:
    """Predicted masks over their images, with the outline of the true ones.

    Parameters
    ----------
    maps : by image id, the probability that a pixel is defective in 255ths, uint8 (s, s)
    images : LabelledImages that hold these ids
    """
    position = images.positions
    pictures, predicted, actual = [], [], []
    for image_id, probability in maps.items():
        pixels = images.source.read(position[image_id])
        # A gallery is small: at twice the map's size the outlines are smooth and the figure is light.
        scale = 2 * max(probability.shape) / max(pixels.shape)
        height, width = (max(1, round(scale * side)) for side in pixels.shape[:2])
        enlarged = Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR)
        pictures.append(resize(pixels, (height, width)))
        predicted.append(np.asarray(enlarged) > 127)
        known = images.has_mask[position[image_id]]
        actual.append(images.read_mask(position[image_id], (height, width)) if known else None)
    return plot_masks(pictures, predicted, actual, list(maps))
