"""Resizing as PIL does it, bit by bit, and the anomaly map's interpolation, for pictures whose size the graph learns.

PIL resizes 8 bits along one axis and then along the other, each time by integer weights of 22 bits that add up to one,
and rounds (`Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`). ONNX's own Resize, with
antialiasing, does not round in between, and rounds its weights otherwise. Here the weights come from the sizes in
whole numbers, are cut in halves of 11 bits, and the two halves are multiplied and added in float32, which is exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from anomalib_lite.exporting.graph import Graph, Name, f32, i64

_WEIGHT_BITS = 22  # PIL's PRECISION_BITS of pixels with 8 bits
_FLOAT = 1  # ONNX's number for float32
_HALF = 1 << (_WEIGHT_BITS // 2)


def resized(g: Graph, picture: Name, size: tuple[Name, Name], target: tuple[Name, Name], places: list[Name]) -> Name:
    """A picture (H, W, 3) of uint8, brought to `target` (rows, columns) by PIL's bilinear filter.

    Parameters
    ----------
    size, target : int64 scalars
    places : int64 (h,) and (w,)
        Which rows and columns of what is so resized are wanted, in this order; all where it has the size already.

    Returns
    -------
    float32 (h, w, 3), whole numbers
    """

    def in_order(g: Graph, first: int) -> tuple[Graph, Name]:
        inside, found = g.body(), picture
        for axis in (first, 1 - first):
            found = _along(inside, found, axis, size[axis], target[axis], places[axis])
        return inside, found

    def chosen(g: Graph) -> tuple[Graph, Name]:
        inside = g.body()
        down, right = (inside("Sub", size[axis], target[axis]) for axis in (0, 1))
        tall = inside("And", inside("Greater", down, i64(0)), inside("Greater", down, inside("Mul", right, i64(2))))
        return inside, inside.choice(tall, in_order(inside, 0), in_order(inside, 1), _FLOAT)

    otherwise = chosen(g) if tall_goes_down_first() else in_order(g, 1)
    if g.for_openvino:  # which lacks such branches
        inside, found = otherwise
        g.nodes += inside.nodes
        return found
    # Of all that is wanted, not of the target: a picture may have the size of the part that it fills.
    same = g("And", *(g("Equal", side, g("Size", wanted)) for side, wanted in zip(size, places, strict=True)))
    as_it_is = g.body()
    return g.choice(same, (as_it_is, as_it_is.cast(picture, np.float32)), otherwise, _FLOAT)


@lru_cache(maxsize=1)
def tall_goes_down_first() -> bool:
    """Whether the PIL that is here brings down the height first where more than twice as many lines go as columns.

    Pillow 13 does, to save time; those before go along the width first, always. The steps in between are rounded, so
    that one in ten values differs by a grey level.
    """
    noise = np.random.default_rng(0).integers(0, 256, (64, 16), dtype=np.uint8)
    picture = Image.fromarray(noise)
    stepwise = picture.resize((12, 64), Image.Resampling.BILINEAR).resize((12, 16), Image.Resampling.BILINEAR)
    return bool((np.asarray(picture.resize((12, 16), Image.Resampling.BILINEAR)) != np.asarray(stepwise)).any())


def _along(g: Graph, picture: Name, axis: int, length: Name, target: Name, places: Name) -> Name:
    """The picture (H, W, c) with one axis brought to `target`: float32."""
    channels = g("Slice", g("Shape", picture), i64([2]), i64([3]))
    picture = g("Transpose", picture, perm=[1, 0, 2]) if axis else picture
    size = g("Slice", g("Shape", picture), i64([1]), i64([2]))
    lines = _filtered(g, g("Reshape", picture, i64([0, -1])), length, target, places)  # (n, rest)
    found = g("Reshape", lines, g("Concat", i64([0]), size, channels, axis=0))
    return g("Transpose", found, perm=[1, 0, 2]) if axis else found


def _filtered(g: Graph, lines: Name, length: Name, target: Name, places: Name) -> Name:
    """Lines (length, c) brought to `target` of them, of which those at `places` (n,) are wanted: float32 (n, c)."""
    # All in whole numbers, in units of 1 / (2 * target) of a line: OpenVINO computes float64 in float32, whose last
    # bits decide where a picture is enlarged and grey values lie half way between two.
    spread = g("Max", length, target)  # half the width of the tent, times `target`
    twice = g("Mul", target, i64(2))
    along = g("Mul", g("Add", g("Mul", places, i64(2)), i64(1)), length)  # where the middle of a place lies
    before = g("Unsqueeze", g("Div", along, twice), i64([1]))  # (n, 1) the line that it lies in, and where in it
    part = g("Unsqueeze", g("Mod", along, twice), i64([1]))
    reach = g("Div", g("Sub", g("Add", spread, target), i64(1)), target)
    off = g("Range", g("Neg", reach), g("Add", reach, i64(1)), i64(1))  # (k,) lines from that one
    numbers = g("Add", before, off)  # (n, k)
    away = g("Abs", g("Sub", g("Mul", g("Add", g("Mul", off, i64(2)), i64(1)), target), part))
    tent = g("Max", g("Sub", g("Mul", spread, i64(2)), away), i64(0))
    there = g("And", g("GreaterOrEqual", numbers, i64(0)), g("Less", numbers, length))
    tent = g("Where", there, tent, i64(0))
    whole = g("ReduceSum", tent, i64([1]), keepdims=1)
    # Shares of the whole in 22 bits, rounded: by a long division of two steps, which 32 bits are enough for.
    first = g("Mul", tent, i64(_HALF))
    high = g("Div", first, whole)
    rest = g("Mul", g("Sub", first, g("Mul", high, whole)), i64(2 * _HALF))
    low = g("Div", g("Add", rest, whole), g("Mul", whole, i64(2)))
    halves = [g("Unsqueeze", g.cast(part, np.float32), i64([1])) for part in (high, low)]
    # (n, 2, k) @ (n, k, c): sums of whole numbers below 2 ** 24, which float32 has all of (up to 31 taps; of more, the
    # last bit of 22 is lost).
    inside = g("Max", g("Min", numbers, g("Sub", length, i64(1))), i64(0))
    near = g.cast(g("Gather", lines, inside, axis=0), np.float32)  # (n, k, c)
    sums = g("MatMul", g("Concat", *halves, axis=1), near)  # (n, 2, c)
    high, low = (g("Gather", sums, i64(i), axis=1) for i in (0, 1))
    rounded = g("Floor", g("Div", g("Add", low, f32(1 << (_WEIGHT_BITS - 1))), f32(_HALF)))
    return g("Floor", g("Div", g("Add", high, rounded), f32(_HALF)))


def map_weights(g: Graph, cells: int, canvas: Name, shown: Name, smoothing: float) -> Name:
    """What patch scores are multiplied with along one axis: float32 (shown, cells), see `locating.maps`.

    Parameters
    ----------
    cells : of the grid
    canvas, shown : int64 scalars: pixels of the whole frame, and of those that the picture has
    smoothing : standard deviation of the Gaussian in patches
    """
    pixels = g.cast(canvas, np.float32)
    scale = g("Div", pixels, f32(cells))
    centres = g("Div", g("Add", g("Range", f32(0.0), pixels, f32(1.0)), f32(0.5)), scale)
    centres = g("Sub", centres, f32(0.5))
    # Where a picture has fewer pixels than there are patches, the tent averages, and reaches beyond the border.
    grows = g("GreaterOrEqual", scale, f32(1.0))
    within = g("Min", g("Max", centres, f32(0.0)), f32(cells - 1))
    centres = g("Unsqueeze", g("Where", grows, within, centres), i64([1]))  # (canvas, 1)
    width = g("Max", g("Div", f32(1.0), scale), f32(1.0))
    tent = g("Sub", f32(1.0), g("Div", g("Abs", g("Sub", centres, f32(np.arange(cells)))), width))
    tent = g("Max", tent, f32(0.0))
    tent = g("Div", tent, g("ReduceSum", tent, i64([1]), keepdims=1))
    places = g("Range", f32(0.0), g.cast(shown, np.float32), f32(1.0))
    off = g("Sub", g("Unsqueeze", places, i64([1])), g("Range", f32(0.0), pixels, f32(1.0)))  # (shown, canvas)
    off = g("Div", off, g("Mul", scale, f32(smoothing)))
    smooth = g("MatMul", g("Exp", g("Mul", g("Mul", off, off), f32(-0.5))), tent)
    return g("Div", smooth, g("ReduceSum", smooth, i64([1]), keepdims=1))
