"""Who takes part in a comparison: a name in; a model trained and asked about the held-out images, and its verdict, out.

A name is MODEL, MODEL@BACKBONE or MODEL@BACKBONE:LAYER+LAYER, MODEL being a classifier, ``unet``, or a scorer of the
detector with or without its level: ``linear@resnet18:layer2+layer3``, ``knn``, ``knn-global``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anomalib_lite.detector import Detector
from anomalib_lite.embedding.builtin import BUILTIN
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.pixel_metrics import PixelMetrics
from anomalib_lite.scoring import SCORERS
from anomalib_lite.supervised.augmentation import Augmentation
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.classifier import CLASSIFIERS, FROZEN, Classifier
from anomalib_lite.supervised.grey import seen_by
from anomalib_lite.supervised.labelled import LabelledImages
from anomalib_lite.supervised.segmenter import Segmentation, Segmenter, measure_segmentation, pixel_metrics_of
from anomalib_lite.supervised.splitting import Split

UNET = "unet"
Kind = Literal["supervised", "unsupervised"]

SUPERVISED = (*CLASSIFIERS, UNET)
UNSUPERVISED = ("knn", "kmeans", "dbscan", "knn-global", "kmeans-global", "dbscan-global", "subspace-global")
"""Compared unless others are named."""
_SHOWN = 12  # predicted masks that a verdict keeps, to be drawn


@dataclass(frozen=True)
class Settings:
    """What all contestants share; see `compare`."""

    weights: Mapping[str, Weights] = field(default_factory=dict)
    epochs: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    grey: bool = False
    horizontal_flip: bool = False
    false_alarm_rate: float = 0.01
    device: str = "auto"
    dtype: str = "auto"
    progress: bool = False


@dataclass(frozen=True)
class Verdict:
    """What one contestant, trained once, said of the held-out images.

    Attributes
    ----------
    ids : list of str, length n
    scores : float64 (n,), higher = more anomalous
    alarms : bool (n,), judged defective: probability above one half, or p-value within the false-alarm rate
    confidence : float64 (n,), probability of being defective, or one minus the p-value
    train_seconds, ms_per_image : decoding and embedding included
    pixels : PixelMetrics, iou : float, or None for those that do not locate
    curves : loss and accuracy per epoch, empty for detectors
    maps : of a few images by id, the predicted probability per pixel in 255ths, uint8 (s, s); empty but for the U-Net
    """

    ids: list[str]
    scores: np.ndarray
    alarms: np.ndarray
    confidence: np.ndarray
    train_seconds: float
    ms_per_image: float
    pixels: PixelMetrics | None = None
    iou: float | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A model by name, with the backbone that carries it, if any."""

    name: str
    kind: Kind
    model: str
    level: Literal["patch", "global"] = "patch"
    backbone: str | None = None
    layers: str | None = None

    @property
    def is_frozen(self) -> bool:
        """Trains in a second: a head on vectors."""
        return self.model in FROZEN

    def run(
        self,
        images: LabelledImages,
        parts: Split,
        cache: CachedImages,
        settings: Settings,
        *,
        random_state: int,
        checkpoint: Path | None = None,
    ) -> Verdict:
        """Train on the learning half and judge the other.

        Raises what the model's `fit` raises.
        """
        test = images.some(parts.test)
        if self.kind == "unsupervised":
            return self._detect(images, parts, test, settings, random_state)
        model = self.make(settings, random_state=random_state)
        assert not isinstance(model, Detector)
        maps = {}
        prepared = model.prepare(cache) * len(parts.learning)
        if isinstance(model, Segmenter):
            model.fit(images, parts, checkpoint=checkpoint, cache=cache)
            start = time.perf_counter()
            found = model.predict(test)
            seconds = time.perf_counter() - start
            outcome = measure_segmentation(found, images)
            ids, scores, pixels, iou = found.ids, found.scores, outcome.pixels, outcome.iou
            maps = _some_of(found, images)
        else:
            model.fit(images, parts, target="defective", checkpoint=checkpoint, cache=cache)
            start = time.perf_counter()
            said = model.predict(test)
            seconds = time.perf_counter() - start
            ids, scores, pixels, iou = said.ids, said.probabilities[:, 1], None, None
        return Verdict(
            ids=ids,
            scores=scores,
            alarms=scores > 0.5,
            confidence=scores,
            train_seconds=prepared + model.history_.seconds,
            ms_per_image=1000 * seconds / len(ids),
            pixels=pixels,
            iou=iou,
            curves=model.history_.curves,
            maps=maps,
        )

    def make(self, settings: Settings, *, random_state: int = 0) -> Detector | Classifier | Segmenter:
        """The model, unfitted.

        Raises
        ------
        ValueError
            If a backbone, a layer or a setting does not exist.
        WeightsError
            If the backbone's weights cannot be had.
        """
        shared: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "random_state": random_state}
        network: dict[str, Any] = {"layers": self.layers, "weights": settings.weights.get(self.backbone or "")}
        if self.kind == "unsupervised":
            return Detector(
                backbone=self.backbone or BUILTIN,
                level=self.level,
                scorer=self.model,  # type: ignore[arg-type]
                false_alarm_rate=settings.false_alarm_rate,
                **network,
                **shared,
            )
        shared |= {"grey": settings.grey, "progress": settings.progress}
        asked = {"epochs": settings.epochs, "batch_size": settings.batch_size}
        shared |= {name: value for name, value in asked.items() if value is not None}
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
        """Changes with any setting of the model, its backbone's weights among them; not with the seed.

        Raises what `make` raises.
        """
        model = self.make(settings)
        training = {} if isinstance(model, Detector) else asdict(model.options)
        return hashlib.sha256(json.dumps([model.config(), training]).encode()).hexdigest()[:12]

    def _detect(
        self, images: LabelledImages, parts: Split, test: ImageSource, settings: Settings, random_state: int
    ) -> Verdict:
        """Learn from the good images of the learning half alone."""
        detector = self.make(settings, random_state=random_state)
        assert isinstance(detector, Detector)
        good = parts.learning[~images.defective[parts.learning]]
        start = time.perf_counter()
        detector.fit(seen_by(images.some(good), grey=settings.grey))
        fitted = time.perf_counter()
        scores = detector.score(seen_by(test, grey=settings.grey))
        seconds = time.perf_counter() - fitted
        has_masks = any(images.mask_paths[i] is not None for i in parts.test.tolist())
        pixels = None
        if self.level == "patch" and has_masks:
            pixels = pixel_metrics_of(scores.ids, scores.anomaly_map, scores.image_sizes, images)
        return Verdict(
            ids=scores.ids,
            scores=scores.scores,
            alarms=scores.alarms,
            confidence=1 - scores.p_values,
            train_seconds=fitted - start,
            ms_per_image=1000 * seconds / len(scores),
            pixels=pixels,
        )


def read_contestant(name: str, default_backbone: str = BUILTIN) -> Contestant:
    """Make out a name.

    Raises
    ------
    ValueError
        If there is no such model, or a CNN is given a backbone; the text lists the models.

    Examples
    --------
    >>> read_contestant("linear@resnet18:layer2+layer3").layers
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
        return Contestant(name, "unsupervised", scorer, chosen, backbone or default_backbone, named)
    if model not in SUPERVISED:
        raise ValueError(
            f"no model {model!r} to compare; supervised: {', '.join(SUPERVISED)}; unsupervised: {', '.join(SCORERS)}, "
            "with -patch or -global. A backbone is named behind @, its layers behind a colon: linear@resnet18:layer3"
        )
    if model.startswith("cnn"):
        if at:
            raise ValueError(f"{name!r}: {model} is trained from nothing and takes no backbone")
        return Contestant(name, "supervised", model)
    if model == UNET:
        return Contestant(name, "supervised", model, backbone=backbone or None, layers=named)
    return Contestant(name, "supervised", model, "global", backbone or default_backbone, named)


def _some_of(found: Segmentation, images: LabelledImages) -> dict[str, np.ndarray]:
    """Predicted maps of a few images with known masks, every kind in turn."""
    position = {image_id: i for i, image_id in enumerate(images.ids)}
    by_kind: dict[str, list[int]] = {}
    for i, image_id in enumerate(found.ids):
        if images.has_mask[position[image_id]]:
            by_kind.setdefault(images.kinds[position[image_id]], []).append(i)
    in_turn = [i for row in zip_longest(*by_kind.values()) for i in row if i is not None]
    return {found.ids[i]: np.round(255 * found.maps[i]).astype(np.uint8) for i in sorted(in_turn[:_SHOWN])}
