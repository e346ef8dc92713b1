"""How well a detector does on a data set in MVTec layout: fit on train/good, score test/, every metric.

Nothing of the test set takes part in the fit or in the threshold.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.detecting.scoring import SCORING
from anomalib_lite.detector import Detector
from anomalib_lite.evaluation import metrics
from anomalib_lite.evaluation.pixel_metrics import PixelCurves, PixelMetrics
from anomalib_lite.evaluation.result import AtRate, Evaluation
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.coverage import binomial_band, direction_of
from anomalib_lite.fitted.groups import Groups
from anomalib_lite.images.mvtec import MVTecDataset, open_mvtec
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.machine.memory import peak_rss_mb
from anomalib_lite.machine.progress import over, work
from anomalib_lite.results import Scores
from anomalib_lite.scoring.named import can_be_stored

MEASURING = "measuring"  # a stage, see `machine.progress`


def evaluate(
    dataset: str | os.PathLike[str] | MVTecDataset,
    *,
    rates: Sequence[float] = (0.01, 0.05),
    train: Any = None,
    groups: Groups | None = None,
    **parameters: Any,
) -> Evaluation:
    """Fit on train/good of a data set and measure on its test/.

    Parameters
    ----------
    dataset : folder in MVTec AD layout, or its URL in an object store or archive, see `open_mvtec`
    rates : false-alarm rates at which thresholds are measured, besides the detector's own.
    train : images to fit on instead of train/good, optional.
    groups : training images that belong together, see `Detector.fit`.
    parameters : those of `Detector`.

    Returns
    -------
    Evaluation
        Metrics that cannot be computed are None, and `reasons` says why.

    Raises
    ------
    FileNotFoundError
        If the folder is not in MVTec layout.
    ValueError
        If there are no test images, or too few good ones to fit on.

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import make_metal_nut
    >>> folder = make_metal_nut(tempfile.mkdtemp(), n_train=10, n_good=4, n_defect=1, size=64)
    >>> found = evaluate(folder, rates=(0.2,), image_size=64)
    >>> found.n_train, found.n_test, found.image_auroc > 0.5
    (10, 8, True)
    """
    data = dataset if isinstance(dataset, MVTecDataset) else open_mvtec(dataset)
    if len(data.test) == 0:
        raise ValueError(f"{data.root} has no test images to evaluate on; put them into test/good and test/<kind>")
    detector = Detector(**parameters)
    with work(detector.progress, SCORING, MEASURING):
        start = time.perf_counter()
        detector.fit(data.train if train is None else train, groups=groups)
        fit_seconds = time.perf_counter() - start
        start = time.perf_counter()
        scores = detector.score(data.test)
        seconds_per_image = (time.perf_counter() - start) / len(data.test)
        return measure(
            detector, scores, data, rates=rates, fit_seconds=fit_seconds, seconds_per_image=seconds_per_image
        )


def measure(
    detector: Detector,
    scores: Scores,
    data: MVTecDataset,
    *,
    rates: Sequence[float] = (0.01, 0.05),
    fit_seconds: float | None = None,
    seconds_per_image: float | None = None,
) -> Evaluation:
    """Measure scores of the test images of `data` against their labels and masks."""
    position = {image_id: i for i, image_id in enumerate(data.test.ids)}
    index = np.array([position[image_id] for image_id in scores.ids], dtype=np.int64)
    labels = data.labels[index]
    kinds = [data.kinds[i] for i in index]
    image = metrics.image_metrics(labels, scores.scores, kinds)
    pixel, n_masks, mask_reasons = _pixel_metrics(scores, data, index)
    reasons = [reason for reason in (image.reason, pixel.reason, *mask_reasons) if reason]
    calibration = detector.fitted_.calibration
    # What alarms whatever its score, at every threshold: what cannot be registered by the fixture.
    forced = scores.alarms & ~calibration.alarms(scores.scores)
    own = _at_rate(calibration, labels, scores.scores, forced)
    others = [
        _at_rate(calibration.at_rate(rate), labels, scores.scores, forced)
        for rate in rates
        if rate != calibration.false_alarm_rate
    ]
    return Evaluation(
        image_auroc=image.image_auroc,
        image_auroc_ci=image.image_auroc_ci,
        misordered_pairs=image.misordered_pairs,
        image_ap=image.image_ap,
        f1_max=image.f1_max,
        fpr_at_full_recall=image.fpr_at_full_recall,
        pixel_auroc=pixel.pixel_auroc,
        pixel_ap=pixel.pixel_ap,
        aupro=pixel.aupro,
        n_train=detector.n_train_,
        n_test=len(scores),
        n_test_good=int((~labels).sum()),
        n_masks=n_masks,
        n_unreadable=len(detector.unreadable_) + len(scores.unreadable),
        fit_seconds=fit_seconds,
        seconds_per_image=seconds_per_image,
        peak_rss_mb=peak_rss_mb(),
        model_mb=_model_mb(detector),
        threshold=own.threshold,
        false_alarm_rate_target=own.false_alarm_rate_target,
        false_alarm_rate_observed=own.false_alarm_rate_observed,
        recall_at_threshold=own.recall_at_threshold,
        guarantee_met=own.guarantee_met,
        guarantee=calibration.explain(),
        at_rates=sorted([own, *others], key=lambda at: at.false_alarm_rate_target),
        per_defect=image.per_defect,
        reasons=reasons,
        unreadable=[*detector.unreadable_, *scores.unreadable],
        pairing_problems=data.pairing_problems,
        config=detector.config(),
    )


def _pixel_metrics(scores: Scores, data: MVTecDataset, index: np.ndarray) -> tuple[PixelMetrics, int, list[str]]:
    """Pixel metrics over good images and defective ones with a mask; the number of masks; what was left out."""
    if scores.patch_scores is None:
        none = PixelMetrics(None, None, None, 0, 0, "level='global' has no anomaly maps")
        return none, 0, []
    curves = PixelCurves()
    n_masks = 0
    problems = []
    for i, test_index in over(MEASURING, enumerate(index.tolist()), len(index)):
        if not data.has_mask[test_index]:
            continue
        try:
            mask = data.read_mask(test_index, scores.image_sizes[i])
        except (ValueError, UnreadableImageError) as error:
            problems.append(f"mask left out: {error}")
            continue
        curves.update(scores.anomaly_map(i), mask)
        n_masks += bool(data.labels[test_index])
    without = int((data.labels[index] & ~data.has_mask[index]).sum())
    if without:
        problems.append(f"{without} defective images have no mask; pixel metrics are over the {n_masks} that have one")
    return curves.result(), n_masks, problems


def _at_rate(calibration: Calibration, labels: np.ndarray, scores: np.ndarray, forced: np.ndarray) -> AtRate:
    alarms = calibration.alarms(scores) | forced
    false_alarms, n_good = int(alarms[~labels].sum()), int((~labels).sum())
    hits, n_defective = int(alarms[labels].sum()), int(labels.sum())
    observed = interval = coverage = None
    if n_good:
        observed = false_alarms / n_good
        interval = metrics.binomial_interval(false_alarms, n_good)
        coverage = direction_of(false_alarms, binomial_band(calibration.false_alarm_rate, n_good))
    return AtRate(
        false_alarm_rate_target=calibration.false_alarm_rate,
        threshold=calibration.threshold,
        guarantee_met=calibration.guarantee_met,
        false_alarm_rate_observed=observed,
        false_alarm_rate_interval=interval,
        false_alarm_rate_within_band=None if coverage is None else coverage == "within",
        recall_at_threshold=hits / n_defective if n_defective else None,
        recall_interval=metrics.binomial_interval(hits, n_defective) if n_defective else None,
        coverage=coverage,
    )


def _model_mb(detector: Detector) -> float | None:
    """Size of the saved model in MB (10⁶ bytes), without the backbone; None for a scorer that cannot be saved."""
    if not can_be_stored(detector.scorer):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return detector.save(Path(folder) / "model.safetensors").stat().st_size / 1e6
