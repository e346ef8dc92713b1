"""A wider network that begins where a trained one ended: what is new answers to nothing yet.

As in Net2WiderNet (Chen et al., ICLR 2016, section 2.2), but new channels are drawn at random and read by nobody,
instead of copied and halved.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anomalib_lite.embedding.network import SmallNetwork


@torch.no_grad()
def begin_with(network: SmallNetwork, trained: Mapping[str, Tensor], images: Tensor) -> None:
    """Put the folded weights of a narrower (or equal) network into one with batch norms; heads are left as drawn.

    Batch norms take the mean and deviation that `images` (n, 3, h, w) give them, and give them back, so that the
    channels of old answer as they did.

    Raises
    ------
    ValueError
        If the trained network is wider, or has other blocks.
    """
    convolutions = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and "heads" not in name}
    needed = {f"{name}.weight" for name in convolutions}
    if needed != {key for key in trained if key.endswith("weight") and "heads" not in key}:
        raise ValueError("the weights to begin with are of a network with other blocks")
    modules = dict(network.named_modules())
    for name, convolution in convolutions.items():
        weight, bias = trained[f"{name}.weight"].float(), trained[f"{name}.bias"].float()
        outputs, inputs = weight.shape[:2]
        if outputs > convolution.out_channels or inputs > convolution.in_channels:
            raise ValueError(f"the weights to begin with are of a wider network: {name} has {tuple(weight.shape)}")
        convolution.weight[:outputs] = 0
        convolution.weight[:outputs, :inputs] = weight
        norm = modules[f"{name.removesuffix('.0')}.1"]
        assert isinstance(norm, nn.BatchNorm2d)
        seen = _outputs(network, convolution, images)
        deviation, mean = torch.std_mean(seen, dim=(0, 2, 3), correction=0)
        norm.running_mean, norm.running_var = mean, deviation**2
        norm.weight[:outputs] = (deviation[:outputs] ** 2 + norm.eps).sqrt()
        norm.bias[:outputs] = bias + mean[:outputs]


def _outputs(network: nn.Module, convolution: nn.Conv2d, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = convolution.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network.eval()(images)
    handle.remove()
    return seen[0]
