"""Explanation by retrieval: the worst patch of an image beside the good training patch it looks most like."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from anomalib_lite.images.sources import open_source
from anomalib_lite.plotting.places import CONTEXT, Box
from anomalib_lite.plotting.scored import Scored, pictures_of
from anomalib_lite.plotting.style import ALARM, COLOURS, TEXT, axes_of, new_figure, shortened


def plot_retrieval(scores: Scored, i: int, images: Any, training_images: Any) -> Figure:
    """Image `i` of `scores`, its worst patch enlarged, the nearest good patch enlarged, and its training image.

    Parameters
    ----------
    scores : Scores of a kNN detector
    images, training_images : the images that were scored, and those the detector was fitted on

    Raises
    ------
    ValueError
        If the scorer has no neighbours, or the images lack the ids in question.
    """
    if scores.nearest is None:
        raise ValueError("only scorer='knn' knows which good patch is nearest")
    nearest = scores.nearest[i]
    query, good = pictures_of(scores, images)(i), _training_picture(training_images, nearest.train_id)
    figure = new_figure(height=2.0)
    axes = axes_of(figure, 1, 4)
    _whole(axes[0], query, nearest.box, ALARM, f"{shortened(scores.ids[i])}\nscore {scores.scores[i]:.3g}")
    _close(axes[1], query, nearest.box, ALARM, "unlike anything seen")
    _close(axes[2], good, nearest.train_box, COLOURS[0], f"the closest is this\n(distance {nearest.distance:.3g})")
    _whole(axes[3], good, nearest.train_box, COLOURS[0], f"{shortened(nearest.train_id)}\ngood, from training")
    return figure


def _training_picture(images: Any, image_id: str) -> np.ndarray:
    source = open_source(images)
    if image_id not in source.ids:
        raise ValueError(f"{image_id!r} is not among the images given; give those the detector was fitted on")
    return source.read(list(source.ids).index(image_id))


def _whole(axis: Axes, pixels: np.ndarray, box: Box, colour: str, title: str) -> None:
    axis.imshow(pixels)
    left, top, right, bottom = box
    # Thick enough to be found in a picture of the size of a stamp.
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.8))
    _finish(axis, title)


def _close(axis: Axes, pixels: np.ndarray, box: Box, colour: str, title: str) -> None:
    left, top, right, bottom = box
    reach_x, reach_y = CONTEXT * (right - left), CONTEXT * (bottom - top)
    axis.imshow(pixels, interpolation="nearest")
    # The same extent for every crop, so that both can be compared; beyond the image it is grey.
    axis.set_facecolor("#e4e4e4")
    axis.set_xlim(left - reach_x - 0.5, right + reach_x - 0.5)
    axis.set_ylim(bottom + reach_y - 0.5, top - reach_y - 0.5)
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.8))
    _finish(axis, title)


def _finish(axis: Axes, title: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=TEXT - 1)
