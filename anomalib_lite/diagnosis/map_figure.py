"""Embedding maps as figures: points by kind, training images in grey, alarms ringed, thumbnails when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from anomalib_lite.diagnosis.projection import EmbeddingMap
from anomalib_lite.images.mvtec import is_good_name
from anomalib_lite.plotting.style import ALARM, COLOURS, GOOD, MARKERS, TEXT, legend, one_axis, shortened

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
    ring: str = "alarm",
) -> Figure:
    """Draw a map.

    Parameters
    ----------
    kinds : sequence of str, one for every row the map was made from
        "training", a name of good images (see `is_good_name`) or a defect's.
    alarms : sequence of bool, optional
        Rows to ring, called `ring` in the legend.
    thumbnail : function from a row to a uint8 image (h, w, 3), optional
        Drawn for some dozens of points that lie apart.
    """
    names, points = np.asarray(kinds)[result.rows], result.points
    figure, axis = one_axis(height=4.6)
    axis.spines[:].set_visible(False)
    axis.set_xticks([])
    axis.set_yticks([])
    order = sorted(set(names.tolist()), key=lambda kind: (kind != TRAINING, not is_good_name(kind), kind))
    coloured = [kind for kind in order if kind != TRAINING]
    for kind in order:
        here = names == kind
        colour, marker, size = _TRAINING_STYLE
        if kind != TRAINING:
            number = coloured.index(kind)
            colour, marker, size = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], 18
        name = f"{shortened(kind)} ({here.sum()})"
        axis.scatter(points[here, 0], points[here, 1], color=colour, marker=marker, s=size, linewidths=0, label=name)
    if alarms is not None:
        ringed = np.asarray(alarms, dtype=bool)[result.rows]
        axis.scatter(
            points[ringed, 0], points[ringed, 1], s=60, facecolors="none", edgecolors=ALARM, linewidths=0.9,
            label=f"{ring} ({ringed.sum()})",
        )  # fmt: skip
    if thumbnail is not None:
        ringed = np.zeros(len(points), dtype=bool) if alarms is None else np.asarray(alarms, dtype=bool)[result.rows]
        for place in _apart(points, ringed, _THUMBNAILS):
            pixels = thumbnail(int(result.rows[place]))
            picture = OffsetImage(pixels, zoom=_THUMBNAIL_SIDE / max(pixels.shape[:2]))
            border = {"edgecolor": ALARM if ringed[place] else GOOD, "lw": 1.4 if ringed[place] else 0.7}
            box = AnnotationBbox(picture, tuple(points[place]), pad=0.06, bboxprops=border)
            axis.add_artist(box)
    title = f"{_NAMES[result.method]} of image embeddings"
    if result.subsampled:
        title += f", {len(points)} of {len(kinds)} images (coreset)"
    axis.set_title(title, fontsize=TEXT + 1, loc="left")
    legend(axis, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.3)
    return figure


def _apart(points: np.ndarray, first: np.ndarray, most: int) -> list[int]:
    """Points at least a thumbnail apart, those of `first` (n,) before others, so that pictures cover no other."""
    span = np.maximum(np.ptp(points, axis=0), 1e-9)
    places = (points - points.min(axis=0)) / span
    taken: list[int] = []
    shuffled = np.random.default_rng(0).permutation(len(points))
    for i in shuffled[np.argsort(~first[shuffled], kind="stable")]:
        if all(np.abs(places[i] - places[j]).max() > 0.085 for j in taken):
            taken.append(int(i))
        if len(taken) == most:
            break
    return taken
