"""Road (b): the small network learns to answer like the middles of ImageNet networks, on formula images only.

Every layer of every teacher is scaled to the same variance, all its channels by one factor, and side by side they are
turned to as many principal components as the small network has answers. So distances between patches are those of all
teachers together, but for what the last components hold. Compared by square error, as EfficientAD distils its patch
network (Batzner et al., WACV 2024, section 3.1), but on drawn images and, in training, each in units of its own
variance; several teachers as in Ranzinger et al., AM-RADIO, CVPR 2024. A mean square error of 1 is what the mean would
score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_lite.embedding.backbones import TruncatedNetwork
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.network import CHANNELS, SmallNetwork
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.pretraining.folding import folded_state
from anomalib_lite.pretraining.placing import Placed

TEACHERS = {
    "resnet18": ("layer2", "layer3"),
    "mobilenet_v2": ("features.6", "features.13"),
    "inception_v3": ("Mixed_5d", "Mixed_6e"),
}
"""Of each the layers at strides 8 and 16. What teaches twice, with other weights, is called ``mobilenet_v2+other``."""

_CALIBRATING = 32
# What is added to the variance inside an image, in units of all images'; the weight of places that see beyond the
# picture, and how many rows of each map those are.
_FAINTEST, _AT_EDGES, _MARGINS = 0.1, 0.25, (3, 2)


class Teacher:
    """ImageNet networks as one: uint8 crops (n, side, side, 3) to two maps (n, c, side / 8 or 16, …), c as `CHANNELS`.

    They compute in 8-bit integers where there are such on the CPU: a tenth of the time, and an error of one to four
    per cent of a channel's variance, where the student's is thirty.

    Parameters
    ----------
    weights : torchvision state dicts by the names in `TEACHERS`, to which a plus and anything may be added.
    """

    def __init__(self, weights: Mapping[str, Weights], side: int, device: torch.device, batch: int):
        unknown = {name for name in weights if network_of(name) not in TEACHERS}
        if unknown or not weights:
            raise ValueError(f"teachers are any of {', '.join(TEACHERS)}, not {', '.join(sorted(unknown)) or 'none'}")
        dtype = "int8" if device.type == "cpu" else "auto"
        self.embedders = [
            Embedder(
                network_of(label), layers=TEACHERS[network_of(label)], weights=path, image_size=side,
                device=str(device), dtype=dtype, batch_size=batch,
            )
            for label, path in weights.items()
        ]  # fmt: skip
        self.placed: list[Placed] = []
        self.means: list[Tensor] = []
        self.turns: list[Tensor] = []

    def calibrate(self, batches: list[Tensor]) -> None:
        """Learn from crops where the teachers look, what range their layers have, and the principal components."""
        pixels = batches[0].cpu().numpy()
        self.placed = [Placed(embedder, pixels) for embedder in self.embedders]
        for placed in self.placed:
            placed.calibrate(pixels[:_CALIBRATING])
        moments = [_Moments(), _Moments()]
        for batch in batches:
            for moment, found in zip(moments, self._maps(batch), strict=True):
                moment.add(found.permute(0, 2, 3, 1).flatten(0, 2).double())
        for level, (mean, covariance) in enumerate(moment.all() for moment in moments):
            scale = self._scale(level, covariance.diagonal())
            values, vectors = torch.linalg.eigh(covariance * scale.outer(scale))
            kept = vectors[:, -CHANNELS[level] :].flip(1)
            per_answer = values[-CHANNELS[level] :].sum() / CHANNELS[level]
            self.means.append(mean.float())
            self.turns.append((scale[:, None] * kept / per_answer.sqrt()).float())

    def __call__(self, crops: Tensor) -> list[Tensor]:
        return [
            torch.einsum("nchw,cd->ndhw", found - mean.view(-1, 1, 1), turn)
            for found, mean, turn in zip(self._maps(crops), self.means, self.turns, strict=True)
        ]

    def _scale(self, level: int, variances: Tensor) -> Tensor:
        """What every channel is multiplied by, so that the layers of all teachers have a variance of 1 in all."""
        channels = [cast(TruncatedNetwork, embedder.network).channels[level] for embedder in self.embedders]
        return torch.cat([part.sum().rsqrt().expand(len(part)) for part in variances.split(channels)])

    def _maps(self, crops: Tensor) -> list[Tensor]:
        pixels = crops.cpu().numpy()
        middles, coarses = zip(*(placed(pixels) for placed in self.placed), strict=True)
        return [torch.cat(middles, dim=1), torch.cat(coarses, dim=1)]


def network_of(label: str) -> str:
    """The network that a teacher is, of what its weights are called."""
    return label.partition("+")[0]


class _Moments:
    """Mean (c,) and covariance (c, c) of rows (n, c) that come in batches."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.product: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.product = self.product + rows.T @ rows

    def all(self) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self.total) / self.count
        return mean, torch.as_tensor(self.product) / self.count - mean.outer(mean)


def distillation_loss(answers: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean square error, both levels weighing the same."""
    return sum((F.mse_loss(a.float(), t) for a, t in zip(answers, targets, strict=True)), torch.zeros(())) / len(
        answers
    )


def relative_loss(answers: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Square errors in units of what the targets vary by within each image, both levels weighing the same.

    Parts are told from one another by how they differ from others of their kind, which on a faint surface is little. By
    plain errors a network learns those images last: they are a few per cent of the sum. Places at the edges, whose
    answers are mostly of what is padded there, count less.
    """
    total = torch.zeros(())
    for answer, target, widest in zip(answers, targets, _MARGINS, strict=True):
        rows = target.shape[-1]
        margin = min(widest, rows // 2 - 1)
        inside = (..., slice(margin, rows - margin), slice(margin, rows - margin))
        unit = target[inside].var(dim=(2, 3)).mean(1) + _FAINTEST
        errors = (answer.float() - target).square().mean(1)
        weights = torch.full(errors.shape[1:], _AT_EDGES, device=errors.device)
        weights[inside] = 1
        total = total + ((errors * weights).sum(dim=(1, 2)) / weights.sum() / unit).mean()
    return total / len(answers)


def exported(network: SmallNetwork) -> SmallNetwork:
    """The network as it ships: batch norms folded, and both maps with a variance of 16 in all.

    With less, a step of fine-tuning moves the answers by more than images differ.
    """
    folded = SmallNetwork(widths=network.widths, depths=network.depths)
    state = folded_state(network)
    for key, value in network.heads.state_dict().items():
        state[f"heads.{key}"] = value.cpu() * 4 / CHANNELS[int(key[0])] ** 0.5
    folded.load_state_dict(state)
    return folded.eval()
