"""An exported detector: pictures in, verdicts out, in the formats of the library."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite_runtime.reading import DEFAULT_READING, Reading, UnreadableImageError, read_reduced, to_rgb

FORMAT = "1"  # of the graph's inputs, outputs and metadata
VERDICTS = {0: "good", 1: "look again", 2: "alarm", -1: "no verdict"}
# Large JPEGs are decoded at no less than so many times the pixels wanted per side, as in the library.
_SPARE = 2


class ModelError(ValueError):
    """A file that is no exported detector, or is of another version."""


@dataclass(frozen=True)
class Result:
    """What is said of one picture.

    Attributes
    ----------
    id : str
    verdict : "good", "look again", "alarm" or "no verdict"
    score, p_value : float; None without a verdict
    reason : why there is none, "" otherwise
    size : (height, width) in pixels, None of a picture that cannot be read
    patch_scores : float32 (gh, gw), NaN where nothing was looked at; None at the global level
    anomaly_map : float32 (height, width), if it was asked for
    nearest : what the worst patch is most like, as in the library's JSON; None for scorers other than kNN
    whole_score : float, for level="both" alone
    notes : what is not shown of the picture
    """

    id: str
    verdict: str
    score: float | None = None
    p_value: float | None = None
    reason: str = ""
    size: tuple[int, int] | None = None
    patch_scores: np.ndarray | None = None
    anomaly_map: np.ndarray | None = None
    nearest: dict[str, Any] | None = None
    whole_score: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The entry of the library's JSON, but for its `regions`."""
        entry: dict[str, Any] = {
            "id": self.id,
            "score": self.score,
            "p_value": self.p_value,
            "alarm": self.verdict == "alarm",
            "verdict": self.verdict,
        }
        if self.whole_score is not None:
            entry["whole_score"] = self.whole_score
        if self.nearest is not None:
            entry["nearest"] = self.nearest
        return entry


def load(path: str | os.PathLike[str], *, threads: int = 0, max_pixels: int | None = None) -> Model:
    """Open a graph that `anomalib-lite export` wrote.

    Parameters
    ----------
    path : path
    threads : int, default 0
        Of onnxruntime; 0 for one per core.
    max_pixels : int, optional
        Larger pictures are unreadable; default: as the detector was fitted.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelError
        If it is no exported detector, is damaged, or of another version.
    """
    return Model(Path(path), threads=threads, max_pixels=max_pixels)


class Model:
    """An exported detector; see `load`. Safe from any thread.

    Attributes
    ----------
    metadata : dict of what the detector was, such as its threshold and settings
    """

    def __init__(self, path: Path, *, threads: int = 0, max_pixels: int | None = None):
        import onnxruntime

        if not path.is_file():
            raise FileNotFoundError(f"no model file {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # else it warns that the input with a default is no constant
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
            stored = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # of a damaged file it raises errors of many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ModelError(f"{path.name} is no ONNX model that can be opened here ({reason})") from error
        if stored.get("anomalib_lite") != FORMAT:
            found = stored.get("anomalib_lite", "no anomalib_lite export")
            raise ModelError(f"{path.name} is {found}, and format {FORMAT} is read here; export the model again")
        try:
            self.metadata: dict[str, Any] = {
                name: json.loads(text) for name, text in stored.items() if name != "anomalib_lite"
            }
            frame, white = self.metadata["frame"], self.metadata["value_range"]
            self._frame_size: tuple[int, int] = (int(frame["size"][0]), int(frame["size"][1]))
            self._stretches = bool(frame["stretches"])
            most = max_pixels or self.metadata["max_pixels"] or DEFAULT_READING.max_pixels
            self.reading = Reading(value_range=None if white is None else (white[0], white[1]), max_pixels=int(most))
            self.threshold = float(self.metadata["threshold"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"{path.name} is damaged: its metadata is malformed ({error!r})") from error

    @cached_property
    def _outputs(self) -> list[str]:
        return [output.name for output in self._session.get_outputs()]

    def score(self, image: Any, *, name: str | None = None, anomaly_map: bool = False) -> Result:
        """Judge one picture.

        Parameters
        ----------
        image : path, bytes, PIL image, or array (H, W), (H, W, 3) or (H, W, 4), as the library reads them
        name : str, optional
            Its id; default: the path as it was given, or "image_0000".
        anomaly_map : bool
            Compute the map too.

        Raises
        ------
        TypeError
            If the picture is none of these.
        """
        if name is None:
            name = os.fspath(image) if isinstance(image, str | os.PathLike) else "image_0000"
        notes: list[str] = []
        try:
            if isinstance(image, np.ndarray):
                pixels = to_rgb(image, reading=self.reading, name=name, notes=notes)
                size = pixels.shape[0], pixels.shape[1]
            else:
                least = _SPARE * self._frame_size[0], _SPARE * self._frame_size[1]
                pixels, size = read_reduced(image, least, reading=self.reading, name=name, notes=notes)
        except UnreadableImageError as error:
            return Result(name, "no verdict", reason=str(error))
        found = self._run(pixels, size, anomaly_map)
        verdict = VERDICTS[int(found["verdict"])]
        if verdict == "no verdict":
            reason = f"{name}: has {size[0]} × {size[1]} pixels (height × width), other proportions than the region"
            return Result(name, verdict, reason=f"{reason} of interest was drawn for", size=size)
        return Result(
            id=name,
            verdict=verdict,
            score=float(found["score"]),
            p_value=float(found["p_value"]),
            size=size,
            patch_scores=found.get("patch_scores"),
            anomaly_map=found.get("anomaly_map"),
            nearest=self._nearest(found, size),
            whole_score=float(found["whole_score"]) if "whole_score" in found else None,
            notes=tuple(notes),
        )

    def score_all(self, images: Iterable[tuple[str, Any]]) -> list[Result]:
        """Judge pictures, given as (id, picture), one after the other."""
        return [self.score(image, name=name) for name, image in images]

    def to_dict(self, results: Iterable[Result]) -> dict[str, Any]:
        """The library's JSON object of `Scores.to_dict`, but for the regions of every image."""
        results = list(results)
        told = {name: self.metadata[name] for name in ("threshold", "pixel_threshold", "pixel_size")}
        told |= {name: self.metadata[name] for name in ("false_alarm_rate", "guarantee_met", "look_again")}
        return {
            **told,
            "smallest_p_value": 1 / (self.metadata["calibration_groups"] + 1),
            "images": [result.to_dict() for result in results if result.score is not None],
            "unreadable": [
                {"index": i, "id": result.id, "reason": result.reason}
                for i, result in enumerate(results)
                if result.score is None
            ],
            "notes": {result.id: "; ".join(result.notes) for result in results if result.notes},
        }

    def _run(self, pixels: np.ndarray, size: tuple[int, int], anomaly_map: bool) -> dict[str, np.ndarray]:
        import onnxruntime

        options = onnxruntime.RunOptions()
        names = [name for name in self._outputs if anomaly_map or name != "anomaly_map"]
        options.only_execute_path_to_fetches = True
        given = {"image": np.ascontiguousarray(pixels), "original_size": np.array(size, dtype=np.int64)}
        return dict(zip(names, self._session.run(names, given, options), strict=True))

    def _nearest(self, found: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, Any] | None:
        if "nearest" not in found:
            return None
        patch, image, train_patch, height, width = found["nearest"].tolist()
        return {
            "box": self._box(patch, size),
            "train_id": self.metadata["train_ids"][image],
            "train_box": self._box(train_patch, (height, width)),
            "distance": float(found["nearest_distance"]),
        }

    def _box(self, patch: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Pixels (left, top, right, bottom) of a patch of the grid in an image of `size` (height, width)."""
        rows, columns = self.metadata["grid"]
        height, width = self._canvas(size)
        row, column = divmod(patch, columns)
        return (
            round(column * width / columns),
            round(row * height / rows),
            min(size[1], round((column + 1) * width / columns)),
            min(size[0], round((row + 1) * height / rows)),
        )

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of the whole frame in the pixels of such a picture; see `images.framing` of the library."""
        (h, w), (height, width) = self._frame_size, size
        if self._stretches or abs(math.log((height * w) / (width * h))) <= math.log1p(0.03):
            return height, width
        scale = min(h / height, w / width)
        filled = max(1, min(h, round(height * scale))), max(1, min(w, round(width * scale)))
        return round(height * h / filled[0]), round(width * w / filled[1])
