"""What a network is shown: how large a picture may be, its values standardised, and the picture at half its size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_lite.images.framing import LARGEST_PIXELS

LARGEST_SIDE = 2048  # a model file from a stranger must not ask for a picture that fills the memory
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_image_size(side: int, *, smallest: int = 32) -> None:
    """Raise ValueError for a side in pixels that no network can see, or that would fill the memory."""
    if not isinstance(side, int | np.integer) or not smallest <= side <= LARGEST_SIDE:
        raise ValueError(f"image_size={side}; networks take a whole number of pixels, {smallest} to {LARGEST_SIDE}")


def both_sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels that a network can see, of both or of one for a square; else ValueError."""
    if isinstance(image_size, str) or not isinstance(image_size, Sequence):
        check_image_size(image_size)
        return int(image_size), int(image_size)
    if len(image_size) != 2 or not all(isinstance(side, int | np.integer) and side >= 32 for side in image_size):
        raise ValueError(f"image_size={image_size}; give one side or (height, width), whole pixels, 32 at least")
    height, width = (int(side) for side in image_size)
    if height * width > LARGEST_PIXELS:
        raise ValueError(
            f"image_size={image_size}: {height * width} pixels; a network is shown {LARGEST_PIXELS} at most"
        )
    return height, width


def standardised(images: Tensor) -> Tensor:
    """RGB in [0, 1] (n, 3, h, w) as ImageNet's networks want it, channels last in memory."""
    mean, deviation = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)


def halved(images: np.ndarray) -> np.ndarray:
    """uint8 images (n, h, w, 3) at half their size: means of 2 × 2 pixels, of fewer at the ends of odd sides."""
    values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    means = F.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)
    return means.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
