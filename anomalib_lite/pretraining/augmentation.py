"""Many images from few: crops at any angle and size, mixtures, colours and light, on whole batches.

Chance is drawn on the CPU, whatever device computes, so that a seed means the same everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(images: Tensor, side: int, generator: torch.Generator, *, mix: bool = True) -> Tensor:
    """uint8 (n, h, w, 3) to crops, with `mix` half of them mixed from two: float32 (n, 3, side, side) in [0, 1]."""
    images = _crops(images, side, generator)
    if mix:
        partners = images[torch.randperm(len(images), generator=generator).to(images.device)]
        images = torch.lerp(images, partners, _soft_masks(len(images), side, generator).to(images.device))
    return _relit(images, generator)


def grained(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops (n, 3, h, w) in [0, 1], a third of them fainter, half of them with a grain of their own, here and there.

    Cast, ground and polished surfaces are little else, and magnified drawings lack it.
    """
    n, _, height, width = images.shape
    device = images.device
    fainter = torch.where(_uniform(n, 0, 1, generator) < 1 / 3, _uniform(n, -1.4, 0, generator), 0.0)
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    images = level + (images - level) * torch.exp(fainter).view(n, 1, 1, 1).to(device)
    grain = torch.zeros(n, 1, height, width)
    for scale in (1, 2, 4):  # pixels
        noise = torch.randn(n, 1, height // scale, width // scale, generator=generator)
        noise = F.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False)
        grain = grain + noise * _uniform(n, 0, 1, generator).view(n, 1, 1, 1)
    amount = torch.exp(_uniform(n, -5.5, -2.7, generator)) * (_uniform(n, 0, 1, generator) < 0.5)
    tint = 1 + 0.2 * torch.randn(n, 3, 1, 1, generator=generator)
    here = 1 - _soft_masks(n, height, generator)
    return (images + (grain * here * amount.view(n, 1, 1, 1) * tint).to(device)).clamp(0, 1)


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, 3, h, w) in [0, 1] as a camera might take them another day: light, its colour and noise shaken."""
    n = len(images)
    gain = torch.exp(0.08 * torch.randn(n, 1, 1, 1, generator=generator))
    cast = torch.exp(0.05 * torch.randn(n, 3, 1, 1, generator=generator))
    lift = _uniform(n, -0.04, 0.04, generator).view(n, 1, 1, 1)
    noisy = _uniform(n, -0.012, 0.012, generator).clamp(min=0).view(n, 1, 1, 1)
    noise = torch.randn(images.shape, generator=generator) * noisy
    device = images.device
    return (images * (gain * cast).to(device) + (lift + noise).to(device)).clamp(0, 1)


def _crops(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Random rotation, zoom, stretch and mirroring; what lies outside the image is its reflection."""
    n = len(images)
    images = images.permute(0, 3, 1, 2).float() / 255
    angle = _uniform(n, 0, 2 * torch.pi, generator)
    angle = torch.where(_uniform(n, 0, 1, generator) < 0.4, (angle / (torch.pi / 2)).round() * (torch.pi / 2), angle)
    zoom = side / images.shape[-1] * torch.exp(_uniform(n, -0.8, 0.35, generator))  # pool pixels per crop pixel
    stretch = torch.exp(_uniform(n, -0.15, 0.15, generator))
    mirror = torch.where(_uniform(n, 0, 1, generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift = (1 - zoom).clamp(min=0)[:, None] * (2 * torch.rand(n, 2, generator=generator) - 1)
    matrix = torch.stack(
        [
            torch.stack([cos * stretch * mirror, -sin, shift[:, 0]], dim=1),
            torch.stack([sin * stretch * mirror, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix.to(images.device), [n, 3, side, side], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _soft_masks(n: int, side: int, generator: torch.Generator) -> Tensor:
    """(n, 1, side, side) in [0, 1]: blobs of random size and sharpness for half the images, nothing for the others."""
    coarse = int(torch.randint(2, 13, (1,), generator=generator))
    noise = torch.randn(n, 1, coarse, coarse, generator=generator)
    noise = F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)
    sharpness = torch.exp(_uniform(n, 0, 3.5, generator)).view(n, 1, 1, 1)
    level = _uniform(n, -0.3, 1.2, generator).view(n, 1, 1, 1)
    used = (_uniform(n, 0, 1, generator) < 0.5).view(n, 1, 1, 1)
    return torch.sigmoid(sharpness * (noise - level)) * used


def _relit(images: Tensor, generator: torch.Generator) -> Tensor:
    """Grey in a quarter of the cases; contrast, brightness and colour balance shaken; a little blur."""
    n = len(images)
    greyed = (_uniform(n, 0, 1, generator) < 0.25).float().view(n, 1, 1, 1)
    gain = torch.exp(0.12 * torch.randn(n, 3, 1, 1, generator=generator))
    contrast = torch.exp(_uniform(n, -0.7, 0.3, generator)).view(n, 1, 1, 1)
    lift = _uniform(n, -0.15, 0.15, generator).view(n, 1, 1, 1)
    device = images.device
    images = torch.lerp(images, images.mean(dim=1, keepdim=True), greyed.to(device))
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - level) * (gain * contrast).to(device) + level + lift.to(device)
    if torch.rand(1, generator=generator) < 0.3:
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images.clamp(0, 1)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)
