"""Convolutions of 8-bit integers, by two engines that give the same numbers.

Inputs are unsigned, weights signed 8-bit integers with a scale for every output channel; sums are exact (32 bits), and
are brought back to 8 bits, or to float32, in one rounding (Jacob et al., CVPR 2018, section 2.2). "onednn" computes
them by the kernels that torch brings, which use a processor's integer instructions and need nothing else installed.
"reference" computes the same in float32, which holds such products exactly and their sums to a share of
10⁻⁷, on any processor and device: it is what the other is checked against, and what stands in for it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EngineName = Literal["auto", "onednn", "reference"]
ENGINES = ("onednn", "reference")


@dataclass(frozen=True)
class Steps:
    """How 8 bits stand for real numbers: value = (stored - zero) * size."""

    size: float
    zero: int = 0

    @classmethod
    def spanning(cls, low: float, high: float) -> Steps:
        """256 steps from `low` to `high`, of which one is 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        size = max(high - low, 1e-12) / 255
        return cls(size, round(-low / size))

    def quantized(self, values: Tensor) -> Tensor:
        """uint8 of real `values`; what lies outside of the steps gets the last one."""
        return (values * (1 / torch.tensor(self.size))).add_(self.zero).round_().clamp_(0, 255).to(torch.uint8)

    def real(self, stored: Tensor) -> Tensor:
        """float32 of uint8 `stored`."""
        values = stored.to(torch.float32)
        return values.mul_(self.size) if self.zero == 0 else values.sub_(self.zero).mul_(self.size)


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of integers, what is added to it, and what becomes of the sum.

    Attributes
    ----------
    weight : int8 (o, i / groups, kh, kw)
    scale : float32 (o,), real value of a weight of 1
    bias : float32 (o,)
    source : Steps of the input
    result : Steps of the output; None for float32
    added : Steps of a second input that is added before the rest; None if there is none
    relu : whether what is negative becomes 0
    stride, padding, dilation : (vertical, horizontal)
    groups : int
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    source: Steps
    result: Steps | None
    added: Steps | None
    relu: bool
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


Kernel = Callable[[Tensor, Tensor | None], Tensor]


def make_kernel(convolution: Convolution, engine: str, device: torch.device) -> Kernel:
    """What computes `convolution` of uint8 (n, c, h, w), channels last, plus a second uint8 of the output's shape.

    The second input may be overwritten.
    """
    return _onednn(convolution) if engine == "onednn" else _reference(convolution, device)


@lru_cache(maxsize=1)
def onednn_fault() -> str:
    """Why torch's integer kernels cannot be used here; empty where they can.

    They are tried on the largest sums there are: processors without VNNI multiply in pairs of 16 bits, which overflow.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        for signed in (False, True):
            weight = torch.randint(-127, 128, (32, 32, 3, 3), generator=generator, dtype=torch.int8)
            weight[:8] = 127
            trial = Convolution(
                weight,
                torch.full((32,), 1e-3),
                torch.linspace(-1, 1, 32),
                Steps(0.02, 3 if signed else 0),
                Steps(0.7, 90) if signed else Steps(1.3),
                Steps(0.5, 128) if signed else None,
                not signed,
                (1, 1),
                (1, 1),
                (1, 1),
                1,
            )
            images = torch.randint(0, 256, (1, 32, 9, 9), generator=generator, dtype=torch.uint8)
            images[:, :, :4] = 255
            images = images.contiguous(memory_format=torch.channels_last)
            other = images.flip(1).contiguous(memory_format=torch.channels_last) if signed else None
            expected = _reference(trial, torch.device("cpu"))(images, other)
            with torch.inference_mode():
                found = _onednn(trial)(images, other)
            if (found.int() - expected.int()).abs().max() > 1:
                return "its integer sums are not exact on this processor, which lacks VNNI"
    except (RuntimeError, AttributeError, TypeError) as error:  # operators of another form, or none
        return f"torch {torch.__version__} has no integer kernels for {platform.machine()} ({_first_line(error)})"
    return ""


def pick_engine(engine: str, device: torch.device) -> str:
    """The engine asked for, or the quickest that works here.

    Raises
    ------
    ValueError
        If there is no such engine, or the one asked for does not work here.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine={engine!r}; choose 'auto', {', '.join(map(repr, ENGINES))}")
    if engine == "reference":
        return engine
    fault = f"it computes on the CPU, not on {device.type}" if device.type != "cpu" else onednn_fault()
    if engine == "onednn" and fault:
        raise ValueError(f"engine='onednn' does not work here: {fault}; choose 'auto' or 'reference'")
    return "reference" if fault else "onednn"


def _onednn(convolution: Convolution) -> Kernel:
    c, ops = convolution, torch.ops.onednn
    packed: dict[tuple[int, ...], Tensor] = {}
    geometry = list(c.stride), list(c.padding), list(c.dilation), c.groups
    source = c.source.size, c.source.zero
    weight = c.weight.contiguous(memory_format=torch.channels_last)
    zeros = torch.zeros(len(c.scale), dtype=torch.int64)
    kind = torch.float32 if c.result is None else torch.uint8
    result = (1.0, 0) if c.result is None else (c.result.size, c.result.zero)
    after = "relu" if c.relu else "none"

    def weights_for(images: Tensor) -> Tensor:
        # Kernels differ in the layout of weights they want. For another than they were packed for, every call brings
        # them there, which was seen to take fifty times as long as the convolution (192 channels, 16 × 16, one image).
        shape = tuple(images.shape)
        if shape not in packed:
            packed[shape] = ops.qconv_prepack(weight, c.scale, *source, *geometry, list(shape))
        return packed[shape]

    if c.added is None:

        def alone(images: Tensor, added: Tensor | None) -> Tensor:
            return ops.qconv2d_pointwise(
                images, *source, weights_for(images), c.scale, zeros, c.bias, *geometry, *result, kind, after, [], ""
            )

        return alone

    other = c.added.size, c.added.zero

    def onto(images: Tensor, added: Tensor | None) -> Tensor:
        return ops.qconv2d_pointwise.binary(
            images, *source, weights_for(images), c.scale, zeros, added, c.bias, *geometry, *result, kind, *other,
            "sum", 1.0, after, [], "",
        )  # fmt: skip

    return onto


def _reference(convolution: Convolution, device: torch.device) -> Kernel:
    c = convolution
    weight = c.weight.to(device, torch.float32).contiguous(memory_format=torch.channels_last)
    factor = c.scale.view(1, -1, 1, 1).to(device)
    bias = c.bias.view(1, -1, 1, 1).to(device)

    def compute(images: Tensor, added: Tensor | None) -> Tensor:
        values = images.to(torch.float32)
        if c.source.zero:
            values = values - c.source.zero
        sums = F.conv2d(values, weight, None, c.stride, c.padding, c.dilation, c.groups)
        # In the order of oneDNN's kernels, so that what lies half way between two steps is rounded alike.
        real = sums.mul_(c.source.size).mul_(factor).add_(bias)
        if c.added is not None and added is not None:
            real.add_(added.to(torch.float32) - c.added.zero, alpha=c.added.size)
        if c.relu:
            real.relu_()
        return real if c.result is None else c.result.quantized(real)

    return compute


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
