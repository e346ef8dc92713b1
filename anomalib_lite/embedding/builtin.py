"""The built-in backbone: derivative energies of opponent colours at several scales; no weights, no download.

RGB images (n, 3, h, w) in [0, 1] go in; two maps come out, at strides 8 and 16. Every colour plane (luminance,
red–green, blue–yellow) is smoothed with a Gaussian of each scale and differentiated; the local mean of the plane and
the logarithm of the local root mean square of its first and second derivatives describe tone, colour, edges and
texture without saying where exactly an edge lies. The coarser map is the same, averaged over a wider neighbourhood.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Luminance, red–green and blue–yellow: the axes along which natural colours vary independently
# (Ruderman et al. 1998).
_OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (-0.25, -0.25, 0.5))
_SCALES = (1.0, 2.0, 4.0)  # Gaussian sigma in pixels
_STRIDE = 8
# Contrast below one grey level is camera noise; the logarithm must not blow it up.
_NOISE = 1 / 100
# Second derivatives respond to lines where first ones cancel.
_ORDERS = ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2))


class FilterBank(nn.Module):
    """Multi-scale Gaussian derivative energies on opponent colours, 54 channels at stride 8 and at stride 16."""

    kernels: Tensor
    opponent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("opponent", torch.tensor(_OPPONENT).view(3, 3, 1, 1))
        self.radius = round(3 * max(_SCALES))
        self.register_buffer("kernels", torch.stack([_kernels(scale, self.radius) for scale in _SCALES]))

    def forward(self, images: Tensor) -> list[Tensor]:
        # Energies are squares of small differences: float32, whatever the rest of the machine runs in.
        planes = F.conv2d(images.float(), self.opponent.float())
        levels = []
        for scale, kernels in zip(_SCALES, self.kernels.float(), strict=True):
            radius = round(3 * scale)
            middle = slice(self.radius - radius, self.radius + radius + 1)
            responses = []
            for across, down in ((0, 0), *_ORDERS):
                padded = F.pad(planes, (radius,) * 4, mode="reflect")
                row = kernels[across, middle].view(1, 1, 1, -1).expand(3, -1, -1, -1)
                column = kernels[down, middle].view(1, 1, -1, 1).expand(3, -1, -1, -1)
                responses.append(F.conv2d(F.conv2d(padded, row, groups=3), column, groups=3))
            tone, *derivatives = responses
            energy = torch.cat([F.avg_pool2d(response**2, _STRIDE) for response in derivatives], dim=1)
            # Contrasts multiply (light, gloss), so their logarithms are what varies evenly.
            contrast = ((energy + 1e-8).sqrt() / _NOISE).log1p()
            levels.append(torch.cat([F.avg_pool2d(tone, _STRIDE), contrast], dim=1))
        fine = torch.cat(levels, dim=1)
        return [fine, F.avg_pool2d(fine, 2)]


def _kernels(scale: float, radius: int) -> Tensor:
    """Gaussian and its first two derivatives (3, 2 radius + 1), zero beyond 3 sigma, comparable across scales."""
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    gaussian = torch.exp(-(x**2) / (2 * scale**2)) * (x.abs() <= 3 * scale)
    gaussian = gaussian / gaussian.sum()
    first = -x / scale * gaussian
    second = (x**2 / scale**2 - 1) * gaussian
    # Without a mean, so that plain brightness is no derivative.
    return torch.stack([gaussian, first, second - second.sum() * gaussian])
