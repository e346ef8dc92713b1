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


def drawn(line: Line, entry: dict[str, Any], heat: bool, width: int) -> bytes | None:
    """A kept picture as JPEG, at most so wide, with its heat map; None if it is not there."""
    content = line.pictures.read(entry["id"])
    if content is None:
        return None
    try:
        pixels = line.judge.detector.open([content]).read(0)
        grid = line.pictures.grid(entry["id"]) if heat and entry["score"] is not None else None
        fitted = None if grid is None else line.fitted(entry["version"])
    except (UnreadableImageError, KeyError):
        return None
    shrink = max(1.0, max(pixels.shape[:2]) / width)
    size = round(pixels.shape[1] / shrink), round(pixels.shape[0] / shrink)
    shown = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)) if shrink > 1 else pixels
    if grid is not None and fitted is not None:
        threshold = entry["threshold"]
        scores = Scores(
            ids=[entry["name"]],
            scores=np.array([entry["score"]]),
            p_values=np.array([entry["p_value"]]),
            alarms=np.array([entry["verdict"] == "alarm"]),
            threshold=threshold,
            false_alarm_rate=entry["false_alarm_rate"],
            guarantee_met=True,
            image_sizes=[(pixels.shape[0], pixels.shape[1])],
            patch_scores=grid[None],
            map_scale=(0.5 * threshold, 2.0 * threshold),
            frame=fitted.frame,
            pixel_threshold=None if fitted.peaks is None or not entry["regions"] else fitted.peaks.threshold,
            usual_score=fitted.usual_score,
        )
        shown = overlaid(scores, 0, shown)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "jpeg", quality=88)
    return file.getvalue()
