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
FIRST = "first"
_FIRST_FILE = Path(__file__).with_name("builtin-first.safetensors")
GENERATIONS = {"9f56a9417dacc9364759dc2b93567e5132d6b371d5f8786f40592d55dad718a4": _FIRST_FILE}
"""Other weights that ship, by the fingerprint of their network: a model opens with those that it was fitted with."""


def build_builtin(weights: Weights | None = None) -> SmallNetwork:
    """Build the network with the weights of the package, or others of the same kind, as wide as they are.

    `weights="first"` are those of the first generation, which ship too; see `docs/model-card.md`.

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
    first = isinstance(weights, str) and weights == FIRST
    state, origin = read_weights(BUILTIN, SHIPPED if weights is None else _FIRST_FILE if first else weights)
    with torch.device("meta"):
        network = SmallNetwork(**layout_of(state))
    fill_from(network, BUILTIN, state, origin, layers=("middle", "coarse"))
    return network.eval()
