"""The built-in network: a small residual network that answers like the middle of a large one.

Standardised RGB (n, 3, h, w) goes in; two maps come out, (n, 128, h/8, w/8) and (n, 256, h/16, w/16), trained to
answer like the middle layers of several ImageNet networks on images drawn from formulas (see `pretraining`). Most of a
large network's time goes into its early, fine-grained layers; here those are one strided convolution deep, and the
depth sits where the grid is coarse and a convolution cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 112, 224)  # channels at strides 4, 8, 16
DEPTHS = (0, 2, 2)  # residual blocks at each
CHANNELS = (128, 256)  # of the two maps


class SmallNetwork(nn.Module):
    """A stem to stride 4, residual stages at strides 4, 8 and 16, and a linear head at strides 8 and 16.

    With `normalize`, convolutions are followed by batch norms, as in training; without, those have been folded.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int] = WIDTHS,
        depths: tuple[int, int, int] = DEPTHS,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.widths, self.depths = widths, depths
        fine, middle, coarse = widths
        self.stem = nn.Sequential(
            _Convolution(3, 32, 3, stride=2, normalize=normalize),
            nn.ReLU(),
            _Convolution(32, fine, 3, stride=2, normalize=normalize),
            nn.ReLU(),
            *(_Residual(fine, normalize) for _ in range(depths[0])),
        )
        self.middle = nn.Sequential(
            _Convolution(fine, middle, 3, stride=2, normalize=normalize),
            nn.ReLU(),
            *(_Residual(middle, normalize) for _ in range(depths[1])),
        )
        self.coarse = nn.Sequential(
            _Convolution(middle, coarse, 3, stride=2, normalize=normalize),
            nn.ReLU(),
            *(_Residual(coarse, normalize) for _ in range(depths[2])),
        )
        self.heads = nn.ModuleList([nn.Conv2d(middle, CHANNELS[0], 1), nn.Conv2d(coarse, CHANNELS[1], 1)])

    def forward(self, images: Tensor) -> list[Tensor]:
        middle, coarse = self.features(images)
        return [self.heads[0](middle), self.heads[1](coarse)]

    @staticmethod
    def map_sizes(height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of the two maps of images of this size, without a pass."""
        return [(-(-height // stride), -(-width // stride)) for stride in (8, 16)]

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps (n, c, h/8, w/8) and (n, c, h/16, w/16) before the heads."""
        middle = self.middle(self.stem(images))
        return middle, self.coarse(middle)


class Layout(TypedDict):
    """How many channels and residual blocks there are at strides 4, 8 and 16."""

    widths: tuple[int, int, int]
    depths: tuple[int, int, int]


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """That of a network with these folded parameters; the usual one where they tell nothing."""
    widths, depths = list(WIDTHS), list(DEPTHS)
    for i, (stage, last) in enumerate((("stem", 2), ("middle", 0), ("coarse", 0))):
        weight = state.get(f"{stage}.{last}.0.weight")
        if isinstance(weight, Tensor) and weight.dim() == 4:
            widths[i] = len(weight)
            depths[i] = len({key.split(".")[1] for key in state if key.startswith(f"{stage}.") and ".first." in key})
    return {"widths": (widths[0], widths[1], widths[2]), "depths": (depths[0], depths[1], depths[2])}


class _Convolution(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, normalize: bool) -> None:
        convolution = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=not normalize)
        super().__init__(convolution, *([nn.BatchNorm2d(outputs)] if normalize else []))


class _Residual(nn.Module):
    def __init__(self, channels: int, normalize: bool) -> None:
        super().__init__()
        self.first = _Convolution(channels, channels, 3, normalize=normalize)
        self.second = _Convolution(channels, channels, 3, normalize=normalize)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(inputs + self.second(F.relu(self.first(inputs), inplace=True)), inplace=True)
