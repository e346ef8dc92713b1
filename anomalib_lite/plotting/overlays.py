"""Anomaly maps over their images, on one colour scale: as figures, as contact sheets, as a folder of PNG files.

The scale is fixed by the alarm threshold, never by the image: a good part stays uncoloured however its own map
varies, and white ground stays white. What is outside the region of interest is dark, and a line goes around every
region of a defect.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from PIL import Image, ImageDraw

from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.locating.regions import DefectRegion
from anomalib_lite.plotting.picture_folder import picture_folder, save_pictures
from anomalib_lite.plotting.scored import Scored, pictures_of
from anomalib_lite.plotting.style import TEXT, axes_of, literal, new_figure, shortened

# Dark to light in even steps: ordered in grey print and for the colour-blind.
COLOURS = "inferno"
_OPACITY = 0.65
# Of the scale, whose third is the threshold (`map_scale`): nothing is painted below the first, most from the second on.
# The first is 0.8 of the threshold; 97 of 100 patches of good images lie below it (metal_nut 0.82, kolektor 0.73).
_FAINT, _STRONG = 0.2, 0.45
_SHADE = 0.4  # of the light of what is not looked at
_PALETTE = 64  # entries of a heat layer's palette
_LEVELS = 4096  # of heat: the eye tells fewer, and a table is faster than a formula for every pixel
_LARGEST = 2**25  # pixels of an overlay; larger images are drawn at a half of their sides, or a third, ...
_PIXELS = 2**19  # painted at a time, so that a long line-scan picture needs little more memory than itself


def overlay(
    pixels: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float], looked_at: np.ndarray | None = None
) -> np.ndarray:
    """Lay a heat map over an image.

    Parameters
    ----------
    pixels : uint8 (H, W, 3)
    anomaly_map : float (H, W)
    scale : (low, high)
        Scores at the two ends of the colours; nothing is painted in their lowest fifth.
    looked_at : bool (H, W), optional
        What is False is drawn darker.

    Returns
    -------
    uint8 (H, W, 3)
    """
    painted = np.empty_like(pixels)
    _paint(painted, pixels, [(slice(0, len(pixels)), anomaly_map)], scale, looked_at)
    return painted


def overlaid(scores: Scored, i: int, pixels: np.ndarray, *, in_place: bool = False) -> np.ndarray:
    """The pixels uint8 (h, w, 3) of image `i` of `scores` with its heat map over it, and its regions outlined.

    They may be fewer than the image has. With `in_place` they are painted over, and nothing of their size is made.
    """
    size = pixels.shape[0], pixels.shape[1]
    painted = pixels if in_place else np.empty_like(pixels)
    _paint(painted, pixels, scores.map_bands(i, size), scores.map_scale, scores.looked_at(i, size))
    (height, width), pen = scores.image_sizes[i], max(1, round(min(size) / 320))
    for region in scores.regions(i):
        _outline(painted, region, (size[0] / height, size[1] / width), pen)
    return painted


def heat_opacity(heat: np.ndarray) -> np.ndarray:
    """How much of its colour covers a picture, by the place in the scale from 0 to 1: what is good stays uncovered."""
    rise = np.clip((heat - _FAINT) / (_STRONG - _FAINT), 0, 1)
    return _OPACITY * rise * rise * (3 - 2 * rise)


def heat_layer(anomaly_map: np.ndarray, scale: tuple[float, float], looked_at: np.ndarray | None = None) -> Image.Image:
    """A heat map to be laid over a picture, with the opacities of `overlay`: RGBA in a palette, for a small PNG file.

    Parameters
    ----------
    anomaly_map : float (h, w)
    scale, looked_at : as for `overlay`
    """
    low, high = scale
    heat = np.clip((anomaly_map - low) / max(high - low, 1e-12), 0, 1)
    # The first entry of the palette is nothing, the last is what is not looked at.
    shares = np.linspace(_FAINT, 1, _PALETTE - 1)
    entries = np.rint((heat - _FAINT) / (1 - _FAINT) * (_PALETTE - 2)).clip(0).astype(np.uint8)
    colours = np.vstack([255 * colormaps[COLOURS](shares)[:, :3], [[0, 0, 0]]])
    opacity = np.append(heat_opacity(shares), 1 - _SHADE)
    if looked_at is not None:
        entries[~looked_at] = _PALETTE - 1
    layer = Image.fromarray(entries, "P")
    layer.putpalette(np.rint(colours).astype(np.uint8).tobytes())
    layer.info["transparency"] = np.rint(255 * opacity).astype(np.uint8).tobytes()
    return layer


def _paint(
    painted: np.ndarray,
    pixels: np.ndarray,
    bands: Iterable[tuple[slice, np.ndarray]],
    scale: tuple[float, float],
    looked_at: np.ndarray | None,
) -> None:
    low, high = scale
    heat = (np.arange(_LEVELS, dtype=np.float32) + 0.5) / _LEVELS  # middles: no level has two of the 256 colours
    weight = heat_opacity(heat)[:, None]
    colours = colormaps[COLOURS](heat)[:, :3].astype(np.float32) * 255 * weight
    steps = _LEVELS / max(high - low, 1e-12)  # of heat in a unit of score
    step = max(1, _PIXELS // pixels.shape[1])
    for band, values in bands:
        for top in range(band.start, band.stop, step):
            rows = slice(top, min(top + step, band.stop))
            levels = (values[top - band.start : rows.stop - band.start] - low) * steps
            levels = np.clip(levels, 0, _LEVELS - 1).astype(np.uint16)
            mixed = pixels[rows] * (1 - weight)[levels] + colours[levels]
            if looked_at is not None:
                outside = ~looked_at[rows]
                mixed[outside] = _SHADE * pixels[rows][outside]
            painted[rows] = np.rint(mixed)


def _outline(pixels: np.ndarray, region: DefectRegion, scale: tuple[float, float], pen: int) -> None:
    """Draw a line around a region: light with dark edges, to be seen on any ground."""
    left, top, right, bottom = region.box
    box = [
        slice(max(0, int(low * part) - 3 * pen), int(high * part) + 3 * pen + 1)
        for low, high, part in ((top, bottom, scale[0]), (left, right, scale[1]))
    ]
    near = Image.fromarray(pixels[box[0], box[1]])
    pencil = ImageDraw.Draw(near)
    for colour, wide in (((0, 0, 0), 3 * pen), ((120, 220, 255), pen)):
        for ring in region.outline:
            corners = [(x * scale[1] - box[1].start, y * scale[0] - box[0].start) for x, y in ring]
            pencil.line([*corners, corners[0]], fill=colour, width=wide)
    pixels[box[0], box[1]] = np.asarray(near)


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
    pixels, anomaly_map = pictures_of(scores, images)(i), scores.anomaly_map(i)
    figure = new_figure(height=3.4)
    left, right = axes_of(figure, 1, 2)
    for axis, picture in ((left, pixels), (right, overlaid(scores, i, pixels))):
        axis.imshow(picture)
        axis.set_axis_off()
    if anomaly_map.min() < scores.threshold < anomaly_map.max():
        # White on black can be seen on any ground.
        for colour, width in (("black", 2.4), ("white", 1.0)):
            right.contour(anomaly_map, levels=[scores.threshold], colors=colour, linewidths=width)
    verdict = ("alarm as a whole" if scores.as_a_whole(i) else "alarm") if scores.alarms[i] else "good"
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
    outline = [Stroke(linewidth=2.4, foreground="black"), Normal()]
    handles = [
        Patch(facecolor=(0.9, 0.62, 0.0, 0.55), label="predicted"),
        Line2D([], [], color="white", linewidth=1.0, path_effects=outline, label="true"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=TEXT - 1, frameon=False)
    return figure


def save_overlays(
    scores: Scored, folder: str | os.PathLike[str], images: Any, *, only_alarms: bool = False
) -> list[Path]:
    """Write overlays as PNG files; see `Scores.save_overlays`."""
    picture_folder(folder)
    read = pictures_of(scores, images, most=_LARGEST, to_change=True)
    chosen = np.flatnonzero(scores.alarms).tolist() if only_alarms else range(len(scores.ids))
    wanted = {i: scores.ids[i] for i in chosen}
    if wanted:
        scores.require_maps()  # the global level has none and says so, before anything is made

    def write(i: int, path: Path) -> None:
        Image.fromarray(overlaid(scores, i, read(i), in_place=True)).save(path)

    return save_pictures(folder, wanted, write)


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
    read = pictures_of(scores, images)
    chosen = list(np.argsort(-scores.scores, kind="stable") if order is None else order)[: columns * rows]
    columns = max(1, min(columns, len(chosen)))
    lines = max(1, -(-len(chosen) // columns))
    figure = new_figure(width=1.7 * columns, height=3.75 * lines + 0.75)
    axes = axes_of(figure, 2 * lines, columns)
    for axis in axes:
        axis.set_axis_off()
    for place, i in enumerate(chosen):
        above = axes[place + place // columns * columns]
        below = axes[place + (place // columns + 1) * columns]
        above.set_title(f"{shortened(scores.ids[i])}\nscore {scores.scores[i]:.2f}", fontsize=7)
        below.set_title(f"{'alarm' if scores.alarms[i] else 'good'}, p = {scores.p_values[i]:.3g}", fontsize=7)
        try:
            pixels = read(i)
        except UnreadableImageError as error:
            reason = "\n".join(textwrap.wrap(literal(str(error)), 24)[:8])
            above.text(0.5, 0.5, reason, fontsize=7, ha="center", va="center", transform=above.transAxes)
            continue
        above.imshow(pixels)
        below.imshow(overlaid(scores, i, pixels))
    scale = _scale_mappable(*scores.map_scale)
    colours = figure.colorbar(scale, ax=axes, orientation="horizontal", shrink=0.5, aspect=40, pad=0.02)
    colours.set_label(f"patch score (alarm threshold of an image: {scores.threshold:.2f})", fontsize=7)
    colours.ax.tick_params(labelsize=7)
    return figure


def _scale_mappable(low: float, high: float) -> ScalarMappable:
    return ScalarMappable(Normalize(low, high), colormaps[COLOURS])
