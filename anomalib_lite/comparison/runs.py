"""What contestants say of the held-out half: a model is trained on the other and asked, and the clock is read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np

from anomalib_lite.comparison.methods import Contestant, Settings
from anomalib_lite.detector import Detector
from anomalib_lite.evaluation.pixel_metrics import PixelMetrics
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.classifier import Classifier
from anomalib_lite.supervised.grey import seen_by
from anomalib_lite.supervised.labelled import LabelledImages
from anomalib_lite.supervised.segmenter import Segmentation, Segmenter, measure_segmentation, pixel_metrics_of
from anomalib_lite.supervised.splitting import Split

_SHOWN = 12  # predicted masks that are kept, to be drawn


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


def verdict_of(
    contestant: Contestant,
    images: LabelledImages,
    parts: Split,
    cache: CachedImages,
    settings: Settings,
    *,
    random_state: int,
    checkpoint: Path | None = None,
) -> Verdict:
    """Train a contestant on the learning half and ask it about the other.

    Raises what the model's `fit` raises.
    """
    model = contestant.make(settings, random_state=random_state)
    test = images.some(parts.test)
    if isinstance(model, Detector):
        good = images.some(parts.learning[~images.defective[parts.learning]])
        return _detected(model, seen_by(good, grey=settings.grey), seen_by(test, grey=settings.grey), images)
    prepared = model.prepare(cache) * len(parts.learning)
    if isinstance(model, Segmenter):
        model.fit(images, parts, checkpoint=checkpoint, cache=cache)
    else:
        model.fit(images, parts, target="defective", checkpoint=checkpoint, cache=cache)
    return _judged(model, test, images, prepared)


def _detected(detector: Detector, good: ImageSource, test: ImageSource, images: LabelledImages) -> Verdict:
    start = time.perf_counter()
    detector.fit(good)
    fitted = time.perf_counter()
    scores = detector.score(test)
    seconds = time.perf_counter() - fitted
    position = images.positions
    pixels = None
    if detector.embedder.level == "patch" and any(
        images.mask_paths[position[image_id]] is not None for image_id in scores.ids
    ):
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


def _judged(model: Classifier | Segmenter, test: ImageSource, images: LabelledImages, prepared: float) -> Verdict:
    start = time.perf_counter()
    found = model.predict(test)
    seconds = time.perf_counter() - start
    outcome = measure_segmentation(found, images) if isinstance(found, Segmentation) else None
    scores = found.scores if isinstance(found, Segmentation) else found.probabilities[:, 1]
    return Verdict(
        ids=found.ids,
        scores=scores,
        alarms=scores > 0.5,
        confidence=scores,
        train_seconds=prepared + model.history_.seconds,
        ms_per_image=1000 * seconds / len(found),
        pixels=outcome.pixels if outcome else None,
        iou=outcome.iou if outcome else None,
        curves=model.history_.curves,
        maps=_some_of(found, images) if isinstance(found, Segmentation) else {},
    )


def _some_of(found: Segmentation, images: LabelledImages) -> dict[str, np.ndarray]:
    """Predicted maps of a few images with known masks, every kind in turn."""
    position = images.positions
    by_kind: dict[str, list[int]] = {}
    for i, image_id in enumerate(found.ids):
        if images.has_mask[position[image_id]]:
            by_kind.setdefault(images.kinds[position[image_id]], []).append(i)
    in_turn = [i for row in zip_longest(*by_kind.values()) for i in row if i is not None]
    return {found.ids[i]: np.round(255 * found.maps[i]).astype(np.uint8) for i in sorted(in_turn[:_SHOWN])}
