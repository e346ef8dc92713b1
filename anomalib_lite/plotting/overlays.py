"""Anomaly maps over their images, on one colour scale, and contact sheets of the worst ones.

The scale is fixed by the alarm threshold, never by the image: a good part stays uncoloured however its own
map varies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from PIL import Image

from anomalib_lite.images.sources import open_source
from anomalib_lite.plotting.scored import Scored
from anomalib_lite.plotting.style import TEXT, axes_of, new_figure, shortened

# Dark to light in even steps: ordered in grey print and for the colour-blind.
COLOURS = "inferno"
_OPACITY = 0.65


def overlay(pixels: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Lay a heat map over an image.

    Parameters
    ----------
    pixels : uint8 (H, W, 3)
    anomaly_map : float (H, W)
    scale : (low, high)
        Scores painted not at all and fully.

    Returns
    -------
    uint8 (H, W, 3)
    """
    low, high = scale
    heat = np.clip((anomaly_map - low) / max(high - low, 1e-12), 0, 1)
    colours = colormaps[COLOURS](heat)[..., :3] * 255
    # Opacity grows with the heat, so that what is good shows through unchanged.
    weight = (_OPACITY * np.sqrt(heat))[..., None]
    return np.round(pixels * (1 - weight) + colours * weight).astype(np.uint8)


def plot_anomaly_map(scores: Scored, i: int, images: Any) -> Figure:
    """Image `i` of `scores` beside its overlay, with a contour around what scores above the alarm threshold.

    Parameters
    ----------
    scores : Scores with anomaly maps
    images : the images that were scored

    Raises
    ------
    ValueError
        At the global level, which has no maps, or when `images` lacks the id.
    """
    source = open_source(images)
    if scores.ids[i] not in source.ids:
        raise ValueError(f"{scores.ids[i]!r} was scored but is not among the images given; give the same images")
    pixels, anomaly_map = source.read(list(source.ids).index(scores.ids[i])), scores.anomaly_map(i)
    figure = new_figure(height=3.4)
    left, right = axes_of(figure, 1, 2)
    for axis, picture in ((left, pixels), (right, overlay(pixels, anomaly_map, scores.map_scale))):
        axis.imshow(picture)
        axis.set_axis_off()
    if anomaly_map.min() < scores.threshold < anomaly_map.max():
        # White on black can be seen on any ground.
        for colour, width in (("black", 2.4), ("white", 1.0)):
            right.contour(anomaly_map, levels=[scores.threshold], colors=colour, linewidths=width)
    verdict = "alarm" if scores.alarms[i] else "good"
    left.set_title(shortened(scores.ids[i]), fontsize=TEXT, loc="left")
    right.set_title(f"{verdict}: score {scores.scores[i]:.3g}, p = {scores.p_values[i]:.3g}", fontsize=TEXT, loc="left")
    bar = figure.colorbar(_scale_mappable(*scores.map_scale), ax=right, shrink=0.8)
    bar.set_label(f"patch score (line: {scores.threshold:.3g})", fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT - 1)
    return figure


def plot_masks(
    pixels: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    actual: Sequence[np.ndarray | None],
    titles: Sequence[str],
    *,
    columns: int = 4,
) -> Figure:
    """Predicted masks tinted over their images, with the outline of the true ones.

    Parameters
    ----------
    pixels : uint8 (H, W, 3) each
    predicted, actual : bool (H, W) each, True where defective; None where the truth is not known
    titles : one per image
    """
    columns = max(1, min(columns, len(pixels)))
    lines = max(1, -(-len(pixels) // columns))
    figure = new_figure(width=max(3.0, 1.6 * columns), height=1.85 * lines + 0.3)
    axes = axes_of(figure, lines, columns)
    for axis in axes:
        axis.set_axis_off()
    for axis, image, said, truth, title in zip(axes, pixels, predicted, actual, titles, strict=False):
        tinted = np.where(said[..., None], 0.45 * image + 0.55 * np.array([230, 159, 0]), image)
        axis.imshow(np.round(tinted).astype(np.uint8))
        if truth is not None and truth.any() and not truth.all():
            for colour, width in (("black", 2.2), ("white", 1.0)):
                axis.contour(truth, levels=[0.5], colors=colour, linewidths=width)
        axis.set_title(shortened(title), fontsize=TEXT - 1)
    handles = [
        Patch(facecolor=(0.9, 0.62, 0.0, 0.55), label="predicted"),
        Line2D(
            [],
            [],
            color="white",
            linewidth=1.0,
            path_effects=[Stroke(linewidth=2.4, foreground="black"), Normal()],
            label="true",
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=TEXT - 1, frameon=False)
    return figure


def save_overlays(
    scores: Scored, folder: str | os.PathLike[str], images: Any, *, only_alarms: bool = False
) -> list[Path]:
    """Write overlays as PNG files; see `Scores.save_overlays`."""
    source = open_source(images)
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    missing = [image_id for image_id in scores.ids if image_id not in position]
    if missing:
        raise ValueError(f"{missing[0]!r} was scored but is not among the images given; give the same images")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    used: set[str] = set()
    for i, image_id in enumerate(scores.ids):
        if only_alarms and not scores.alarms[i]:
            continue
        painted = overlay(source.read(position[image_id]), scores.anomaly_map(i), scores.map_scale)
        path = folder / f"{_file_name(image_id, used)}.png"
        Image.fromarray(painted).save(path)
        written.append(path)
    return written


def contact_sheet(
    scores: Scored, images: Any, *, order: Sequence[int] | None = None, columns: int = 6, rows: int = 2
) -> Figure:
    """The images with the highest scores (or those of `order`), each above its overlay.

    Parameters
    ----------
    scores : Scores with anomaly maps
    images : the images that were scored
    order : positions in `scores.ids`, optional
    columns, rows : pairs per row, and rows of pairs

    Raises
    ------
    ValueError
        At the global level, which has no maps.
    """
    source = open_source(images)
    position = {image_id: i for i, image_id in enumerate(source.ids)}
    chosen = list(np.argsort(-scores.scores, kind="stable") if order is None else order)[: columns * rows]
    columns = max(1, min(columns, len(chosen)))
    lines = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(1.7 * columns, 3.75 * lines + 0.75), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, i in enumerate(chosen):
        pixels = source.read(position[scores.ids[i]])
        above, below = axes[2 * (place // columns), place % columns], axes[2 * (place // columns) + 1, place % columns]
        above.imshow(pixels)
        above.set_title(f"{shortened(scores.ids[i])}\nscore {scores.scores[i]:.2f}", fontsize=7)
        below.imshow(overlay(pixels, scores.anomaly_map(i), scores.map_scale))
        verdict = f"alarm, p = {scores.p_values[i]:.3g}" if scores.alarms[i] else f"good, p = {scores.p_values[i]:.3g}"
        below.set_title(verdict, fontsize=7)
    low, high = scores.map_scale
    colours = figure.colorbar(
        _scale_mappable(low, high), ax=axes, orientation="horizontal", shrink=0.5, aspect=40, pad=0.02
    )
    colours.set_label(f"patch score (alarm threshold of an image: {scores.threshold:.2f})", fontsize=7)
    colours.ax.tick_params(labelsize=7)
    return figure


def _scale_mappable(low: float, high: float) -> ScalarMappable:
    return ScalarMappable(Normalize(low, high), colormaps[COLOURS])


def _file_name(image_id: str, used: set[str]) -> str:
    """A name that stays inside its folder, whatever the id, and is not taken yet."""
    parts = [part for part in os.path.splitext(image_id)[0].split("/") if part not in ("", ".", "..")]
    base = "".join(character if character.isalnum() or character in "-_." else "_" for character in "_".join(parts))
    base = base[-60:].lstrip(".") or "image"  # file systems allow 255 bytes, and a character takes up to 4
    name, number = base, 2
    while name.casefold() in used:  # some file systems do not tell A from a
        name, number = f"{base}_{number}", number + 1
    used.add(name.casefold())
    return name
