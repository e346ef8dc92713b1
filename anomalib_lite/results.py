"""What comes back to the user of a detector: `Scores` of new images. Frozen, plain arrays that cannot be written to."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.fitted.calibration import ALARM, GOOD, LOOK_AGAIN
from anomalib_lite.fitted.core import Nearest
from anomalib_lite.fitted.maps import anomaly_map
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.reading import Reading

NO_VERDICT = "no verdict"  # of an image that cannot be read
# What a spreadsheet takes for a formula, behind what it strips; a full-width sign counts for some of them.
_FORMULA = re.compile(r"[\s\x00-\x20\u200b-\u200f\ufeff]*[=+\-@＝＋－＠]|[\t\r\n]")


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
    look_again : float or None
        A lower threshold, above which an image that does not alarm is to be looked at again.
    calibration_groups : int
        Good images (or groups of them) that p-values come from; 1 / (n + 1) is the smallest they allow.
    image_sizes : list of (height, width)
    patch_scores : float32 (n, gh, gw), or None at the global level
        Scores on the patch grid, NaN where it reaches beyond the image; `anomaly_map` brings them to image size.
    map_scale : (low, high)
        The scores painted as wholly good and wholly bad, the same for all images.
    nearest : list of Nearest, or None for scorers other than kNN
    unreadable : list of UnreadableImage
    vectors : float32 (n, d), or None
        One vector per image, what `embedding.streaming.embed_whole` gives: a report draws its map from them.
    notes : dict of str to str
        By id, what is not shown of an image: values that leave the range of the training images, further pages.
    reading : Reading or None
        How the images were read, for those who read them again.
    frame : Frame or None
        How an image lies on the patch grid; None: the grid is stretched over it.
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
    look_again: float | None = None
    calibration_groups: int = 0
    unreadable: list[UnreadableImage] = field(default_factory=list)
    vectors: np.ndarray | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    reading: Reading | None = None
    frame: Frame | None = None

    def __post_init__(self) -> None:
        for name in (entry.name for entry in fields(self)):
            if isinstance(value := getattr(self, name), np.ndarray):
                value = value.view()  # the caller's own array stays writable
                value.flags.writeable = False
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def verdicts(self) -> list[str]:
        """What is to be done with each image: "good", "look again" or "alarm"."""
        lower = self.threshold if self.look_again is None else self.look_again
        return [
            ALARM if alarm else LOOK_AGAIN if score > lower else GOOD
            for alarm, score in zip(self.alarms.tolist(), self.scores.tolist(), strict=True)
        ]

    def p_text(self, i: int) -> str:
        """The p-value of image `i` to read: "0.0244", or "≤ 0.0244" where so many good images allow no smaller one."""
        p = float(self.p_values[i])
        return f"{'≤ ' if p * (self.calibration_groups + 1) < 1 + 1e-9 else ''}{p:.4f}"

    def anomaly_map(self, i: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Anomaly map (H, W) float32 of image `i` at its original size or another, in the unit of the scores.

        It is 0 outside the region of interest, if there is one.

        Raises
        ------
        ValueError
            At the global level, which scores whole images only.
        """
        if self.patch_scores is None:
            raise ValueError("level='global' scores whole images and has no anomaly maps; use level='patch'")
        return anomaly_map(self.patch_scores[i], self.frame, self.image_sizes[i], size)

    def looked_at(self, size: tuple[int, int]) -> np.ndarray | None:
        """The region of interest as bool (H, W), in an image of this size; None where there is none."""
        region = None if self.frame is None else self.frame.region
        return None if region is None else region.at(size)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps, JSON-able: one entry per image and the threshold."""
        images = []
        for i, (image_id, verdict) in enumerate(zip(self.ids, self.verdicts, strict=True)):
            entry: dict[str, Any] = {
                "id": image_id,
                "score": float(self.scores[i]),
                "p_value": float(self.p_values[i]),
                "alarm": bool(self.alarms[i]),
                "verdict": verdict,
            }
            if self.nearest is not None:
                entry["nearest"] = asdict(self.nearest[i])
            images.append(entry)
        return {
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "guarantee_met": self.guarantee_met,
            "look_again": self.look_again,
            "smallest_p_value": 1 / (self.calibration_groups + 1),
            "images": images,
            "unreadable": [asdict(entry) for entry in self.unreadable],
            "notes": dict(self.notes),
        }

    def to_csv(self, path: str | os.PathLike[str], *, overlays: str | os.PathLike[str] | None = None) -> Path:
        """Write one line per image, unreadable ones included with their reason; returns the path.

        `overlays`, the folder given to `save_overlays`, adds a column of the files that show each image's heat map.
        """
        shown: dict[str, Path] = {}
        if overlays is not None:
            from anomalib_lite.plotting.overlays import overlay_folder

            shown = {image_id: Path(overlays, name) for name, image_id in overlay_folder(overlays).items()}
        lines = [["id", "score", "p_value", "alarm", "verdict", "unreadable", "overlay"]]
        for i, (image_id, verdict) in enumerate(zip(self.ids, self.verdicts, strict=True)):
            row = [f"{self.scores[i]:.6g}", f"{self.p_values[i]:.6g}", str(int(self.alarms[i])), verdict, ""]
            lines.append([_as_text(image_id), *row, _as_text(os.fspath(shown.get(image_id, "")))])
        lines += [[_as_text(entry.id), "", "", "", NO_VERDICT, _as_text(entry.reason), ""] for entry in self.unreadable]
        if overlays is None:
            lines = [line[:-1] for line in lines]
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        # File names need not be valid text; what is not comes out as \\x.. instead of stopping the run.
        return write_atomically(Path(path), text.getvalue().encode("utf-8", errors="backslashreplace"))

    def save_overlays(self, folder: str | os.PathLike[str], images: Any, *, only_alarms: bool = False) -> list[Path]:
        """Write every image with its heat map over it as PNG, all on one colour scale.

        Files are called like their image, ``good/a.jpg`` becoming ``good__a.jpg.png``; ``.anomalib_lite-overlays.json``
        beside them names the image of each. An image that is gone or unreadable by now is left out with a warning.

        Parameters
        ----------
        folder : path
            Made if missing. Only overlays are ever overwritten in it.
        images : the images that were scored, as given to `score`.
        only_alarms : leave out images that did not alarm.

        Returns
        -------
        list of Path, in the order of `ids`.

        Raises
        ------
        ValueError
            At the global level, when `images` are others, or `folder` holds pictures that are no overlays.
        """
        from anomalib_lite.plotting.overlays import save_overlays

        return save_overlays(self, folder, images, only_alarms=only_alarms)


def _as_text(value: str) -> str:
    """A cell that a spreadsheet shows rather than runs or cuts short: file names come from strangers."""
    return ("'" + value if _FORMULA.match(value) else value).replace("\0", "\\x00")
