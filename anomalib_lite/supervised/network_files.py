"""Trained networks as model files, and back: what classifiers and segmenters do alike.

What a model file is, safe to open and written atomically, is the business of `files.model_file`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
    rebuild: Callable[[dict[str, Any], State], tuple[Model, Network]],
) -> tuple[Model, Network]:
    """Read a file written by `save_network`: the model, and its network with the file's parameters.

    Parameters
    ----------
    rebuild : from manifest and parameters to a model and its network, parameters still to be filled in

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
    try:
        state = {key: torch.from_numpy(value).float() for key, value in arrays.items()}
        if not all(value.isfinite().all() for value in state.values()):
            raise ValueError("a parameter is NaN or infinite")
        model, network = rebuild(manifest, state)
        network.load_state_dict(state, assign=True)
    except (WeightsError, ModelFileError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise ModelFileError(
            f"{Path(path).name} is damaged: something is missing or malformed in it ({error})"
        ) from error
    return model, network.eval()


def stored_backbone(state: State, prefix: str) -> StoredWeights | None:
    """The backbone's parameters among those of a network, if the file holds any."""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return StoredWeights(inside) if inside else None


def without_memory(needed: bool) -> AbstractContextManager[Any]:
    """Build a network on the meta device, if `needed`: a file may ask for any size, and is believed only when it has
    turned out to hold parameters of that shape."""
    return torch.device("meta") if needed else nullcontext()
