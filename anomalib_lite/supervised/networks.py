"""What is trained: the classic small CNN, heads on vectors, and a backbone with a new last layer.

All return logits (n, k): one column where two classes are told apart by binary cross-entropy, else one per class.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_lite.embedding.pooling import pool_whole

BOTTLENECK = (64, 64, 32)


class SmallCNN(nn.Module):
    """Three blocks of 3 × 3 convolution, ReLU and 2 × 2 max pooling, 32-32-64 wide, and a dense layer of 64.

    The baseline of a generation of tutorials. Input: standardised (n, 3, s, s), s a multiple of 8.
    """

    def __init__(self, outputs: int, *, image_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = (3, 32, 32, 64)
        blocks: list[nn.Module] = []
        for inner, outer in pairwise(widths):
            blocks += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * (image_size // 8) ** 2, 64),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, outputs),
        )
        # Glorot and Bengio, AISTATS 2010. torch's own start is smaller, and from it one seed in five never left the
        # plateau of a constant answer.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        return in_float32(self.head, self.features(images))

    def rates(self, rate: float) -> Iterator[tuple[list[nn.Parameter], float]]:
        """Groups of parameters and their rates: `rate`, and a tenth of it for the dense layer of 64.

        It adds up thousands of activations of one sign, and Adam's step is as long for every weight, so that at the
        full rate its sums leap: with dropout and changed copies all its units died in two trainings of five.
        Rates that fall with the number of inputs: Yang et al., NeurIPS 2021, section 4.
        """
        wide = next(self.head.parameters())
        yield [parameter for parameter in self.parameters() if parameter is not wide], rate
        yield [wide], rate / 10


class VectorHead(nn.Module):
    """Standardisation and dense layers, with ReLU and dropout between them; no hidden ones make it logistic regression.

    Parameters
    ----------
    vectors : (n, d), the training vectors, whose mean and deviation standardise
    outputs : int
    hidden : widths of the hidden layers
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, vectors: Tensor, outputs: int, *, hidden: tuple[int, ...] = (), dropout: float = 0.0) -> None:
        super().__init__()
        # A channel that hardly varies in training must not explode on a test image.
        deviation = vectors.std(dim=0, correction=0)
        self.register_buffer("mean", vectors.mean(dim=0))
        self.register_buffer("deviation", deviation.maximum(1e-2 * deviation.max().clamp_min(1e-6)))
        widths = (vectors.shape[1], *hidden)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, vectors: Tensor) -> Tensor:
        return in_float32(self.layers, (vectors - self.mean) / self.deviation)


class TransferNetwork(nn.Module):
    """A backbone, pooled over the image as the global level of an `Embedder` is, and a head.

    Parameters from the block `unfreeze_from` on are trained; without it only the head is.

    Raises
    ------
    ValueError
        If the backbone has no such block; the text lists those it has.
    """

    def __init__(self, backbone: nn.Module, head: VectorHead, unfreeze_from: str | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        names = list(blocks(backbone))
        if unfreeze_from is not None and unfreeze_from not in names:
            raise ValueError(f"unfreeze_from={unfreeze_from!r}: the blocks are {', '.join(names)}")
        first = len(names) if unfreeze_from is None else names.index(unfreeze_from)
        self.trained_blocks = names[first:]
        for name, parameters in blocks(backbone).items():
            for parameter in parameters:
                parameter.requires_grad_(name in self.trained_blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(pool_whole(self.backbone(images)))

    def train(self, mode: bool = True) -> TransferNetwork:
        """Only the head knows a training mode: statistics of the backbone stay those it was trained with."""
        super().train(mode)
        self.backbone.eval()
        return self

    def rates(self, rate: float, *, head_rate: float, decay: float) -> Iterator[tuple[list[nn.Parameter], float]]:
        """Groups of parameters and their rates: `rate` for the last block, less by `decay` each block before it.

        Discriminative fine-tuning, Howard and Ruder, ACL 2018, section 3.2.
        """
        yield list(self.head.parameters()), head_rate
        found = blocks(self.backbone)
        for depth, name in enumerate(reversed(self.trained_blocks)):
            yield found[name], rate / decay**depth


def blocks(backbone: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by block, in the order of the network: layer1, layer2, ...; features.0, features.2, ..."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        parts = name.removeprefix("body.").split(".")
        # VGG, MobileNet and SqueezeNet keep everything in one container.
        found.setdefault(".".join(parts[: 2 if parts[0] == "features" else 1]), []).append(parameter)
    return found


def default_block(backbone: nn.Module) -> str:
    """The last block with convolutions: what is least general, and cheapest to train."""
    found = blocks(backbone)
    deep = [name for name, parameters in found.items() if any(p.dim() == 4 for p in parameters)]
    # The built-in network's heads are single linear maps at the very end; the stage before them is what can learn.
    return [name for name in deep if name != "heads"][-1]


def in_float32(head: nn.Module, inputs: Tensor) -> Tensor:
    """Run a head in full precision: logits rounded to bf16 tie, and tied images cannot be ranked."""
    with torch.autocast(inputs.device.type, enabled=False):
        return head(inputs.float())


def loss_of(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy, binary for one column of logits and categorical for several; mean over the batch.

    Parameters
    ----------
    logits : (n, 1) or (n, k)
    targets : int64 (n,), class numbers
    weights : (k,), of the classes
    """
    logits = logits.float()
    each = weights[targets]
    if logits.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], targets.float(), reduction="none")
    else:
        losses = F.cross_entropy(logits, targets, reduction="none")
    return (each * losses).sum() / each.sum()


def probabilities(logits: Tensor) -> Tensor:
    """Logits (n, 1) or (n, k) to probabilities of all classes, (n, 2) or (n, k)."""
    logits = logits.float()
    if logits.shape[1] == 1:
        second = torch.sigmoid(logits[:, 0])
        return torch.stack([1 - second, second], dim=1)
    return torch.softmax(logits, dim=1)
