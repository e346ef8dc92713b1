"""Defects with an outline: what of an anomaly map is above a threshold, as regions. Arrays in, plain values out.

A region is there where the map is above the pixel threshold. It reaches to where the map falls to half of the height
that it has near by: a network blurs, and half way down its flank is where an edge was, however high the threshold.
numpy is all that is needed here, since the runner without torch has a copy of this file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# How far a defect's height counts, in patches. Regions of metal_nut, bottle and kolektor then have 1.1, 1.3 and 1.3
# times the area of their masks on the median; with 2 patches 1.1, 1.6 and 1.6, with 8 1.1, 1.1 and 1.3. A share of
# 0.4 or 0.6 in place of half gives 1.4, 1.6, 1.8 or 0.8, 1.0, 0.9 (`benchmarks/regions.py`).
_NEAR = 4
_SHARE = 0.5
# A network sees around a patch: beside a strong defect what is good looks a little unlike the good ones. What is within
# so many patches of something higher, and has less than this share of its height everywhere, is no region of its own.
# On bottle, metal_nut, kolektor and magnetic_tile every piece of a mask that was met without this rule is met with it.
_SEEN = 12
_HALO = 0.3
Ring = tuple[tuple[float, float], ...]
Box = tuple[slice, slice]  # rows and columns
# Around a pixel, clockwise: up, right, down, left, as (y, x).
_AROUND = ((-1, 0), (0, 1), (1, 0), (0, -1))


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
    near = _highest_around(anomaly_map, _NEAR, patch)
    labels, boxes = _labelled((anomaly_map > usual + _SHARE * (near - usual)) & (near > threshold))
    count = len(boxes)
    numbers = np.arange(1, count + 1)
    peaks = np.array([anomaly_map[box][labels[box] == i].max() for i, box in enumerate(boxes, start=1)])
    height, width = anomaly_map.shape
    scale = (1.0, 1.0) if size is None else (size[0] / height, size[1] / width)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:] * (scale[0] * scale[1])
    units = areas if pixel_size is None else areas * pixel_size**2
    wanted = (peaks > threshold) & (units >= min_area)
    if wanted.sum() > 1:
        own = anomaly_map > usual + _HALO * (_highest_around(anomaly_map, _SEEN, patch) - usual)
        wanted &= np.array([own[box][labels[box] == i].any() for i, box in enumerate(boxes, start=1)])
    kept = numbers[wanted]
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


def _highest_around(values: np.ndarray, patches: int, patch: tuple[float, float]) -> np.ndarray:
    """The highest of the values (h, w) up to so many patches away, along both sides."""
    for axis, length in enumerate(patch):
        values = _highest(values, round(patches * length), axis)
    return values


def _highest(values: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """The highest of the values up to `reach` away along an axis."""
    widths = [(reach, reach) if i == axis else (0, 0) for i in range(values.ndim)]
    found = np.moveaxis(np.pad(values, widths, constant_values=-np.inf), axis, 0)
    seen, wanted = 1, 2 * reach + 1
    while seen < wanted:  # windows of twice the width, of two that overlap
        step = min(seen, wanted - seen)
        found = np.maximum(found[:-step], found[step:])
        seen += step
    return np.moveaxis(found, 0, axis)


def _labelled(mask: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """Pixels that hang together along their sides: int32 (h, w), 0 outside, 1 for the first, ...; and their boxes."""
    height, width = mask.shape
    line = width + 1  # so that no run touches one of the next row
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)  # (h, w + 1)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)  # of the runs of a row, in order
    # Above a run lie those that end behind its start and start before its end.
    first = np.searchsorted(ends, starts - line, side="right")
    last = np.searchsorted(starts, ends - line, side="left")
    parent = list(range(len(starts)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    for run, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for above in range(begin, end):
            one, other = sorted((root(run), root(above)))
            parent[other] = one
    roots, numbers = np.unique([root(run) for run in range(len(starts))], return_inverse=True)
    painted = np.zeros(height * line, dtype=np.int32)
    painted[starts], painted[ends] = numbers + 1, -(numbers + 1)
    boxes = []
    ends_of = [np.full(len(roots), fill) for fill in (height, 0, width, 0)]  # top, bottom, left, right
    for function, edge, values in zip(
        (np.minimum, np.maximum, np.minimum, np.maximum),
        ends_of,
        (starts // line, starts // line + 1, starts % line, ends % line),
        strict=True,
    ):
        function.at(edge, numbers, values)
    for top, bottom, left, right in zip(*(edge.tolist() for edge in ends_of), strict=True):
        boxes.append((slice(top, bottom), slice(left, right)))
    return painted.reshape(height, line).cumsum(axis=1, dtype=np.int32)[:, :width], boxes


def _outline(inside: np.ndarray, corner: tuple[int, int], scale: tuple[float, float]) -> tuple[Ring, ...]:
    """Rings around a region bool (h, w) whose upper left corner lies at (y, x): the longest first.

    Their corners are the middles of the sides between a pixel inside and one outside (marching squares, of which
    pixels that touch at a corner alone do not hang together).
    """
    mask = np.pad(inside, 1)
    flat, width = mask.ravel(), mask.shape[1]
    away = [dy * width + dx for dy, dx in _AROUND]
    within = np.flatnonzero(flat)
    sides = [within[~flat[within + offset]] for offset in away]  # of each direction, the pixels that end there
    known = np.concatenate([pixels + d * flat.size for d, pixels in enumerate(sides)])  # ascending
    following = []
    for d, pixels in enumerate(sides):  # clockwise around what is inside
        turned = (d + 1) % 4
        beside = pixels + away[turned]
        beyond = beside + away[d]
        ahead = np.where(flat[beyond], beyond + (d + 3) % 4 * flat.size, beside + d * flat.size)
        following.append(np.where(flat[beside], ahead, pixels + turned * flat.size))
    follows = np.searchsorted(known, np.concatenate(following)).tolist()
    directions, pixels = np.divmod(known, flat.size)
    # The middle of the first pixel lies at 1 in what is padded, and at half a pixel in the image.
    places = np.stack([pixels % width, pixels // width], axis=1) - 0.5 + np.array(_AROUND)[directions, ::-1] / 2
    corners = np.round((places + corner[::-1]) * scale[::-1], 1).tolist()
    rings, done = [], [False] * len(follows)
    for start in range(len(follows)):
        if done[start]:
            continue
        ring, at = [], start
        while not done[at]:
            done[at] = True
            ring.append((corners[at][0], corners[at][1]))
            at = follows[at]
        rings.append((*ring, ring[0]))
    return tuple(sorted(rings, key=_extent, reverse=True))


def _extent(ring: Ring) -> float:
    xs, ys = zip(*ring, strict=True)
    return (max(xs) - min(xs)) * (max(ys) - min(ys))


def _rounded(*values: float) -> Any:
    return tuple(round(float(value), 1) for value in values)
