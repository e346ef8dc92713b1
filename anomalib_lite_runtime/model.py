"""An exported detector: pictures in, verdicts out, in the formats of the library."""

from __future__ import annotations

import datetime
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
from anomalib_lite_runtime.regions import DefectRegion, find_regions

FORMAT = "2"  # of the graph's inputs, outputs and metadata
VERDICTS = {0: "good", 1: "look again", 2: "alarm", -1: "no verdict"}
# Large JPEGs are decoded at no less than so many times the pixels wanted per side, as in the library.
_SPARE = 2
_MAP_PIXELS = 1 << 22  # regions of larger pictures are found in a map of so many, as in the library


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
    regions : where it is unlike the good ones, the highest first; None at the global level, or if not asked for
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
    regions: tuple[DefectRegion, ...] | None = None
    nearest: dict[str, Any] | None = None
    whole_score: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The entry of the library's JSON."""
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
        if self.regions is not None:
            entry["regions"] = [region.to_dict() for region in self.regions]
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


def now() -> str:
    """This moment, ISO 8601 in UTC, as the library writes it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


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
            highest, usual = self.metadata["pixel_threshold"], self.metadata["usual_score"]
            self._pixel_threshold = None if highest is None else float(highest)
            self._usual = float(usual)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"{path.name} is damaged: its metadata is malformed ({error!r})") from error

    @cached_property
    def _outputs(self) -> list[str]:
        return [output.name for output in self._session.get_outputs()]

    def score(self, image: Any, *, name: str | None = None, anomaly_map: bool = False, regions: bool = True) -> Result:
        """Judge one picture.

        Parameters
        ----------
        image : path, bytes, PIL image, or array (H, W), (H, W, 3) or (H, W, 4), as the library reads them
        name : str, optional
            Its id; default: the path as it was given, or "image_0000".
        anomaly_map : bool
            Compute the map too.
        regions : bool
            Find regions, which takes the map; of a picture of more than 4 megapixels a smaller one.

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
        shown = _shown(size)
        found = self._run(pixels, size, size if anomaly_map else shown if regions else None)
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
            anomaly_map=found.get("anomaly_map") if anomaly_map else None,
            regions=self._regions(found, pixels, size, shown, anomaly_map) if regions else None,
            nearest=self._nearest(found, size),
            whole_score=float(found["whole_score"]) if "whole_score" in found else None,
            notes=tuple(notes),
        )

    def score_all(self, images: Iterable[tuple[str, Any]], *, regions: bool = True) -> list[Result]:
        """Judge pictures, given as (id, picture), one after the other."""
        return [self.score(image, name=name, regions=regions) for name, image in images]

    def to_dict(self, results: Iterable[Result]) -> dict[str, Any]:
        """The library's JSON object of `Scores.to_dict`."""
        results = list(results)
        told = {name: self.metadata[name] for name in ("threshold", "pixel_threshold", "pixel_size")}
        told |= {name: self.metadata[name] for name in ("false_alarm_rate", "guarantee_met", "look_again")}
        return {
            **told,
            "smallest_p_value": 1 / (self.metadata["calibration_groups"] + 1),
            "model": self.metadata["model"],
            "time": now(),
            "images": [result.to_dict() for result in results if result.score is not None],
            "unreadable": [
                {"index": i, "id": result.id, "reason": result.reason}
                for i, result in enumerate(results)
                if result.score is None
            ],
            "notes": {result.id: "; ".join(result.notes) for result in results if result.notes},
        }

    def _run(
        self, pixels: np.ndarray, size: tuple[int, int], map_size: tuple[int, int] | None
    ) -> dict[str, np.ndarray]:
        """The graph's outputs; the map at a size, or none."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        names = [name for name in self._outputs if map_size is not None or name != "anomaly_map"]
        options.only_execute_path_to_fetches = True
        given = {
            "image": np.ascontiguousarray(pixels),
            "original_size": np.array(size, dtype=np.int64),
            "map_size": np.array(map_size or size, dtype=np.int64),
        }
        return dict(zip(names, self._session.run(names, given, options), strict=True))

    def _regions(
        self,
        found: dict[str, np.ndarray],
        pixels: np.ndarray,
        size: tuple[int, int],
        shown: tuple[int, int],
        has_large_map: bool,
    ) -> tuple[DefectRegion, ...] | None:
        """As `Scores.regions` of the library; None at the global level."""
        if "patch_scores" not in found:
            return None
        grid = found["patch_scores"]
        # A map is nowhere above the patches that it is made of.
        if self._pixel_threshold is None or not np.nanmax(grid) > self._pixel_threshold:
            return ()
        if has_large_map and shown != size:
            found = self._run(pixels, size, shown)
        canvas = self._canvas(size, shown)
        regions, _ = find_regions(
            found["anomaly_map"],
            self._pixel_threshold,
            usual=self._usual,
            patch=(canvas[0] / grid.shape[0], canvas[1] / grid.shape[1]),
            size=size,
            pixel_size=self.metadata["pixel_size"],
        )
        return tuple(regions)

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

    def _canvas(self, size: tuple[int, int], shown: tuple[int, int] | None = None) -> tuple[int, int]:
        """The size of the whole frame in the pixels of such a picture, shown in so many; see the library's `Frame`."""
        (h, w), (height, width) = self._frame_size, size
        rows, columns = shown or size
        if self._stretches or abs(math.log((height * w) / (width * h))) <= math.log1p(0.03):
            return rows, columns
        scale = min(h / height, w / width)
        filled = max(1, min(h, round(height * scale))), max(1, min(w, round(width * scale)))
        return round(rows * h / filled[0]), round(columns * w / filled[1])


def _shown(size: tuple[int, int]) -> tuple[int, int]:
    """The size of the map that regions of a picture are found in."""
    shrink = max(1.0, (size[0] * size[1] / _MAP_PIXELS) ** 0.5)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))
