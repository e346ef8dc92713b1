"""Regions and maps of scored images as files for other programs: CSV, COCO JSON, masks, maps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.files.tables import as_text, write_csv
from anomalib_lite.locating.regions import DefectRegion, Ring
from anomalib_lite.plotting.picture_folder import save_pictures

MapFormat = Literal["npy", "tiff", "png"]
MAP_FORMATS = ("npy", "tiff", "png")


class Located(Protocol):
    """Scores with maps; see `results.Scores` for what each of these is."""

    @property
    def ids(self) -> list[str]: ...
    @property
    def verdicts(self) -> list[str]: ...
    @property
    def image_sizes(self) -> list[tuple[int, int]]: ...
    @property
    def pixel_threshold(self) -> float | None: ...
    def anomaly_map(self, i: int) -> np.ndarray: ...
    def regions(self, i: int, *, min_area: float = 0.0, max_regions: int | None = None) -> list[DefectRegion]: ...
    def defect_mask(self, i: int, *, min_area: float = 0.0, max_regions: int | None = None) -> np.ndarray: ...


def regions_to_csv(
    scores: Located, path: str | os.PathLike[str], *, decimal_comma: bool = False, **limits: Any
) -> Path:
    """Write one line per region; see `Scores.regions_to_csv`."""
    names = ["id", "verdict", "region", "left", "top", "right", "bottom", "area", "area_mm2", "peak", "mean", "x", "y"]
    return write_csv(path, [names, *_region_lines(scores, limits)], decimal_comma=decimal_comma)


def _region_lines(scores: Located, limits: dict[str, Any]) -> Iterator[list[str | float]]:
    for i, (image_id, verdict) in enumerate(zip(scores.ids, scores.verdicts, strict=True)):
        for number, region in enumerate(scores.regions(i, **limits), start=1):
            numbers = [*region.box, region.area, region.area_mm2, region.peak, region.mean, *region.peak_at]
            cells: list[str | float] = ["" if value is None else value for value in numbers]
            yield [as_text(image_id), verdict, str(number), *cells]


def to_coco(scores: Located, path: str | os.PathLike[str], **limits: Any) -> Path:
    """Write regions as a COCO file of one category; see `Scores.to_coco`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, image_id in enumerate(scores.ids):
        height, width = scores.image_sizes[i]
        images.append({"id": i + 1, "file_name": image_id, "height": height, "width": width})
        for region in scores.regions(i, **limits):
            left, top, right, bottom = region.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 1,
                    "bbox": [left, top, round(right - left, 1), round(bottom - top, 1)],
                    "area": region.area,
                    "segmentation": _polygons(region.outline),
                    "score": region.peak,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 1, "name": "defect", "supercategory": "anomaly"}]
    found = {"images": images, "annotations": annotations, "categories": categories}
    return write_atomically(Path(path), json.dumps(found).encode())


def _polygons(outline: tuple[Ring, ...]) -> list[list[float]]:
    """COCO's polygons have no holes: the ring around them is told alone."""
    return [[value for corner in outline[0] for value in corner]]


def save_masks(scores: Located, folder: str | os.PathLike[str], **limits: Any) -> list[Path]:
    """Write the regions of every image as a mask PNG; see `Scores.save_masks`."""

    def write(i: int, path: Path) -> None:
        Image.fromarray(np.where(scores.defect_mask(i, **limits), np.uint8(255), np.uint8(0))).save(path)

    return save_pictures(folder, dict(enumerate(scores.ids)), write)


def save_maps(scores: Located, folder: str | os.PathLike[str], format: MapFormat = "npy") -> list[Path]:
    """Write every anomaly map; see `Scores.save_maps`."""
    if format not in MAP_FORMATS:
        raise ValueError(f"format={format!r}; choose one of {', '.join(MAP_FORMATS)}")
    step = _png_step(scores.pixel_threshold)

    def write(i: int, path: Path) -> None:
        values = scores.anomaly_map(i)
        if format == "npy":
            np.save(path, values)
        elif format == "tiff":
            Image.fromarray(values).save(path)  # 32-bit floats
        else:
            levels = np.clip(np.rint(values / step), 0, 65535).astype(np.uint16)
            Image.fromarray(levels).save(path)

    about = {"value_of_a_step": step} if format == "png" else {}
    return save_pictures(folder, dict(enumerate(scores.ids)), write, suffix=f".{format}", about=about)


def _png_step(threshold: float | None) -> float:
    """The score that a step of 16 bits stands for: the same for all images, with room to four times the threshold."""
    return 4 * (threshold or 1.0) / 65535
