"""Road (a): the small network learns to name formula classes (FractalDB, VisualAtom); no other network is needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomalib_lite.embedding.network import CHANNELS, SmallNetwork
from anomalib_lite.pretraining.folding import folded_state


class FormulaClassifier(nn.Module):
    """The network's maps, averaged over the image, and a linear layer on them: (n, 3, h, w) to (n, classes)."""

    def __init__(self, network: SmallNetwork, classes: int) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.Linear(sum(network.widths[1:]), classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(torch.cat([level.mean(dim=(2, 3)) for level in self.network.features(images)], dim=1))


def exported(classifier: FormulaClassifier) -> SmallNetwork:
    """The network with heads that pass its maps on as they are, channels it lacks being zero."""
    network = classifier.network
    folded = SmallNetwork(widths=network.widths, depths=network.depths)
    state = folded_state(network)
    for i, (width, channels) in enumerate(zip(network.widths[1:], CHANNELS, strict=True)):
        if width > channels:
            raise ValueError(f"stage {i + 1} has {width} channels, a head passes on {channels} at most")
        state[f"heads.{i}.weight"] = torch.eye(channels, width)[..., None, None]
        state[f"heads.{i}.bias"] = torch.zeros(channels)
    folded.load_state_dict(state)
    return folded.eval()
