"""Networks that look at the same pixels, as one: their layers side by side, each with the same say in distances.

A backbone named ``builtin+mobilenet_v2`` is the built-in network and torchvision's MobileNetV2. Every layer is scaled
to the spread that the built-in network's have, by what drawn images made of it; so none drowns the others before
the reduction. What it gives is in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from anomalib_lite.embedding.backbones import BACKBONES, build, resolve_layers
from anomalib_lite.embedding.builtin import BUILTIN, GENERATIONS, build_builtin
from anomalib_lite.embedding.weights import (
    CACHED,
    IMAGENET,
    RANDOM,
    StoredWeights,
    Weights,
    WeightsError,
    fingerprint,
    weights_in,
)

AND = "+"
_SPREAD = 4.0  # of each of the built-in network's layers: the root of its channels' variances, summed


class Joined(nn.Module):
    """Several networks as one; float (n, 3, h, w) in, all their layers out, scaled.

    Parameters
    ----------
    networks : modules by name, each of which returns a list of layers
    """

    def __init__(self, networks: Mapping[str, nn.Module]):
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, images: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        for name, network in self.networks.items():
            found = network(images)
            layers += found if name == BUILTIN else [x * f for x, f in zip(found, _factors(name), strict=True)]
        return layers


def names_in(backbone: str) -> tuple[str, ...]:
    """The networks that a backbone is made of: one, or those between its plus signs.

    Raises
    ------
    ValueError
        If one comes twice, does not exist, or is not known well enough to stand beside others.
    """
    names = tuple(name.strip() for name in backbone.split(AND))
    if len(names) == 1:
        return names
    if len(set(names)) < len(names):
        raise ValueError(f"backbone={backbone!r} names a network twice")
    for name in names:
        if name != BUILTIN:
            resolve_layers(name, None)
            _factors(name)
    return names


def only_one(backbone: str, whose: str) -> None:
    """Raise ValueError if a backbone is several networks, for `whose` sake, which takes layers of one."""
    if AND in backbone:
        raise ValueError(f"{whose} takes one network, not {backbone}: choose {backbone.split(AND)[0]!r}")


def build_joined(names: tuple[str, ...], weights: Weights | None) -> Joined:
    """Build the networks, each with its own weights.

    Parameters
    ----------
    names : see `names_in`
    weights : optional
        By default those of the package and torchvision's. Else weights by name, a folder that has files so called
        (``mobilenet_v2.pth``), or "random" or "imagenet-cached" for all.

    Raises
    ------
    WeightsError
        If weights cannot be had, or it is not said whose they are.
    """
    given = _by_name(names, weights)
    networks: dict[str, nn.Module] = {}
    for name in names:
        own = given.get(name)
        if name == BUILTIN:
            networks[name] = build_builtin(own)
        else:
            networks[name] = build(name, resolve_layers(name, None), IMAGENET if own is None else own)
    return Joined(networks)


def joint_fingerprint(network: nn.Module) -> str:
    """What `weights.fingerprint` gives; of joined networks that of each, with a plus between."""
    parts = network.networks.values() if isinstance(network, Joined) else [network]
    return AND.join(fingerprint(part) for part in parts)


def weights_of(backbone: str, given: Weights | None, known: object, *, download: bool) -> Weights | None:
    """Weights to open a stored model with: those given, else the backbone's own, over the network only if told to.

    Of the built-in network those that the model was fitted with, if they are of a generation that ships: `known` is
    the `joint_fingerprint` of the network then.
    """
    names, hashes = backbone.split(AND), str(known).split(AND)
    if len(names) > 1 and given is None and len(hashes) == len(names):
        pairs = zip(names, hashes, strict=True)
        found = {name: weights_of(name, None, one, download=download) for name, one in pairs}
        return {name: own for name, own in found.items() if own is not None}
    if given is not None:
        return given
    if backbone == BUILTIN:
        return GENERATIONS.get(str(known))
    return IMAGENET if download else CACHED


def weights_among(all_weights: Mapping[str, Weights], backbone: str | None) -> Weights | None:
    """Of weights by network those of a backbone, by name if it is several; None if none are of it."""
    if backbone is None or AND not in backbone:
        return all_weights.get(backbone or "")
    return {name: all_weights[name] for name in names_in(backbone) if name in all_weights} or None


def _by_name(names: tuple[str, ...], weights: Weights | None) -> Mapping[str, Weights]:
    if weights is None:
        return {}
    if isinstance(weights, StoredWeights):
        stored: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for key, value in weights.parameters.items():
            whose, _, rest = key.removeprefix("networks.").partition(".")
            stored.setdefault(whose, {})[rest] = value
        return {name: StoredWeights(parameters) for name, parameters in stored.items()}
    if isinstance(weights, Mapping):
        if set(weights) - set(names):
            _whose(names, "a mapping of " + ", ".join(map(repr, list(weights)[:3])))
        return weights
    if weights in (RANDOM, CACHED, IMAGENET):
        return {name: weights for name in names if name != BUILTIN or weights == RANDOM}
    if not Path(weights).is_dir():
        _whose(names, str(weights))
    found = weights_in(Path(weights))
    if missing := set(names) - {BUILTIN} - set(found):
        raise WeightsError(f"{weights} has no weights of {', '.join(sorted(missing))}, in a file so called and .pth")
    return {name: found[name] for name in names if name in found}


def _whose(names: tuple[str, ...], what: str) -> NoReturn:
    others = " and ".join(f"{name}.pth" for name in names if name != BUILTIN)
    raise WeightsError(
        f"weights={what}: {AND.join(names)} takes a folder with {others}, or weights by the networks' names; without "
        "any, torchvision's are taken"
    )


def _factors(name: str) -> tuple[float, ...]:
    spreads = BACKBONES[name].spreads if name in BACKBONES else ()
    if not spreads:
        known = ", ".join([BUILTIN, *(other for other, backbone in BACKBONES.items() if backbone.spreads)])
        raise ValueError(
            f"how far the layers of {name} spread is not known, so it stands beside no other; known: {known}"
        )
    return tuple(_SPREAD / spread for spread in spreads)
