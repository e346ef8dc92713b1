"""Embedding maps as figures: points by kind, training images in grey, alarms ringed, thumbnails when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from anomalib_lite.plotting.style import ALARM, COLOURS, GOOD, MARKERS, TEXT, axes_of, legend, new_figure
from anomalib_lite.projection import EmbeddingMap

TRAINING = "training"
_NAMES = {"tsne": "t-SNE", "umap": "UMAP"}
_TRAINING_STYLE = ("#c8c8c8", "o", 10)
_THUMBNAILS = 40  # more cover each other
_THUMBNAIL_SIDE = 22  # points


def plot_embedding_map(
    result: EmbeddingMap,
    kinds: Sequence[str],
    *,
    alarms: Sequence[bool] | None = None,
    thumbnail: Callable[[int], np.ndarray] | None = None,
) -> Figure:
    """Draw a map.

    Parameters
    ----------
    kinds : sequence of str, one for every row the map was made from
        "training", "good" or a defect's name.
    alarms : sequence of bool, optional
        Rows to ring.
    thumbnail : function from a row to a uint8 image (h, w, 3), optional
        Drawn for some dozens of points that lie apart.
    """
    names, points = np.asarray(kinds)[result.rows], result.points
    figure = new_figure(height=4.6)
    (axis,) = axes_of(figure)
    axis.spines[:].set_visible(False)
    axis.set_xticks([])
    axis.set_yticks([])
    order = sorted(set(names.tolist()), key=lambda kind: (kind != TRAINING, kind != "good", kind))
    coloured = [kind for kind in order if kind != TRAINING]
    for kind in order:
        here = names == kind
        colour, marker, size = _TRAINING_STYLE
        if kind != TRAINING:
            number = coloured.index(kind)
            colour, marker, size = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], 18
        name = f"{kind} ({here.sum()})"
        axis.scatter(points[here, 0], points[here, 1], color=colour, marker=marker, s=size, linewidths=0, label=name)
    if alarms is not None:
        ringed = np.asarray(alarms, dtype=bool)[result.rows]
        axis.scatter(
            points[ringed, 0], points[ringed, 1], s=60, facecolors="none", edgecolors=ALARM, linewidths=0.9,
            label=f"alarm ({ringed.sum()})",
        )  # fmt: skip
    if thumbnail is not None:
        for place in _apart(points, _THUMBNAILS):
            pixels = thumbnail(int(result.rows[place]))
            picture = OffsetImage(pixels, zoom=_THUMBNAIL_SIDE / max(pixels.shape[:2]))
            edge = GOOD if names[place] in (TRAINING, "good") else ALARM
            box = AnnotationBbox(picture, tuple(points[place]), pad=0.06, bboxprops={"edgecolor": edge, "lw": 0.7})
            axis.add_artist(box)
    title = f"{_NAMES[result.method]} of image embeddings"
    if result.subsampled:
        title += f", {len(points)} of {len(kinds)} images (coreset)"
    axis.set_title(title, fontsize=TEXT + 1, loc="left")
    legend(axis, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.3)
    return figure


def _apart(points: np.ndarray, most: int) -> list[int]:
    """Points at least a thumbnail apart, so that pictures do not cover each other."""
    span = np.maximum(np.ptp(points, axis=0), 1e-9)
    places = (points - points.min(axis=0)) / span
    taken: list[int] = []
    for i in np.random.default_rng(0).permutation(len(points)):
        if all(np.abs(places[i] - places[j]).max() > 0.085 for j in taken):
            taken.append(int(i))
        if len(taken) == most:
            break
    return taken
