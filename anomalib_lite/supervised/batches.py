"""Batches of pixels: a source in; uint8 (n, h, w, 3) as it is decoded, and as the tensors that networks take, out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from anomalib_lite.images.loading import UnreadableImage, load
from anomalib_lite.images.sources import ImageSource


def as_images(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 255


def pixel_batches(
    source: ImageSource, size: int, batch_size: int, workers: int | None, unreadable: list[UnreadableImage]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices, uint8 (n, size, size, 3)); unreadable images are added to the list."""
    indices: list[int] = []
    batch: list[np.ndarray] = []
    for image in load(source, size=size, workers=0 if len(source) == 1 else workers):
        if isinstance(image, UnreadableImage):
            unreadable.append(image)
            continue
        indices.append(image.index)
        batch.append(image.pixels)
        if len(batch) == batch_size:
            yield indices, np.stack(batch)
            indices, batch = [], []
    if batch:
        yield indices, np.stack(batch)
