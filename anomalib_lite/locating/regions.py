"""Defects with an outline: what of an anomaly map is above a threshold, as regions. Arrays in, plain values out.

A region is there where the map is above the pixel threshold. It reaches to where the map falls to half of the height
that it has near by: a network blurs, and half way down its flank is where an edge was, however high the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import contourpy
import numpy as np

# How far a defect's height counts, in patches. Regions of metal_nut, bottle and kolektor then have 1.1, 1.3 and 1.3
# times the area of their masks on the median; with 2 patches 1.1, 1.6 and 1.6, with 8 1.1, 1.1 and 1.3. A share of
# 0.4 or 0.6 in place of half gives 1.4, 1.6, 1.8 or 0.8, 1.0, 0.9 (`benchmarks/regions.py`).
_NEAR = 4
_SHARE = 0.5
Ring = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class DefectRegion:
    """One region of an image that is unlike the good ones; lengths in pixels of the image, from its upper left corner.

    Attributes
    ----------
    box : (left, top, right, bottom)
    area : pixels
    area_mm2 : square millimetres, or None where the size of a pixel is not known
    peak, mean : the highest value of the anomaly map in it, and the mean, in the unit of the scores
    peak_at : (x, y)
    outline : rings of corners (x, y); the first goes around it, others around holes
    """

    box: tuple[float, float, float, float]
    area: float
    area_mm2: float | None
    peak: float
    mean: float
    peak_at: tuple[float, float]
    outline: tuple[Ring, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def find_regions(
    anomaly_map: np.ndarray,
    threshold: float,
    *,
    usual: float,
    patch: tuple[float, float],
    size: tuple[int, int] | None = None,
    pixel_size: float | None = None,
    min_area: float = 0.0,
    max_regions: int | None = None,
) -> tuple[list[DefectRegion], np.ndarray]:
    """Find the regions of a map, the highest first.

    Parameters
    ----------
    anomaly_map : float (h, w)
    threshold : the value that a region has to exceed somewhere
    usual : the height of the ground, that of good images
    patch : (height, width) of a patch in pixels of the map
    size : (H, W) of the image, in whose pixels regions are told; default: that of the map
    pixel_size : millimetres, optional
    min_area : pixels of the image (square millimetres with `pixel_size`); smaller regions are left out
    max_regions : the highest are kept

    Returns
    -------
    The regions, and int32 (h, w): 0 where there is none, 1 for the first, ...
    """
    none = np.zeros(anomaly_map.shape, dtype=np.int32)
    if not (anomaly_map > threshold).any():
        return [], none
    from scipy import ndimage  # slow to load, which a good image does not need

    near = ndimage.maximum_filter(anomaly_map, [2 * round(_NEAR * length) + 1 for length in patch])
    high = (anomaly_map > usual + _SHARE * (near - usual)) & (near > threshold)
    labels, count = ndimage.label(high)
    numbers = np.arange(1, count + 1)
    boxes = ndimage.find_objects(labels)
    peaks = np.array([anomaly_map[box][labels[box] == i].max() for i, box in enumerate(boxes, start=1)])
    height, width = anomaly_map.shape
    scale = (1.0, 1.0) if size is None else (size[0] / height, size[1] / width)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:] * (scale[0] * scale[1])
    units = areas if pixel_size is None else areas * pixel_size**2
    kept = numbers[(peaks > threshold) & (units >= min_area)]
    kept = kept[np.argsort(-peaks[kept - 1], kind="stable")][:max_regions]
    found = []
    for place, number in enumerate(kept.tolist(), start=1):
        box = boxes[number - 1]
        inside = labels[box] == number
        none[box][inside] = place
        values = np.where(inside, anomaly_map[box], -np.inf)
        y, x = np.unravel_index(int(values.argmax()), values.shape)
        area = float(areas[number - 1])
        found.append(
            DefectRegion(
                box=_rounded(
                    box[1].start * scale[1], box[0].start * scale[0], box[1].stop * scale[1], box[0].stop * scale[0]
                ),
                area=round(area, 1),
                area_mm2=None if pixel_size is None else float(f"{area * pixel_size**2:.6g}"),
                peak=float(peaks[number - 1]),
                mean=float(anomaly_map[box][inside].mean(dtype=np.float64)),
                peak_at=_rounded((box[1].start + int(x) + 0.5) * scale[1], (box[0].start + int(y) + 0.5) * scale[0]),
                outline=_outline(inside, (box[0].start, box[1].start), scale),
            )
        )
    return found, none


def _outline(inside: np.ndarray, corner: tuple[int, int], scale: tuple[float, float]) -> tuple[Ring, ...]:
    """Rings around a region bool (h, w) whose upper left corner lies at (y, x): the longest first."""
    padded = np.pad(inside, 1).astype(np.float32)
    rings: Sequence[np.ndarray] = contourpy.contour_generator(z=padded).lines(0.5)  # type: ignore[assignment]
    # The middle of the first pixel lies at 1 in what is padded, and at half a pixel in the image.
    placed = [np.round((ring - 0.5 + corner[::-1]) * scale[::-1], 1).tolist() for ring in rings]
    return tuple(sorted((tuple((x, y) for x, y in ring) for ring in placed), key=_extent, reverse=True))


def _extent(ring: Ring) -> float:
    xs, ys = zip(*ring, strict=True)
    return (max(xs) - min(xs)) * (max(ys) - min(ys))


def _rounded(*values: float) -> Any:
    return tuple(round(float(value), 1) for value in values)
