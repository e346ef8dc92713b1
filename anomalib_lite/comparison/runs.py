"""Runs of a comparison: one method trained on one half of the images and tested on the other, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np

from anomalib_lite.comparison.methods import Method, Settings
from anomalib_lite.detector import Detector
from anomalib_lite.evaluation.pixel_metrics import PixelMetrics
from anomalib_lite.supervised.cached import CachedImages, CachedSource
from anomalib_lite.supervised.classifier import FROZEN, Classifier
from anomalib_lite.supervised.labelled import LabelledImages
from anomalib_lite.supervised.segmenter import Segmentation, Segmenter, measure_segmentation, pixel_metrics_of
from anomalib_lite.supervised.splitting import Split

MAPS = 12
"""Predicted maps that a run keeps, to be drawn."""


@dataclass(frozen=True)
class Run:
    """One method, trained and tested once on one split. Times count decoding and embedding as if nothing was cached.

    Attributes
    ----------
    ids : list of str, length n, the held-out images
    scores : float64 (n,), higher = more anomalous
    alarms : bool (n,), predicted defective: probability above one half, or p-value within the false-alarm rate
    confidence : float64 (n,), probability of being defective, or one minus the p-value
    train_seconds, ms_per_image : float
    pixels : PixelMetrics, iou : float, or None for methods that do not locate
    curves : loss and accuracy per epoch, empty for detectors
    maps : of a few images by id, the predicted probability per pixel in 255ths, uint8 (s, s); empty but for the U-Net
    promised_rate : the false-alarm rate that the alarms promise, a detector's with enough images; None promises nothing

    Raises ValueError if scores, alarms and confidence are not one finite value each per image.
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
    promised_rate: float | None = None

    def __post_init__(self) -> None:
        for name, kind in (("scores", "f"), ("alarms", "b"), ("confidence", "f")):
            values = getattr(self, name)
            if values.dtype.kind != kind or values.shape != (len(self.ids),) or not np.isfinite(values).all():
                raise ValueError(f"{name} of {len(self.ids)} images: need one finite value for each of them")


def run(
    method: Method,
    images: LabelledImages,
    parts: Split,
    cache: CachedImages,
    settings: Settings,
    *,
    random_state: int,
    checkpoint: Path | None = None,
) -> Run:
    """Train a method on the learning half, a detector on the good images of it, and test it on the other.

    Raises what the model's `fit` raises.
    """
    model = method.make(settings, random_state=random_state)
    test = CachedSource(cache, parts.test, grey=settings.grey)
    if isinstance(model, Detector):
        good = CachedSource(cache, parts.learning[~images.defective[parts.learning]], grey=settings.grey)
        return _run_detector(model, good, test, images)
    prepared = model.prepare(cache)
    if isinstance(model, Segmenter):
        model.fit(images, parts, checkpoint=checkpoint, cache=cache)
    else:
        model.fit(images, parts, target="defective", checkpoint=checkpoint, cache=cache)
    return _test_supervised(
        model,
        test,
        images,
        train_seconds=prepared * len(parts.learning) + model.history_.seconds,
        cached_seconds=prepared if method.model in FROZEN else 0.0,  # the others decode the test images anew
    )


def _run_detector(detector: Detector, good: CachedSource, test: CachedSource, images: LabelledImages) -> Run:
    embedding = test.cache.embeddings(detector.embedder, grey=test.grey).seconds_per_image
    start = time.perf_counter()
    detector.fit(good)
    fitted = time.perf_counter()
    scores = detector.score(test)
    seconds = time.perf_counter() - fitted
    pixels = None
    if scores.patch_scores is not None and any(images.mask_paths[i] is not None for i in test.positions):
        pixels = pixel_metrics_of(scores.ids, scores.anomaly_map, scores.image_sizes, images)
    return Run(
        ids=scores.ids,
        scores=scores.scores,
        alarms=scores.alarms,
        confidence=1 - scores.p_values,
        train_seconds=fitted - start + embedding * len(good),
        ms_per_image=1000 * (seconds / len(test) + embedding),
        pixels=pixels,
        promised_rate=scores.false_alarm_rate if scores.guarantee_met else None,
    )


def _test_supervised(
    model: Classifier | Segmenter,
    test: CachedSource,
    images: LabelledImages,
    *,
    train_seconds: float,
    cached_seconds: float,
) -> Run:
    start = time.perf_counter()
    predicted = model.predict(test)
    seconds = time.perf_counter() - start
    outcome = measure_segmentation(predicted, images) if isinstance(predicted, Segmentation) else None
    scores = predicted.scores if isinstance(predicted, Segmentation) else predicted.probabilities[:, 1]
    return Run(
        ids=predicted.ids,
        scores=scores,
        alarms=scores > 0.5,
        confidence=scores,
        train_seconds=train_seconds,
        ms_per_image=1000 * (seconds / len(test) + cached_seconds),
        pixels=outcome.pixels if outcome else None,
        iou=outcome.iou if outcome else None,
        curves=model.history_.curves,
        maps=_some_maps(predicted, images) if isinstance(predicted, Segmentation) else {},
    )


def _some_maps(predicted: Segmentation, images: LabelledImages) -> dict[str, np.ndarray]:
    """Predicted maps of a few images with known masks, every kind in turn."""
    by_kind: dict[str, list[int]] = {}
    for i, image_id in enumerate(predicted.ids):
        position = images.positions[image_id]
        if images.has_mask[position]:
            by_kind.setdefault(images.kinds[position], []).append(i)
    in_turn = [i for row in zip_longest(*by_kind.values()) for i in row if i is not None]
    return {predicted.ids[i]: np.round(255 * predicted.maps[i]).astype(np.uint8) for i in sorted(in_turn[:MAPS])}
