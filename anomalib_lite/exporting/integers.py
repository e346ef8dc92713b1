"""A network of 8-bit integers as ONNX operators that onnxruntime computes by a processor's integer instructions.

A convolution becomes a `Gather` of what lies under its windows and one `MatMulInteger`, whose sums are exact; what
follows is in float32 and in the order of `machine.integers`, so that every value is rounded as there. `ConvInteger` of
signed weights takes ten times as long in onnxruntime 1.32, and `QLinearConv`, which is quicker, rounds biases, and
sums before another is added to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.onnx import symbolic_helper

from anomalib_lite.embedding.quantization import IntegerNetwork
from anomalib_lite.exporting.graph import Graph, Name, i64
from anomalib_lite.machine.integers import Convolution, Kernel, make_kernel

_FLOAT = 1  # ONNX's number for float32
_FEW = 16  # channels in; windows of fewer are quicker laid out by ConvInteger
_UNSIGNED = 128  # what makes signed weights unsigned, by which that is quick


class ExportedIntegers(IntegerNetwork):
    """The network for torch's exporter; computed by torch it gives the same.

    Weights are signed. By such, onnxruntime adds pairs of products in 16 bits on processors without VNNI, and these
    overflow; for them there are `unsigned` ones, which take twice as long where signed ones do (`sums_are_exact`).
    """

    signed = True

    def unsigned(self) -> ExportedIntegers:
        """The same network by unsigned weights."""
        return _Unsigned(*self._made_of, self.engine, self.device)

    def kernel(self, convolution: Convolution) -> Kernel:
        """What computes a convolution; of groups, in floats."""
        c = convolution
        if c.groups != 1:
            return make_kernel(c, "reference", self.device)
        laid_out = c.weight.shape[1] >= _FEW
        weight = c.weight.permute(2, 3, 1, 0).reshape(-1, len(c.weight)).contiguous() if laid_out else c.weight
        if not (laid_out and self.signed):
            weight = (weight.int() + _UNSIGNED).to(torch.uint8)
        shape = (-1,) if laid_out else (1, -1, 1, 1)
        scale, bias = c.scale.view(shape), c.bias.view(shape)

        def compute(images: Tensor, added: Tensor | None) -> Tensor:
            if laid_out:
                windows, size = _windows(images, c)
                sums = _products(windows, weight, c.source.zero)
            else:
                sums = _sums(images, weight, c.stride, c.padding, c.dilation, c.source.zero)
            real = (sums if c.source.size == 1 else sums * c.source.size) * scale + bias
            if c.added is not None and added is not None:
                other = added.permute(0, 2, 3, 1).reshape(len(real), -1) if laid_out else added
                # In one rounding, as by processors' multiply-and-add, and of the size that these have in float32. No
                # plain number: torch's exporter takes one for another that differs in the eighth digit.
                size_of_added = torch.tensor(c.added.size, dtype=torch.float32).double()
                real = (real.double() + (other.double() - c.added.zero) * size_of_added).float()
            if c.relu and (c.result is None or c.result.zero):  # else what is negative is cut off all the same
                real = real.relu()
            if c.result is not None:
                steps = real * (1 / torch.tensor(c.result.size))
                real = _rounded(steps + c.result.zero if c.result.zero else steps)
            return real.reshape(1, *size, -1).permute(0, 3, 1, 2) if laid_out else real

        return compute

    def maxima(
        self, images: Tensor, side: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil: bool
    ) -> Tensor:
        """`max_pool2d` of uint8 (1, c, h, w), in float32: onnxruntime has a quick one of these alone."""
        return F.max_pool2d(images.float(), side, stride, padding, ceil_mode=ceil).to(torch.uint8)


class _Unsigned(ExportedIntegers):
    signed = False


def sums_are_exact(g: Graph, pixels: Name) -> Name:
    """Whether the largest sums of unsigned and signed integers come out right where the graph runs: bool, a scalar.

    `pixels`, uint8, is what they depend on, lest they are computed before the graph gets there.
    """
    some = g("Slice", g("Reshape", pixels, i64([-1])), i64([0]), i64([1]))
    rows = g("Expand", g("Max", g.cast(some, np.int32), np.array([255], dtype=np.int32)), i64([8, 64]))
    sums = g("MatMulInteger", g.cast(rows, np.uint8), np.full((64, 32), 127, dtype=np.int8))
    return g("Equal", g("ReduceMin", g.cast(sums, np.int64), keepdims=0), i64(64 * 255 * 127))


def _windows(images: Tensor, c: Convolution) -> tuple[Tensor, tuple[int, int]]:
    """What lies under the windows of a convolution in uint8 (1, c, h, w): (gh * gw, kh * kw * c), and (gh, gw)."""
    height, width = (int(side) for side in images.shape[2:])
    rows = images.permute(0, 2, 3, 1).reshape(height * width, -1)
    numbers = np.full((height + 2 * c.padding[0], width + 2 * c.padding[1]), height * width)  # of a row beyond the last
    numbers[c.padding[0] :, c.padding[1] :][:height, :width] = np.arange(height * width).reshape(height, width)
    sides = [int(side) for side in c.weight.shape[2:]]
    reach = [c.dilation[axis] * (sides[axis] - 1) + 1 for axis in (0, 1)]
    views = np.lib.stride_tricks.sliding_window_view(numbers, reach)[:: c.stride[0], :: c.stride[1]]
    places = views[..., :: c.dilation[0], :: c.dilation[1]]
    size = places.shape[0], places.shape[1]
    if sides == [1, 1] and size == (height, width):
        return rows, size
    if any(c.padding):
        rows = torch.cat([rows, torch.full((1, rows.shape[1]), c.source.zero, dtype=torch.uint8)])
    return rows[torch.from_numpy(places.ravel().copy())].reshape(size[0] * size[1], -1), size


# Operators of torch, lest its exporter looks into them; each with what stands in a graph for it.
_OPERATORS = torch.library.Library("anomalib_lite_export", "DEF")


def _operator(schema: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    name = schema.split("(")[0]
    _OPERATORS.define(schema)

    def made(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _OPERATORS.impl(name, compute, "CPU")
        return getattr(torch.ops.anomalib_lite_export, name)

    return made


@_operator("products(Tensor rows, Tensor weight, int zero) -> Tensor")
def _products(rows: Tensor, weight: Tensor, zero: int) -> Tensor:
    """Sums (n, o), float32, of the products of uint8 (n, i), less `zero`, and weights (i, o), signed or unsigned."""
    return (rows.float() - zero) @ (weight.float() - (_UNSIGNED if weight.dtype is torch.uint8 else 0))


@_operator("sums(Tensor images, Tensor weight, int[] stride, int[] padding, int[] dilation, int zero) -> Tensor")
def _sums(
    images: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], zero: int
) -> Tensor:
    """The sums of a convolution, float32 (1, o, gh, gw), of uint8 (1, i, h, w) and uint8 weights (o, i, kh, kw)."""
    return F.conv2d(images.float() - zero, weight.float() - _UNSIGNED, None, stride, padding, dilation)


@_operator("rounded(Tensor values) -> Tensor")
def _rounded(values: Tensor) -> Tensor:
    """float32 rounded to uint8; halves go to the even number."""
    return values.round().clamp(0, 255).to(torch.uint8)


@symbolic_helper.parse_args("v", "v", "i")
def _products_in_onnx(g: Any, rows: Any, weight: Any, zero: int) -> Any:
    signed = weight.type().dtype() is torch.int8
    zeros = [_stored(g, zero), *([] if signed else [_stored(g, _UNSIGNED)])]
    return g.op("Cast", g.op("MatMulInteger", rows, weight, *zeros), to_i=_FLOAT)


@symbolic_helper.parse_args("v", "v", "is", "is", "is", "i")
def _sums_in_onnx(
    g: Any, images: Any, weight: Any, stride: list[int], padding: list[int], dilation: list[int], zero: int
) -> Any:
    around = {"strides_i": stride, "pads_i": padding * 2, "dilations_i": dilation}
    sums = g.op("ConvInteger", images, weight, _stored(g, zero), _stored(g, _UNSIGNED), **around)
    return g.op("Cast", sums, to_i=_FLOAT)


def _rounded_in_onnx(g: Any, values: Any) -> Any:
    return g.op("QuantizeLinear", values, g.op("Constant", value_t=torch.tensor(1.0)), _stored(g, 0))


def _stored(g: Any, number: int) -> Any:
    return g.op("Constant", value_t=torch.tensor(number, dtype=torch.uint8))


for _name, _symbolic in (("products", _products_in_onnx), ("sums", _sums_in_onnx), ("rounded", _rounded_in_onnx)):
    torch.onnx.register_custom_op_symbolic(f"anomalib_lite_export::{_name}", _symbolic, 18)
