"""From the network that is trained, with batch norms, to the one that ships, without."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from anomalib_lite.embedding.network import SmallNetwork


def folded_state(network: SmallNetwork) -> dict[str, Tensor]:
    """Parameters of everything but the heads, every batch norm folded into its convolution; float32, on the CPU."""
    modules = dict(network.eval().named_modules())
    state = {}
    for name, convolution in modules.items():
        norm = modules.get(f"{name.removesuffix('.0')}.1")
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            for key, value in fuse_conv_bn_eval(convolution, norm).state_dict().items():
                state[f"{name}.{key}"] = value.cpu().float()
    return state
