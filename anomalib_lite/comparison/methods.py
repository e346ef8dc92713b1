"""Methods to compare: a name in; a model, ready to be trained, out.

A name is MODEL, MODEL@BACKBONE or MODEL@BACKBONE:LAYER+LAYER, MODEL being a classifier, ``unet``, or a scorer of the
detector with or without its level: ``linear@resnet18:layer2+layer3``, ``knn``, ``knn-global``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from anomalib_lite.detector import Detector
from anomalib_lite.embedding.builtin import BUILTIN
from anomalib_lite.embedding.joined import weights_among
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.machine.hardware import pick_device, pick_dtype
from anomalib_lite.scoring import SCORERS
from anomalib_lite.supervised.augmentation import Augmentation
from anomalib_lite.supervised.classifier import CLASSIFIERS, Classifier
from anomalib_lite.supervised.segmenter import Segmenter
from anomalib_lite.version import __version__

UNET = "unet"
Kind = Literal["supervised", "unsupervised"]

SUPERVISED = (*CLASSIFIERS, UNET)
UNSUPERVISED = ("knn", "kmeans", "dbscan", "knn-global", "kmeans-global", "dbscan-global", "subspace-global")
"""Compared unless others are named."""


@dataclass(frozen=True)
class Settings:
    """What all methods share; see `compare`."""

    weights: Mapping[str, Weights] = field(default_factory=dict)
    epochs: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    grey: bool = False
    horizontal_flip: bool = False
    false_alarm_rate: float = 0.01
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Method:
    """A model by name, with the backbone that carries it, if any."""

    name: str
    kind: Kind
    model: str
    level: Literal["patch", "global"] = "patch"
    backbone: str | None = None
    layers: str | None = None

    def make(self, settings: Settings, *, random_state: int = 0) -> Detector | Classifier | Segmenter:
        """The model, unfitted.

        Raises
        ------
        ValueError
            If a backbone, a layer or a setting does not exist.
        WeightsError
            If the backbone's weights cannot be had.
        """
        # Never int8, which every detector would calibrate anew: what the network says is shared between all.
        dtype = str(pick_dtype(settings.dtype, pick_device(settings.device))).removeprefix("torch.")
        shared: dict[str, Any] = {"device": settings.device, "dtype": dtype, "random_state": random_state}
        network: dict[str, Any] = {"layers": self.layers, "weights": weights_among(settings.weights, self.backbone)}
        if self.kind == "unsupervised":
            return Detector(
                backbone=self.backbone or BUILTIN,
                level=self.level,
                scorer=self.model,  # type: ignore[arg-type]
                false_alarm_rate=settings.false_alarm_rate,
                **network,
                **shared,
            )
        shared["grey"] = settings.grey
        optional = {"epochs": settings.epochs, "batch_size": settings.batch_size}
        shared |= {name: value for name, value in optional.items() if value is not None}
        changes = Augmentation(horizontal_flip=settings.horizontal_flip)
        if self.model == UNET:
            size = None if self.backbone else settings.image_size
            return Segmenter(encoder=self.backbone, augmentation=changes, image_size=size, **network, **shared)
        if self.model in ("cnn-augmented", "finetune"):
            shared["augmentation"] = changes
        if self.backbone is None:
            return Classifier(self.model, image_size=settings.image_size, **shared)  # type: ignore[arg-type]
        return Classifier(self.model, backbone=self.backbone, **network, **shared)  # type: ignore[arg-type]

    def digest(self, settings: Settings) -> str:
        """Changes with the library's version and any setting of the model or its backbone's weights; not with the seed.

        Raises what `make` raises.
        """
        model = self.make(settings)
        training = {} if isinstance(model, Detector) else asdict(model.options)
        return hashlib.sha256(json.dumps([__version__, model.config(), training]).encode()).hexdigest()[:12]


def read_method(name: str, default_backbone: str = BUILTIN) -> Method:
    """Make out a name.

    Raises
    ------
    ValueError
        If there is no such model, or a CNN is given a backbone; the text lists the models.

    Examples
    --------
    >>> read_method("linear@resnet18:layer2+layer3").layers
    'layer2,layer3'
    """
    model, at, rest = name.strip().partition("@")
    backbone, _, layers = rest.partition(":")
    if at and not backbone:
        raise ValueError(f"{name!r}: name the backbone behind @, such as {model}@resnet18")
    named = layers.replace("+", ",") or None
    scorer, _, level = model.partition("-")
    if scorer in SCORERS and level in ("", "patch", "global"):
        chosen: Literal["patch", "global"] = "global" if level == "global" else "patch"
        return Method(name, "unsupervised", scorer, chosen, backbone or default_backbone, named)
    if model not in SUPERVISED:
        raise ValueError(
            f"no model {model!r} to compare; supervised: {', '.join(SUPERVISED)}; unsupervised: {', '.join(SCORERS)}, "
            "with -patch or -global. A backbone is named behind @, its layers behind a colon: linear@resnet18:layer3"
        )
    if model.startswith("cnn"):
        if at:
            raise ValueError(f"{name!r}: {model} is trained from nothing and takes no backbone")
        return Method(name, "supervised", model)
    if model == UNET:
        return Method(name, "supervised", model, backbone=backbone or None, layers=named)
    return Method(name, "supervised", model, "global", backbone or default_backbone, named)
