"""What comes back to the user of a detector: `Scores` of new images. Frozen, plain arrays."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.images.loading import UnreadableImage

# Standard deviation of the smoothing of anomaly maps, in patches (Roth et al., PatchCore, use 4 pixels at stride 8).
_SMOOTHING = 0.5


@dataclass(frozen=True)
class Nearest:
    """What the worst patch of an image looks most like among the good training images.

    Boxes are (left, top, right, bottom) in pixels of the image they lie in.
    """

    box: tuple[int, int, int, int]
    train_id: str
    train_box: tuple[int, int, int, int]
    distance: float


@dataclass(frozen=True)
class Scores:
    """Scores of new images, in the order given; unreadable ones are listed apart.

    Attributes
    ----------
    ids : list of str, length n
    scores : float64 (n,)
        Anomaly scores, in the unit of the scorer's distance; higher = more anomalous.
    p_values : float64 (n,)
        Share of good images expected to score at least as high (conformal, from good training images only).
    alarms : bool (n,)
        score > threshold.
    threshold, false_alarm_rate : float
        The alarm threshold and the false-alarm rate it was set for.
    guarantee_met : bool
        Whether there were enough training images to support that rate.
    image_sizes : list of (height, width)
    patch_scores : float32 (n, gh, gw), or None at the global level
        Scores on the patch grid; `anomaly_map` brings them to image size.
    map_scale : (low, high)
        The scores painted as wholly good and wholly bad, the same for all images.
    nearest : list of Nearest, or None for scorers other than kNN
    unreadable : list of UnreadableImage
    """

    ids: list[str]
    scores: np.ndarray
    p_values: np.ndarray
    alarms: np.ndarray
    threshold: float
    false_alarm_rate: float
    guarantee_met: bool
    image_sizes: list[tuple[int, int]]
    patch_scores: np.ndarray | None = None
    map_scale: tuple[float, float] = (0.0, 1.0)
    nearest: list[Nearest] | None = None
    unreadable: list[UnreadableImage] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def anomaly_map(self, i: int) -> np.ndarray:
        """Anomaly map (H, W) float32 of image `i` at its original size, in the unit of the scores.

        Raises
        ------
        ValueError
            At the global level, which scores whole images only.
        """
        if self.patch_scores is None:
            raise ValueError("level='global' scores whole images and has no anomaly maps; use level='patch'")
        grid = self.patch_scores[i]
        height, width = self.image_sizes[i]
        rows = _resizing(grid.shape[0], height)
        columns = rows if (grid.shape[1], width) == (grid.shape[0], height) else _resizing(grid.shape[1], width)
        return rows @ grid @ columns.T

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps, JSON-able: one entry per image and the threshold."""
        images = []
        for i, image_id in enumerate(self.ids):
            entry: dict[str, Any] = {
                "id": image_id,
                "score": float(self.scores[i]),
                "p_value": float(self.p_values[i]),
                "alarm": bool(self.alarms[i]),
            }
            if self.nearest is not None:
                entry["nearest"] = asdict(self.nearest[i])
            images.append(entry)
        return {
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "guarantee_met": self.guarantee_met,
            "images": images,
            "unreadable": [asdict(entry) for entry in self.unreadable],
        }

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one line per image, unreadable ones included with their reason; returns the path."""
        path = Path(path)
        # File names need not be valid text; what is not comes out as \\x.. instead of stopping the run.
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "score", "p_value", "alarm", "unreadable"])
            for i, image_id in enumerate(self.ids):
                row = [f"{self.scores[i]:.6g}", f"{self.p_values[i]:.6g}", int(self.alarms[i]), ""]
                writer.writerow([_as_text(image_id), *row])
            for entry in self.unreadable:
                writer.writerow([_as_text(entry.id), "", "", "", _as_text(entry.reason)])
        return path

    def save_overlays(self, folder: str | os.PathLike[str], images: Any, *, only_alarms: bool = False) -> list[Path]:
        """Write every image with its heat map over it as PNG, all on one colour scale.

        Parameters
        ----------
        folder : path
            Made if missing. Sub-folders of ids become part of the file names.
        images : the images that were scored, as given to `score`.
        only_alarms : leave out images that did not alarm.

        Returns
        -------
        list of Path, in the order of `ids`.

        Raises
        ------
        ValueError
            At the global level, or when `images` lacks a scored id.
        """
        from anomalib_lite.plotting.overlays import save_overlays

        return save_overlays(self, folder, images, only_alarms=only_alarms)


def _resizing(cells: int, pixels: int) -> np.ndarray:
    """Matrix (pixels, cells) that resizes bilinearly and smooths with a Gaussian: one axis of an anomaly map."""
    key = (cells, pixels)
    if key not in _RESIZING:
        centres = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
        tent = np.maximum(0, 1 - np.abs(np.clip(centres, 0, cells - 1)[:, None] - np.arange(cells)))
        if pixels < cells:  # shrinking has to average, not to pick
            tent = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(cells)) * pixels / cells)
        offsets = np.arange(pixels)[:, None] - np.arange(pixels)
        gaussian = np.exp(-0.5 * (offsets * cells / pixels / _SMOOTHING) ** 2)
        matrix = (gaussian / gaussian.sum(axis=1, keepdims=True)) @ (tent / tent.sum(axis=1, keepdims=True))
        if len(_RESIZING) >= 64:  # many sizes in one set: keep memory bounded
            _RESIZING.clear()
        _RESIZING[key] = matrix.astype(np.float32)
    return _RESIZING[key]


_RESIZING: dict[tuple[int, int], np.ndarray] = {}


def _as_text(value: str) -> str:
    """A cell that a spreadsheet shows rather than runs: file names come from strangers."""
    return "'" + value if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
