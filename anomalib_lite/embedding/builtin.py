"""The built-in backbone: `SmallNetwork` with the weights that ship in the package; no download.

How they were made, from what, and what they reach: `pretraining/README.md` and `docs/model-card.md`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from anomalib_lite.embedding.network import SmallNetwork, layout_of
from anomalib_lite.embedding.weights import (
    IMAGENET,
    RANDOM,
    Weights,
    WeightsError,
    fill_from,
    load_weights,
    read_weights,
)

BUILTIN = "builtin"
SHIPPED = Path(__file__).with_name("builtin.safetensors")
SECOND = "second"
_SECOND_FILE = Path(__file__).with_name("builtin-second.safetensors")
GENERATIONS = {"d1969fa8dcc1865780abee32a1861481c0fb68592b41e70b0b2c6e1bc5c03f6f": _SECOND_FILE}
"""Other weights that ship, by the fingerprint of their network: a model opens with those that it was fitted with."""


def build_builtin(weights: Weights | None = None) -> SmallNetwork:
    """Build the network with the weights of the package, or others of the same kind, as wide as they are.

    `weights="second"` are those of the second generation, which ship too; see `docs/model-card.md`.

    Raises
    ------
    WeightsError
        If the given weights cannot be read or belong to another network.
    """
    if isinstance(weights, str) and weights == IMAGENET:
        raise WeightsError(
            "the built-in backbone has its own weights; leave weights out, or name a file that "
            "`python -m anomalib_lite.pretraining` made"
        )
    if isinstance(weights, str) and weights == RANDOM:
        with torch.device("meta"):
            network = SmallNetwork()
        load_weights(network, BUILTIN, RANDOM)
        return network.eval()
    second = isinstance(weights, str) and weights == SECOND
    state, origin = read_weights(BUILTIN, SHIPPED if weights is None else _SECOND_FILE if second else weights)
    with torch.device("meta"):
        network = SmallNetwork(**layout_of(state))
    fill_from(network, BUILTIN, state, origin, layers=("middle", "coarse"))
    return network.eval()
