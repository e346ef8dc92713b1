"""From the network that is trained, with batch norms, to the one that ships, without."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from anomalib_lite.embedding.network import SmallNetwork


def folded_state(network: SmallNetwork) -> dict[str, Tensor]:
    """Parameters of everything but the heads, every batch norm folded into its convolution; float32, on the CPU."""
    state = {}
    for name, module in network.eval().named_modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(module[0], module[1])
            state[f"{name}.0.weight"] = fused.weight.detach().cpu().float()
            state[f"{name}.0.bias"] = fused.bias.detach().cpu().float()
    return state
