"""Road (b): the small network learns to answer like the middle of an ImageNet network, on formula images only.

The teacher's maps are standardised per channel, so that every channel counts the same, and compared by mean square
error, as EfficientAD distils its patch network (Batzner et al., WACV 2024, section 3.1) but on drawn images. An error
of 1 is what the teacher's mean would score.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_lite.embedding import backbones
from anomalib_lite.embedding.network import CHANNELS, SmallNetwork
from anomalib_lite.pretraining.folding import folded_state

TEACHER_LAYERS = ("layer2", "layer3")


class Teacher:
    """ResNet18 up to layer3 with its maps standardised: images (n, 3, h, w) in [0, 1] to two maps."""

    def __init__(self, weights: Path, device: torch.device, dtype: torch.dtype) -> None:
        network = backbones.build("resnet18", TEACHER_LAYERS, weights)
        if network.channels != CHANNELS:
            raise ValueError(f"the teacher has {network.channels} channels, the built-in network {CHANNELS}")
        self.network = network.to(device, dtype).to(memory_format=torch.channels_last)
        self.dtype = dtype
        self.means = [torch.zeros(c, device=device) for c in CHANNELS]
        self.deviations = [torch.ones(c, device=device) for c in CHANNELS]

    def calibrate(self, images: list[Tensor]) -> None:
        """Learn mean and deviation of every channel from batches of standardised images."""
        sums = [torch.zeros(3, c, dtype=torch.float64, device=self.means[0].device) for c in CHANNELS]
        for batch in images:
            for total, level in zip(sums, self._maps(batch), strict=True):
                rows = level.permute(0, 2, 3, 1).flatten(0, 2).double()
                total += torch.stack([torch.ones_like(rows).sum(0), rows.sum(0), (rows**2).sum(0)])
        for i, (count, total, squares) in enumerate(sums):
            mean = total / count
            self.means[i] = mean.float()
            self.deviations[i] = (squares / count - mean**2).clamp(min=1e-8).sqrt().float()

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [
            (level - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
            for level, mean, deviation in zip(self._maps(images), self.means, self.deviations, strict=True)
        ]

    def _maps(self, images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            maps = self.network(images.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return [level.float() for level in maps]


def distillation_loss(answers: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean square error, both levels weighing the same."""
    return sum((F.mse_loss(a.float(), t) for a, t in zip(answers, targets, strict=True)), torch.zeros(())) / len(
        answers
    )


def exported(network: SmallNetwork, teacher: Teacher) -> SmallNetwork:
    """The network as it ships: batch norms folded, and the heads answering in the teacher's own units."""
    folded = SmallNetwork(widths=network.widths, depths=network.depths)
    state = folded_state(network)
    heads = network.heads.state_dict()
    for i, (mean, deviation) in enumerate(zip(teacher.means, teacher.deviations, strict=True)):
        weight, bias = heads[f"{i}.weight"].cpu(), heads[f"{i}.bias"].cpu()
        state[f"heads.{i}.weight"] = weight * deviation.cpu().view(-1, 1, 1, 1)
        state[f"heads.{i}.bias"] = bias * deviation.cpu() + mean.cpu()
    folded.load_state_dict(state)
    return folded.eval()
