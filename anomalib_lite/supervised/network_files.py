"""Trained networks as model files, and back: what classifiers and segmenters do alike.

What a model file is, safe to open and written atomically, is the business of `files.model_file`.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from anomalib_lite.embedding.weights import StoredWeights, WeightsError
from anomalib_lite.files import model_file
from anomalib_lite.files.model_file import ModelFileError

Model = TypeVar("Model")
Network = TypeVar("Network", bound=nn.Module)
State = dict[str, Tensor]


def save_network(path: str | os.PathLike[str], network: nn.Module, manifest: dict[str, Any], *, kind: str) -> Path:
    """Write a network's parameters, and in the manifest what it takes to build it.

    Raises
    ------
    OSError
        If it cannot be written; the old file, if any, is untouched.
    """
    arrays = {key: value.detach().float().cpu().numpy() for key, value in network.state_dict().items()}
    return model_file.save_file(path, arrays, manifest, kind=kind)


def load_network(
    path: str | os.PathLike[str],
    *,
    kind: str,
    backbone: str,
    rebuild: Callable[[dict[str, Any], State, StoredWeights | None], tuple[Model, Network]],
) -> tuple[Model, Network]:
    """Read a file written by `save_network`: the model, and its network with the file's parameters.

    Parameters
    ----------
    backbone : the attribute of the network that is a backbone, if it has one
    rebuild : from manifest, parameters and those of the backbone, if it is in the file, to a model and its network,
        parameters still to be filled in

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If it holds no model of that kind or is damaged.
    WeightsError
        If a backbone's weights cannot be had.
    """
    arrays, manifest = model_file.load_file(path, kind=kind)
    prefix = f"{backbone}."
    own = None
    try:
        state = {key: torch.from_numpy(value).float() for key, value in arrays.items()}
        if not all(value.isfinite().all() for value in state.values()):
            raise ValueError("a parameter is NaN or infinite")
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        own = StoredWeights(inside) if inside else None
        model, network = rebuild(manifest, state, own)
        network.load_state_dict(state, assign=True)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError, OverflowError) as error:
        if isinstance(error, ModelFileError) or (isinstance(error, WeightsError) and own is None):
            raise
        raise ModelFileError(
            f"{Path(path).name} is damaged: something is missing or malformed in it ({str(error)[:500]})"
        ) from error
    return model, network.eval()


def checked(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Those `settings` of a config, each of its type: what a model is built by is plain and small.

    Raises
    ------
    ValueError
        If one is missing or of another type; a bool is no number here, and text has at most 100 characters.
    """
    for name, types in settings.items():
        value = config[name]
        fits = isinstance(value, types) and (types is bool or not isinstance(value, bool))
        if not fits or (isinstance(value, str) and len(value) > 100):
            raise ValueError(f"{name} is {reprlib.repr(value)}")
    return {name: config[name] for name in settings}


def described_backbone(described: dict[str, Any]) -> tuple[str, list[str] | None]:
    """Name and layers of a backbone as `Embedder.describe` wrote them.

    Raises
    ------
    ValueError
        If they are anything but names.
    """
    name, layers = described["backbone"], described["layers"]
    if not isinstance(layers, list) or len(layers) > 100 or not all(isinstance(part, str) for part in [name, *layers]):
        raise ValueError(f"backbone is {reprlib.repr(name)} with the layers {reprlib.repr(layers)}")
    return name, layers or None


def without_memory() -> torch.device:
    """Where a network is laid out: a file may ask for any size, and is believed only when it has turned out to hold
    parameters of that shape."""
    return torch.device("meta")
