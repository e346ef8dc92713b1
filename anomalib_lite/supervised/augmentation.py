"""Copies of images as another moment before the camera would show them: turned, sheared, shifted, zoomed, brighter.

Applied to batches while training, to image and mask alike; every image draws its own change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """The largest change of each sort; all are drawn evenly from no change up to it, both ways.

    Parameters
    ----------
    rotation : float, degrees
    shear : float, degrees
    shift : float, share of the image's side
    zoom : float, share; 0.1 is from 0.9 to 1.1 times
    brightness : float, share; 0.1 is from 0.9 to 1.1 times
    horizontal_flip : bool
        Mirror half of the images. Off unless asked for: on many lines a mirrored part is a defect.
    """

    rotation: float = 10.0
    shear: float = 5.0
    shift: float = 0.05
    zoom: float = 0.1
    brightness: float = 0.1
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type != "bool" and not 0 <= value < (360 if field.name in ("rotation", "shear") else 1):
                raise ValueError(f"{field.name}={value}: give 0 for none; degrees below 360, shares below 1")

    def __call__(
        self, images: Tensor, generator: torch.Generator, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Change images (n, 3, h, w) in [0, 1], and their masks (n, 1, h, w); borders are mirrored."""
        grid = F.affine_grid(self._matrices(images, generator), list(images.shape), align_corners=False)
        changed = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        gain = 1 + self.brightness * _even(len(images), generator)
        changed = (changed * gain.view(-1, 1, 1, 1).to(images.device)).clamp(0, 1)
        if masks is None:
            return changed, None
        moved = F.grid_sample(masks, grid, mode="nearest", padding_mode="reflection", align_corners=False)
        return changed, moved

    def _matrices(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """From places in the copy to places in the original, (n, 2, 3), in units of half the side."""
        n, (height, width) = len(images), images.shape[-2:]
        angle = math.radians(self.rotation) * _even(n, generator)
        slant = torch.tan(math.radians(self.shear) * _even(n, generator))
        scale = 1 / (1 + self.zoom * _even(n, generator))
        mirrored = torch.rand(n, generator=generator) < 0.5 * self.horizontal_flip
        across, down = 2 * self.shift * _even(n, generator), 2 * self.shift * _even(n, generator)
        cosine, sine = scale * angle.cos(), scale * angle.sin()
        sign = torch.where(mirrored, -1.0, 1.0)
        # A turn in pixels; in units of half the side it stretches where the image is not square.
        rows = (
            torch.stack([sign * cosine, sign * (cosine * slant - sine) * height / width, across], dim=1),
            torch.stack([sine * width / height, sine * slant + cosine, down], dim=1),
        )
        return torch.stack(rows, dim=1).to(images.device)


def _even(n: int, generator: torch.Generator) -> Tensor:
    """Evenly from -1 to 1, (n,)."""
    return 2 * torch.rand(n, generator=generator) - 1
