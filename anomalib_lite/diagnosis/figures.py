"""The figures of `diagnostics`: elbow, silhouette, k-distance, DBSCAN over eps, variance, suspicious images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from anomalib_lite.diagnosis.statistics import DBSCANSweep, Elbow, ExplainedVariance, KDistance, Silhouette, Suspicious
from anomalib_lite.images.region import Region
from anomalib_lite.plotting.style import (
    ALARM,
    COLOURS,
    DASHES,
    GOOD,
    TEXT,
    axes_of,
    label,
    legend,
    logarithmic,
    new_figure,
    one_axis,
    shortened,
    whole_numbers,
)


def plot_elbow(result: Elbow) -> Figure:
    """Inertia over the number of clusters, the knee marked."""
    figure, axis = one_axis()
    axis.plot(result.counts, result.inertias, "o-", color=COLOURS[0], markersize=4)
    axis.axvline(result.k, color=ALARM, linestyle="--", label=f"elbow: {result.k} clusters")
    axis.set_ylim(bottom=0)
    label(axis, "clusters", "inertia (mean squared distance)", "Elbow")
    legend(axis)
    return figure


def plot_silhouette(result: Silhouette) -> Figure:
    """Mean silhouette over the number of clusters, and the silhouette of every row at the best one."""
    figure = new_figure(height=3.2)
    left, right = axes_of(figure, 1, 2)
    left.plot(result.counts, result.means, "o-", color=COLOURS[0], markersize=4)
    left.axvline(result.k, color=ALARM, linestyle="--", label=f"best: {result.k} clusters")
    label(left, "clusters", "mean silhouette", "Silhouette")
    legend(left)
    bottom = 0
    for number, cluster in enumerate(np.unique(result.labels)):
        values = np.sort(result.values[result.labels == cluster])
        colour = COLOURS[number % len(COLOURS)]
        right.barh(np.arange(bottom, bottom + len(values)), values, height=1.0, color=colour, linewidth=0)
        bottom += len(values) + max(1, len(result.values) // 100)
    mean = float(result.values.mean())
    right.axvline(mean, color="black", linestyle="--", linewidth=1)
    right.set_yticks([])
    sizes = np.sort(np.unique(result.labels, return_counts=True)[1])[::-1]
    shown = ", ".join(map(str, sizes[:6])) + (", …" if len(sizes) > 6 else "")
    label(right, "silhouette", "images, by cluster", f"Clusters of {shown}; mean {mean:.2f}")
    return figure


def plot_k_distance(result: KDistance) -> Figure:
    """Sorted distances to the k-th neighbour, the knee and its eps marked."""
    figure, axis = one_axis()
    axis.plot(np.arange(1, len(result.distances) + 1), result.distances, color=COLOURS[0])
    axis.axhline(result.eps, color=ALARM, linestyle="--", label=f"knee: eps {result.eps:.3g}")
    axis.plot(result.knee + 1, result.eps, "o", color=ALARM, markersize=5)
    axis.set_ylim(bottom=0)
    label(axis, "rows, closest first", f"distance to neighbour {result.k}", "k-distance")
    legend(axis, loc="lower right")
    return figure


def plot_dbscan_sweep(result: DBSCANSweep, eps: float | None = None) -> Figure:
    """Clusters and share of noise over eps; `eps` is marked."""
    figure, axis = one_axis()
    twin = axis.twinx()
    twin.spines["top"].set_visible(False)
    twin.tick_params(labelsize=TEXT - 1)
    axis.plot(result.eps, result.n_clusters, "o" + DASHES[0], color=COLOURS[0], markersize=4, label="clusters")
    twin.plot(result.eps, result.noise_share, "s" + DASHES[1], color=COLOURS[1], markersize=4, label="noise")
    logarithmic(axis)
    axis.set_ylim(0, max(1.0, float(result.n_clusters.max())) * 1.25)  # room for the legend
    whole_numbers(axis, "y")
    twin.set_ylim(0, 1.25)
    twin.set_yticks([0, 0.25, 0.5, 0.75, 1])
    twin.set_ylabel("share of noise (squares)", fontsize=TEXT)
    if eps is not None:
        axis.axvline(eps, color=ALARM, linestyle=":", label=f"eps {eps:.3g}")
    label(axis, "eps", "clusters (dots)", f"DBSCAN, {result.min_samples} rows make a core sample")
    handles = [*axis.get_legend_handles_labels()[0], *twin.get_legend_handles_labels()[0]]
    axis.legend(handles=handles, fontsize=TEXT - 1, frameon=False, loc="upper right", ncols=3)
    return figure


def plot_explained_variance(result: ExplainedVariance) -> Figure:
    """Share of variance explained by the first components, together."""
    figure, axis = one_axis()
    axis.plot(np.arange(1, len(result.ratios) + 1), np.cumsum(result.ratios), color=COLOURS[0])
    for share, dash in zip((0.9, 0.95, 0.99), DASHES, strict=False):
        count = result.components_for(share)
        axis.axvline(count, color=GOOD, linestyle=dash, linewidth=1, label=f"{share:.0%}: {count} components")
    logarithmic(axis)
    axis.set_ylim(0, 1.02)
    label(axis, "principal components", "share of variance", "Explained variance")
    legend(axis, loc="upper left")
    return figure


def plot_region(region: Region, pictures: Sequence[np.ndarray]) -> Figure:
    """Pictures uint8 (h, w, 3) of one size, dark where they are not looked at, with a line around the region."""
    figure = new_figure(width=2.1 * max(2, len(pictures)), height=2.4)
    for axis, pixels in zip(axes_of(figure, 1, len(pictures)), pictures, strict=True):
        inside = region.at((pixels.shape[0], pixels.shape[1]))
        axis.imshow(np.where(inside[..., None], pixels, pixels * 0.35).astype(np.uint8))
        if not inside.all():
            axis.contour(inside, levels=[0.5], colors=COLOURS[1], linewidths=1.2)
        axis.set_axis_off()
    figure.suptitle(f"Looked at: {100 * region.share:.0f} % (dark is not)", fontsize=TEXT)
    return figure


def plot_suspicious(result: Suspicious, most: int = 8) -> Figure:
    """Scores of all training images, in order; the worst are named."""
    figure, axis = one_axis(height=3.2)
    ranks = np.arange(1, len(result.scores) + 1)
    inside = ~result.outlying
    axis.plot(ranks[inside], result.scores[inside], "o", color=GOOD, markersize=3, label="training images")
    if result.outlying.any():
        axis.plot(
            ranks[result.outlying], result.scores[result.outlying], "s", color=ALARM, markersize=4, label="far out"
        )
    axis.axhline(result.limit, color=ALARM, linestyle="--", linewidth=1, label="limit of far outliers")
    named = [shortened(name) for name in result.ids[:most]]
    text = "\n".join(f"{rank}. {name}" for rank, name in enumerate(named, start=1))
    axis.text(0.98, 0.96, text, fontsize=TEXT - 1, transform=axis.transAxes, ha="right", va="top")
    axis.set_ylim(bottom=0)
    label(axis, "training images, least like the others first", "score, as if unseen", "Suspicious training images")
    legend(axis, loc="lower left")
    return figure
