"""A detector as a file, and back: which arrays and settings make it up, and whether they belong together.

What a model file is, safe to open and written atomically, is the business of `files.model_file`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anomalib_lite.embedding.builtin import BUILTIN
from anomalib_lite.embedding.weights import StoredWeights, Weights, WeightsError
from anomalib_lite.files import model_file
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.fitting import Fitted
from anomalib_lite.machine.hardware import pick_device, pick_dtype
from anomalib_lite.scoring import SCORERS, KNNScorer
from anomalib_lite.scoring.named import can_be_stored
from anomalib_lite.scoring.reduction import restore_reduction

if TYPE_CHECKING:
    from anomalib_lite.detector import Detector


def save_detector(detector: Detector, path: str | os.PathLike[str], *, include_backbone: bool) -> Path:
    """Write a fitted detector; see `Detector.save`."""
    fitted = detector._require_fitted()
    if not can_be_stored(fitted.scorer):
        raise ValueError(
            f"a {type(fitted.scorer).__name__} cannot be saved: a model file holds numbers, no code, and only "
            f"{', '.join(SCORERS)} are known where it is opened"
        )
    parts = {
        "reduction": fitted.reduction.state(),
        "scorer": fitted.scorer.state(),
        "calibration": fitted.calibration.state(),
    }
    arrays = {f"{part}.{key}": np.asarray(value) for part, state in parts.items() for key, value in state.items()}
    arrays["train.origins"] = fitted.origins
    arrays["train.sizes"] = detector.train_sizes_
    if include_backbone:
        arrays.update({f"backbone.{key}": value for key, value in detector.embedder.parameters().items()})
    manifest = {
        "config": detector.config(),
        "grid": list(fitted.grid),
        "train_ids": detector.train_ids_,
        "n_train": detector.n_train_,
    }
    return model_file.save_file(path, arrays, manifest)


def load_detector(
    cls: type[Detector],
    path: str | os.PathLike[str],
    *,
    weights: Weights | None,
    device: str,
    dtype: str,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> Detector:
    """Read a detector; see `Detector.load`."""
    arrays, manifest = model_file.load_file(path)
    name = Path(path).name
    pick_dtype(dtype, pick_device(device))  # what is wrong with these is not the fault of the file
    try:
        config = manifest["config"]
        builtin = config["backbone"] == BUILTIN
        fitted = _restored(config, arrays, manifest)
        detector = cls(
            backbone=config["backbone"],
            layers=None if builtin else config["layers"],
            weights=_backbone_weights(weights, _part(arrays, "backbone")),
            level=config["level"],
            image_size=int(config["image_size"]),
            scorer=fitted.scorer,
            n_components=config["n_components"],
            whiten=config["whiten"],
            rotations=config["rotations"],
            top_share=config["top_share"],
            false_alarm_rate=config["false_alarm_rate"],
            device=device,
            dtype="float32" if dtype == "auto" and config["dtype"] == "float32" else dtype,
            batch_size=batch_size,
            workers=workers,
            random_state=config["random_state"],
            progress=progress,
        )
        detector.train_ids_ = manifest["train_ids"]
        detector.n_train_ = manifest["n_train"]
        detector.train_sizes_ = arrays["train.sizes"]
        detector.unreadable_ = []
        fingerprint = str(config["fingerprint"])
    except WeightsError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        raise ModelFileError(f"{name} is damaged: something is missing or malformed in it ({error!r})") from error
    if detector.embedder.fingerprint != fingerprint:
        raise ModelFileError(
            f"{name} was fitted with other weights of {config['backbone']} than those given: scores would be "
            f"meaningless (fingerprint {fingerprint[:12]}…, given {detector.embedder.fingerprint[:12]}…). Give the "
            "same weights file, or fit again"
        )
    detector.fitted_ = fitted
    return detector


def _restored(config: dict[str, Any], arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> Fitted:
    """What a model file holds of the fit; an error of any kind if its parts do not fit together."""
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{key} holds NaN or infinity")
    scorer = SCORERS[config["scorer"]].from_state(config["scorer_parameters"], _part(arrays, "scorer"))
    reduction = restore_reduction(_part(arrays, "reduction"))
    origins, sizes, ids = arrays["train.origins"], arrays["train.sizes"], manifest["train_ids"]
    rows, columns = (int(side) for side in manifest["grid"])
    if min(rows, columns) < 1 or sizes.shape != (len(ids), 2) or not all(isinstance(entry, str) for entry in ids):
        raise ValueError("the grid or the list of training images is malformed")
    if isinstance(scorer, KNNScorer) and (
        origins.shape != (len(scorer.bank_), 2)
        or origins.dtype.kind != "i"
        or (origins < 0).any()
        or (origins >= (len(ids), rows * columns)).any()
    ):
        raise ValueError("train.origins does not fit the bank")
    # One row through all parts: whether their dimensions fit.
    scorer.score(reduction.transform(np.zeros((1, len(reduction.mean_)), dtype=np.float32)))
    return Fitted(reduction, scorer, Calibration.from_state(_part(arrays, "calibration")), origins, (rows, columns))


def _backbone_weights(given: Weights | None, stored: dict[str, np.ndarray]) -> Weights | None:
    """The weights given, else those stored in the model file, else none: the backbone's own."""
    if given is not None or not stored:
        return given
    return StoredWeights({key: torch.from_numpy(value) for key, value in stored.items()})


def _part(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
