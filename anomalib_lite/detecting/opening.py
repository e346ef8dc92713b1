"""From a model file to a detector: whether what is in it fits together, and the weights are those of the fit.

Nothing in the file is executed; what is malformed in it is an error that names the file, whatever went wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from anomalib_lite.detecting.parameters import STORED
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.joined import weights_of
from anomalib_lite.embedding.weights import StoredWeights, Weights, WeightsError
from anomalib_lite.files import model_file
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.fitted.storing import from_arrays
from anomalib_lite.fitted.whole import BOTH
from anomalib_lite.images.tiles import STEP
from anomalib_lite.images.variations import Variations
from anomalib_lite.machine.hardware import pick_device, pick_dtype
from anomalib_lite.machine.integers import pick_engine
from anomalib_lite.scoring import SCORERS


class Embedding(Protocol):
    """What is made of the parameters in a file."""

    @property
    def embedder(self) -> Embedder: ...


D = TypeVar("D", bound=Embedding)


def open_model(
    path: str | os.PathLike[str],
    make: Callable[..., D],
    *,
    weights: Weights | None,
    download: bool,
    given: Mapping[str, Any],
) -> tuple[D, Fitted, Embedder, bool]:
    """Read what `Detector.save` wrote.

    Parameters
    ----------
    path : path
    make : makes the detector from its parameters and ``weights=``
    weights, download : see `Detector.load`
    given : parameters that replace those in the file unless they are None; all names in it are there

    Returns
    -------
    The detector, its core, the embedder that belongs to it, and whether the file holds the backbone's weights too.

    Raises
    ------
    FileNotFoundError, ModelFileError, WeightsError
        See `Detector.load`.
    """
    arrays, values = model_file.load_file(path)
    name = Path(path).name
    # What is wrong with these is not the fault of the file.
    device = pick_device(given["device"] or "auto")
    pick_engine(given["engine"] or "auto", device)
    if given["dtype"] not in (None, "auto", "int8"):
        pick_dtype(given["dtype"], device)
    dtype, fitted_in = given["dtype"], _fitted_in(values)
    if dtype not in (None, "auto", fitted_in) and "int8" in (dtype, fitted_in):
        # Rounding to 8 bits moves all vectors of a model: measured against others, every picture looks odd.
        raise ValueError(f"{name} was fitted in {fitted_in} and cannot be computed in {dtype}; fit again for it")
    backbone = {
        key.removeprefix("backbone."): torch.from_numpy(arrays.pop(key))
        for key in [key for key in arrays if key.startswith("backbone.")]
    }
    try:
        parameters = _parameters(values, given)
        fitted = from_arrays(arrays, values, device=parameters["device"])
        fingerprint = str(values["embedder"]["fingerprint"])
        given_weights = weights_of(parameters["backbone"], weights, fingerprint, download=download)
        own = StoredWeights(backbone) if backbone and weights is None else given_weights
        detector = make(**parameters, weights=own)
        embedder = detector.embedder.with_context(values["embedder"]["context"])
        embedder = embedder if fitted.frame is None else embedder.framed(fitted.frame)
        if not _fits(parameters["image_size"], parameters["tiles"], embedder.frame.size):
            raise ValueError(f"image_size={parameters['image_size']} does not fit a frame of {embedder.frame.size}")
        shape = embedder.output_shape
        grid = (1, 1) if len(shape) == 1 else embedder.frame.grid(embedder.own_grid)
        if (*fitted.grid, len(fitted.reduction.mean_)) != (*grid, shape[-1]):
            raise ValueError(f"a grid of {fitted.grid} does not fit embeddings of shape {shape}")
        if (fitted.whole is not None) != (parameters["level"] == BOTH):
            raise ValueError(f"level={parameters['level']!r} does not fit what is there of whole images")
        if fitted.whole is not None:
            (dimension,) = embedder.at_level("global").output_shape
            if len(fitted.whole.scorer.pca_.mean_) != dimension:
                raise ValueError(f"whole images were compared in other dimensions than {dimension}")
        if embedder.awaits_calibration and fingerprint == embedder.fingerprint:
            embedder = embedder.calibrated(values["embedder"]["ranges"])
    except WeightsError as error:
        if not backbone or weights is not None:
            raise
        raise ModelFileError(f"{name} is damaged: {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        raise ModelFileError(f"{name} is damaged: something is missing or malformed in it ({error!r})") from error
    if detector.embedder.fingerprint != fingerprint:
        raise ModelFileError(
            f"{name} was fitted with other weights of {parameters['backbone']} than those given: scores would be "
            f"meaningless (fingerprint {fingerprint[:12]}…, given {detector.embedder.fingerprint[:12]}…). Give the "
            "same weights file, or fit again"
        )
    return detector, fitted, embedder, bool(backbone)


def _parameters(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments: as JSON gave them back, but for those given."""
    parameters = {**values["parameters"], **{key: value for key, value in given.items() if value is not None}}
    if lacking := STORED - parameters.keys():
        raise KeyError(*lacking)
    if given["device"] is None:
        parameters["device"] = _usable(parameters["device"])
    device = pick_device(parameters["device"])
    if given["engine"] is None:
        parameters["engine"] = _working(parameters["engine"], device)
    if parameters["dtype"] == "auto" or (given["dtype"] is None and parameters["dtype"] == "int8"):
        fitted_in = values["embedder"]["dtype"]
        # float32 stands in for bf16 where that is slow. For integers, or by them, nothing stands in.
        parameters["dtype"] = fitted_in
        if fitted_in == "bfloat16":
            parameters["dtype"] = str(pick_dtype("auto", device)).removeprefix("torch.")
    for name in ("value_range", "image_size", "tiles"):
        if isinstance(parameters[name], list):
            parameters[name] = tuple(parameters[name])
    if parameters["variations"] is not None:
        parameters["variations"] = Variations(**parameters["variations"])
    if isinstance(parameters["scorer"], dict):
        parameters["scorer"] = SCORERS[parameters["scorer"]["name"]](**parameters["scorer"]["parameters"])
    return parameters


def _fits(asked: Any, tiles: Any, size: tuple[int, int]) -> bool:
    """Whether what was asked for gives a frame of this size, but for the rounding of one that has windows."""
    if asked is None or tiles is not None:
        return True
    wanted, there = (asked, size) if isinstance(asked, tuple) else ((asked,), (min(size),))
    return all(abs(one - other) < STEP for one, other in zip(wanted, there, strict=True))


def _fitted_in(values: Mapping[str, Any]) -> str:
    embedder = values.get("embedder")
    return str(embedder.get("dtype")) if isinstance(embedder, dict) else "nothing"


def _working(engine: str, device: torch.device) -> str:
    """The engine asked for at the fit, or "auto" where it does not work."""
    try:
        return "auto" if engine == "auto" else pick_engine(engine, device)
    except ValueError:
        return "auto"


def _usable(device: str) -> str:
    """The device asked for at the fit, or "auto" where this machine lacks it."""
    try:
        pick_device(device)
    except ValueError:
        return "auto"
    return device
