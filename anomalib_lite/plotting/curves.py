"""The figures of an evaluation: score histogram, ROC, precision–recall, confusion matrix, calibration, training curves.

Scores and labels in, one Figure out. Labels are True for defective; kinds name what each image is: good, as
`is_good_name` knows it, or a defect.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from anomalib_lite.images.mvtec import is_good_name
from anomalib_lite.plotting.style import (
    ALARM,
    COLOURS,
    DASHES,
    GOOD,
    MARKERS,
    TEXT,
    axes_of,
    label,
    legend,
    new_figure,
    one_axis,
    shortened,
    whole_numbers,
)


def plot_score_histogram(scores: ArrayLike, kinds: Sequence[str], threshold: float | None = None) -> Figure:
    """One line of points per kind over a common score axis, good ones first; the threshold is marked."""
    values, names = np.asarray(scores, dtype=np.float64), np.asarray(kinds)
    order = sorted(set(kinds), key=_good_first)
    figure = new_figure(height=1.2 + 0.45 * len(order))
    axes = axes_of(figure, len(order), 1, sharex=True)
    finite = values[np.isfinite(values)]
    edges = np.histogram_bin_edges(finite, bins=40)
    values = np.clip(values, edges[0], edges[-1])  # an infinite score stands at the end
    for number, (axis, kind) in enumerate(zip(axes, order, strict=True)):
        colour = GOOD if is_good_name(kind) else COLOURS[number % len(COLOURS)]
        counts, _, _ = axis.hist(values[names == kind], bins=edges.tolist(), color=colour)
        axis.set_ylim(0, max(1.0, float(np.max(counts))) * 1.1)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_ylabel(
            f"{shortened(kind)} ({int((names == kind).sum())})", fontsize=TEXT, rotation=0, ha="right", va="center"
        )
        if threshold is not None:
            axis.axvline(threshold, color=ALARM, linestyle="--", linewidth=1.2)
    if threshold is not None:
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, 2), "textcoords": "offset points"}
        axes[0].annotate(f"alarm above {threshold:.3g}", (threshold, 1), fontsize=TEXT - 1, color=ALARM, **where)
    axes[-1].set_xlabel("anomaly score", fontsize=TEXT)
    return figure


def plot_roc(labels: ArrayLike, scores: Mapping[str, ArrayLike]) -> Figure:
    """ROC curves of one or several detectors on the same images."""
    figure, axis = one_axis(width=3.6, height=3.6)
    for number, (name, values) in enumerate(scores.items()):
        truth, places = _ranked(labels, values)
        title = f"{shortened(name)}, AUROC {roc_auc_score(truth, places):.3f}"
        axis.plot(*roc_curve(truth, places)[:2], _dash(number), color=COLOURS[number % len(COLOURS)], label=title)
    axis.plot([0, 1], [0, 1], ":", color=GOOD, linewidth=1, label="chance")
    axis.set_aspect("equal")
    label(axis, "false alarms (share of good images)", "recall (share of defective ones)", "ROC")
    legend(axis, loc="lower right")
    return figure


def plot_precision_recall(labels: ArrayLike, scores: Mapping[str, ArrayLike]) -> Figure:
    """Precision over recall of one or several detectors on the same images."""
    figure, axis = one_axis(width=3.6, height=3.6)
    for number, (name, values) in enumerate(scores.items()):
        truth, places = _ranked(labels, values)
        # From the highest score on; the last point, at recall 0, is no threshold's.
        precision, recall = (curve[-2::-1] for curve in precision_recall_curve(truth, places)[:2])
        title = f"{shortened(name)}, AP {average_precision_score(truth, places):.3f}"
        colour = COLOURS[number % len(COLOURS)]
        axis.step(recall, precision, _dash(number), where="post", color=colour, label=title)
    axis.axhline(np.mean(np.asarray(labels, dtype=bool)), color=GOOD, linestyle=":", linewidth=1, label="chance")
    axis.set(xlim=(-0.02, 1.02), ylim=(0, 1.03), aspect="equal")
    label(axis, "recall", "precision", "Precision and recall")
    legend(axis, loc="lower left")
    return figure


def plot_confusion(actual: Sequence[str], predicted: Sequence[str]) -> Figure:
    """Counts of actual against predicted classes, shaded by share of the actual class."""
    classes = sorted({*actual, *predicted}, key=_good_first)
    counts = confusion_matrix(actual, predicted, labels=classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.4 + 0.55 * len(classes)
    figure, axis = one_axis(width=side + 0.6, height=side)
    axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        ink = "white" if shares[i, j] > 0.5 else "black"
        axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=TEXT, color=ink)
    names = [shortened(kind) for kind in classes]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=TEXT - 1)
    axis.set_yticks(range(len(names)), names, fontsize=TEXT - 1)
    axis.spines[:].set_visible(False)
    label(axis, "predicted", "actual")
    return figure


def plot_calibration(
    p_values: ArrayLike, labels: ArrayLike | None = None, *, smallest_rate: float | None = None, note: str = ""
) -> Figure:
    """Observed false alarms over the target rate on good new images, with the band of chance (binomial, 95 %).

    Parameters
    ----------
    p_values, labels : (n,); of images labelled defective nothing is drawn. Without labels all are good.
    smallest_rate : the smallest rate that the calibration images support, 1 / (n + 1); marked, and nothing is drawn
        below it, where there is no threshold.
    note : what the curve says, in words, written below; `fitted.coverage.coverage_verdict` finds them.
    """
    from scipy.stats import binom

    p = np.asarray(p_values, dtype=np.float64)
    good = p if labels is None else p[~np.asarray(labels, dtype=bool)]
    lowest = smallest_rate or 0.0
    # In 200ths, which are the floats that p-values are: 10 / 200 is 2 / 40.
    targets = np.arange(1, 1 + round(200 * max(0.3, min(1.0, 1.2 * lowest)))) / 200
    targets = np.unique([*targets, *([lowest] if lowest else [])])
    observed = [(good <= target).mean() if len(good) and target >= lowest else np.nan for target in targets]
    lines = textwrap.wrap(note.replace(" %", "\N{NO-BREAK SPACE}%"), 88)
    figure, axis = one_axis(width=5.4, height=3.2 + 0.15 * len(lines))
    n = max(1, len(good))
    low, high = binom.ppf([0.025], n, targets) / n, binom.ppf([0.975], n, targets) / n
    axis.fill_between(targets, low, high, color=GOOD, alpha=0.25, linewidth=0, step="post", label="95 % of chance")
    axis.plot(targets, targets, ":", color="black", linewidth=1, label="promised")
    if smallest_rate is not None:
        supported = f"smallest rate that\n{round(1 / smallest_rate) - 1} images support"
        axis.axvline(smallest_rate, color=ALARM, linestyle="--", linewidth=0.8, label=supported)
    axis.step(targets, observed, where="post", color=COLOURS[0], label=f"observed on\n{len(good)} good images")
    axis.set_xlim(0, targets[-1])
    # A little below 0, lest a curve of no alarm at all hides behind the axis.
    axis.set_ylim(-0.03 * axis.get_ylim()[1], None)
    label(axis, "target false-alarm rate", "observed false alarms", "Calibration")
    legend(axis, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=TEXT, x=0.02, ha="left")
    return figure


def plot_training(history: Mapping[str, Sequence[float]]) -> Figure:
    """Curves over epochs; names that end alike, such as train_loss and validation_loss, share axes."""
    families = list(dict.fromkeys(name.rsplit("_", 1)[-1] for name in history))
    figure = new_figure(height=2.8)
    for axis, family in zip(axes_of(figure, 1, len(families)), families, strict=True):
        for number, (name, values) in enumerate(item for item in history.items() if item[0].endswith(family)):
            style = _dash(number) + MARKERS[number % len(MARKERS)]
            colour, title = COLOURS[number % len(COLOURS)], shortened(name.rsplit("_", 1)[0].replace("_", " "))
            axis.plot(range(1, len(values) + 1), values, style, markersize=3, color=colour, label=title)
        whole_numbers(axis, "x")
        label(axis, "epoch", family)
        legend(axis)
    return figure


def _ranked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the place of every score among the distinct ones: scikit-learn takes no infinite scores."""
    truth, places = np.asarray(labels, dtype=bool), np.unique(np.asarray(scores), return_inverse=True)[1]
    if truth.all() or not truth.any():
        raise ValueError(f"{truth.sum()} of {truth.size} images are defective; a curve needs good and defective ones")
    return truth, places


def _good_first(kind: str) -> tuple[bool, str]:
    return not is_good_name(kind), kind


def _dash(number: int) -> str:
    return DASHES[number % len(DASHES)]
