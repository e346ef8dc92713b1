"""From a network's layers to embeddings: patches on one grid, or one vector of a whole image.

Patches: every layer is averaged over 3 × 3 neighbours (stride 1, padded) at its own resolution, then all
are brought to the finest grid in use, at finest one patch per 8 pixels, and their channels concatenated (Roth et al.,
PatchCore, CVPR 2022, section 3.1). Whole images: mean and standard deviation of every layer over the image. A
linear reduction of the patches can be folded into their pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Finer grids cost memory and time with the square and describe pixels rather than parts.
_FINEST_STRIDE = 8


class Features:
    """Layers of a network for some images; pooled when it is asked for.

    Parameters
    ----------
    layers : tensors (n, c, h, w), or (n, c) at the global level
    image_size : (height, width) of the images in pixels
    own : how many of the layers, from the first on, are of the images at their own size; default: all
    """

    def __init__(self, layers: list[Tensor], image_size: tuple[int, int], own: int | None = None):
        self.layers = layers
        self.image_size = image_size
        self.own = len(layers) if own is None else own

    def __getitem__(self, i: int) -> Features:
        """Those of one image."""
        return Features([layer[i : i + 1] for layer in self.layers], self.image_size, self.own)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return finest_grid([layer.shape for layer in self.layers], self.image_size)

    def patches(self) -> np.ndarray:
        """float32 (n, gh, gw, d)."""
        with torch.inference_mode():
            return _patches(self.layers, self.image_size).float().cpu().numpy()

    def whole(self) -> np.ndarray:
        """float32 (n, d): means and standard deviations of the layers, of the images at their own size."""
        with torch.inference_mode():
            return pool_whole(self.layers[: self.own]).cpu().numpy()

    def reduced(self, projection: Tensor, offset: Tensor) -> np.ndarray:
        """Patches times `projection` (d, q) plus `offset` (q,), float32 (n, gh, gw, q).

        Pooling and enlarging are linear in the channels, so a layer is projected at its own resolution, and before it
        is pooled, where that leaves it fewer channels: half of the products, and no patch of all channels in memory.
        """
        with torch.inference_mode():
            grid = self.grid
            total = offset.to(self.layers[0].device).view(1, -1, 1, 1)
            for layer, part in zip(self.layers, projection.split([len(x[0]) for x in self.layers]), strict=True):
                shrinks = part.shape[1] < part.shape[0]
                values = _projected(layer, part) if shrinks else F.avg_pool2d(layer, 3, stride=1, padding=1)
                values = F.avg_pool2d(values, 3, stride=1, padding=1) if shrinks else _projected(values, part)
                total = total + _to_grid(values, grid)
            return total.permute(0, 2, 3, 1).cpu().numpy()


def pool_whole(outputs: list[Tensor]) -> Tensor:
    """Mean and standard deviation of every layer over the image, (n, 2 × channels); vectors pass unchanged."""
    pooled: list[Tensor] = []
    for output in outputs:
        if output.dim() == 2:
            pooled.append(output.float())
            continue
        n, c, h, w = output.shape
        values = output.permute(0, 2, 3, 1).reshape(n, h * w, c).float()  # a variance in bf16 would lose its digits
        # Means as products, which use all of a processor: a third of the time of a mean over height and width.
        weights = values.new_full((n, 1, h * w), 1 / (h * w))
        mean = weights @ values  # (n, 1, c)
        variance = weights @ (values - mean) ** 2
        # Of a constant channel the root has no slope; the addend gives it one, and is far below rounding elsewhere.
        pooled += [mean[:, 0], (variance[:, 0] + 1e-12).sqrt()]
    return torch.cat(pooled, dim=1)


def _patches(outputs: list[Tensor], image_size: tuple[int, int]) -> Tensor:
    """Locally averaged layers on one grid, concatenated: (n, gh, gw, d)."""
    averaged = [F.avg_pool2d(output, kernel_size=3, stride=1, padding=1) for output in outputs]
    grid = finest_grid([output.shape for output in outputs], image_size)
    return torch.cat([_to_grid(level, grid) for level in averaged], dim=1).permute(0, 2, 3, 1)


def finest_grid(sizes: Sequence[Sequence[int]], image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the grid that layers, whose last two lengths are their rows and columns, are brought to."""
    rows, columns = (max(size[axis] for size in sizes) for axis in (-2, -1))
    return min(rows, image_size[0] // _FINEST_STRIDE), min(columns, image_size[1] // _FINEST_STRIDE)


def _projected(layer: Tensor, projection: Tensor) -> Tensor:
    """A layer (n, c, h, w) with its channels projected by (c, q), float32 (n, q, h, w), channels last in memory."""
    n, c, h, w = layer.shape
    rows = layer.permute(0, 2, 3, 1).reshape(-1, c).float()
    return (rows @ projection.to(rows.device)).view(n, h, w, -1).permute(0, 3, 1, 2)


def _to_grid(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize (n, c, h, w) to a grid: averaging when it shrinks, bilinear when it grows."""
    if tuple(level.shape[-2:]) == grid:
        return level
    if level.shape[-2] > grid[0] or level.shape[-1] > grid[1]:
        return F.adaptive_avg_pool2d(level, grid)
    return F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
