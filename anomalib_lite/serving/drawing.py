"""Kept pictures as JPEG, with what was found in them drawn over it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.plotting.overlays import overlaid
from anomalib_lite.results import Scores
from anomalib_lite.serving.line import Line

_QUALITY = 88  # of JPEG: lines drawn over a picture have no fringes yet


def drawn(line: Line, entry: dict[str, Any], *, heat: bool, outline: bool, width: int) -> bytes | None:
    """A kept picture as JPEG, at most so wide, with its heat map and outlines of regions; None if it is not there."""
    pixels = picture(line, entry["id"])
    if pixels is None:
        return None
    shrink = max(1.0, max(pixels.shape[:2]) / width)
    size = round(pixels.shape[1] / shrink), round(pixels.shape[0] / shrink)
    shown = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)) if shrink > 1 else pixels
    scores = _scores(line, entry, (pixels.shape[0], pixels.shape[1]), outline) if heat else None
    return jpeg(shown if scores is None else overlaid(scores, 0, shown))


def outlines(line: Line, entry: dict[str, Any]) -> list[list[list[list[float]]]]:
    """Of every region its rings, each a list of corners (x, y) in pixels of the picture; none if it is not kept."""
    if entry["height"] is None:
        return []
    scores = _scores(line, entry, (entry["height"], entry["width"]), outline=True)
    if scores is None or scores.pixel_threshold is None:
        return []
    return [[[[float(x), float(y)] for x, y in ring] for ring in region.outline] for region in scores.regions(0)]


def picture(line: Line, identity: int) -> np.ndarray | None:
    """The pixels of a kept picture, None if it is not there or cannot be read."""
    content = line.pictures.read(identity)
    if content is None:
        return None
    try:
        return line.judge.detector.open([content]).read(0)
    except UnreadableImageError:
        return None


def jpeg(pixels: np.ndarray) -> bytes:
    """Pixels uint8 (H, W, 3) as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=_QUALITY)
    return file.getvalue()


def _scores(line: Line, entry: dict[str, Any], size: tuple[int, int], outline: bool) -> Scores | None:
    """What was found in a picture of `size` (height, width), as its verdict said; None if it is not kept."""
    grid = None if entry["score"] is None else line.pictures.grid(entry["id"])
    if grid is None:
        return None
    try:
        fitted = line.fitted(entry["version"])
    except KeyError:
        return None
    threshold = entry["threshold"]
    return Scores(
        ids=[entry["name"]],
        scores=np.array([entry["score"]]),
        p_values=np.array([entry["p_value"]]),
        alarms=np.array([entry["verdict"] == "alarm"]),
        threshold=threshold,
        false_alarm_rate=entry["false_alarm_rate"],
        guarantee_met=True,
        image_sizes=[size],
        patch_scores=grid[None],
        map_scale=(0.5 * threshold, 2.0 * threshold),
        frame=fitted.frame,
        # Regions are told of alarms alone, so that they are drawn of alarms alone.
        pixel_threshold=None if fitted.peaks is None or not (outline and entry["regions"]) else fitted.peaks.threshold,
        usual_score=fitted.usual_score,
    )
