"""From runs to rows: means and spreads over seeds, what a left-out defect costs, the images misclassified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomalib_lite.comparison.methods import Method
from anomalib_lite.comparison.runs import Run
from anomalib_lite.comparison.tables import ComparisonRow, FewLabelsRow, LeftOutRow
from anomalib_lite.evaluation import metrics
from anomalib_lite.supervised.labelled import LabelledImages
from anomalib_lite.supervised.outcome import Misclassified
from anomalib_lite.supervised.splitting import Split


def comparison_row(method: Method, results: Sequence[Run | str], images: LabelledImages) -> ComparisonRow:
    """One method over all seeds; a result that is a text is the error it failed with."""
    runs = _runs_of(results)
    areas = _spread_of([image_auroc(run, images) for run in runs])
    pixels = _spread_of([run.pixels.pixel_auroc for run in runs if run.pixels])
    accuracies = [_accuracies(run, images) for run in runs]
    recalls = _spread_of([_recall(run, images) for run in runs])
    false_alarms = [_false_alarms(run, images) for run in runs]
    promised = {run.promised_rate for run in runs}
    return ComparisonRow(
        name=method.name,
        kind=method.kind,
        image_auroc_mean=areas[0],
        image_auroc_std=areas[1],
        accuracy_mean=_spread_of([plain for plain, _ in accuracies])[0],
        balanced_accuracy_mean=_spread_of([balanced for _, balanced in accuracies])[0],
        pixel_auroc_mean=pixels[0],
        pixel_auroc_std=pixels[1],
        aupro_mean=_spread_of([run.pixels.aupro for run in runs if run.pixels])[0],
        iou_mean=_spread_of([run.iou for run in runs])[0],
        train_seconds=_spread_of([run.train_seconds for run in runs])[0],
        ms_per_image=_spread_of([run.ms_per_image for run in runs])[0],
        seeds=len(runs),
        error=_first_error(results),
        promised_rate=promised.pop() if len(promised) == 1 else None,
        recall_mean=recalls[0],
        recall_std=recalls[1],
        false_alarms=sum(count for count, _ in false_alarms) if runs else None,
        n_test_good=sum(n for _, n in false_alarms) if runs else None,
    )


def left_out_row(
    defect: str, method: Method, seen: Sequence[Run | str], unseen: Sequence[Run | str], images: LabelledImages
) -> LeftOutRow:
    """A kind of defect, by runs that learnt it and by runs that never saw it labelled."""

    def figures(results: Sequence[Run | str]) -> tuple[tuple[float | None, float | None], float | None]:
        areas = _spread_of([image_auroc(run, images, defect) for run in _runs_of(results)])
        recalls = _spread_of([_recall(run, images, defect) for run in _runs_of(results)])
        return areas, recalls[0]

    (seen_area, _), seen_recall = figures(seen)
    (unseen_area, deviation), unseen_recall = figures(unseen)
    return LeftOutRow(
        defect,
        method.name,
        method.kind,
        seen_area,
        unseen_area,
        deviation,
        seen_recall,
        unseen_recall,
        _first_error([*seen, *unseen]),
    )


def few_labels_row(method: Method, count: int, results: Sequence[Run | str], images: LabelledImages) -> FewLabelsRow:
    """A method that learnt from so many labelled defects, over all seeds."""
    mean, deviation = _spread_of([image_auroc(run, images) for run in _runs_of(results)])
    return FewLabelsRow(method.name, method.kind, count, mean, deviation, _first_error(results))


def image_auroc(run: Run, images: LabelledImages, defect: str | None = None) -> float | None:
    """Of defective against good images, or of one kind of defect against them."""
    kinds = _kinds(run, images)
    chosen = (kinds == images.good) | (kinds == defect) if defect else np.ones(len(kinds), bool)
    try:
        return metrics.auroc(kinds[chosen] != images.good, run.scores[chosen])
    except metrics.UndefinedMetricError:
        return None


def misclassified(run: Run, images: LabelledImages) -> list[Misclassified]:
    """Images predicted wrong, the surest first; what they are is the name of their kind."""
    kinds = _kinds(run, images)
    sure = np.where(run.alarms, run.confidence, 1 - run.confidence)
    wrong = np.flatnonzero(run.alarms == (kinds == images.good))
    return [
        Misclassified(
            run.ids[i],
            "defective" if run.alarms[i] else str(images.good),
            str(kinds[i]),
            float(sure[i]),
        )
        for i in wrong[np.argsort(-sure[wrong], kind="stable")].tolist()
    ]


def counts_of(images: LabelledImages, parts: Split) -> dict[str, int]:
    """Images to learn from and to test on, good and defective."""
    defective = images.defective
    return {
        f"{name}_{label}": int(mask[indices].sum())
        for name, indices in (("learn", parts.learning), ("test", parts.test))
        for label, mask in (("good", ~defective), ("defective", defective))
    }


def _runs_of(results: Sequence[Run | str]) -> list[Run]:
    return [result for result in results if isinstance(result, Run)]


def _first_error(results: Sequence[Run | str]) -> str | None:
    return next((result for result in results if isinstance(result, str)), None)


def _kinds(run: Run, images: LabelledImages) -> np.ndarray:
    position = images.positions
    return np.array([images.kinds[position[image_id]] for image_id in run.ids])


def _recall(run: Run, images: LabelledImages, defect: str | None = None) -> float | None:
    """Share of the defective images, or of one kind of defect, that alarm."""
    kinds = _kinds(run, images)
    chosen = kinds == defect if defect else kinds != images.good
    return float(run.alarms[chosen].mean()) if chosen.any() else None


def _false_alarms(run: Run, images: LabelledImages) -> tuple[int, int]:
    """How many of how many good images alarm."""
    good = _kinds(run, images) == images.good
    return int(run.alarms[good].sum()), int(good.sum())


def _accuracies(run: Run, images: LabelledImages) -> tuple[float, float]:
    """Share predicted right, and the mean of the shares of good and of defective images."""
    defective = _kinds(run, images) != images.good
    right = run.alarms == defective
    return float(right.mean()), float(np.mean([right[part].mean() for part in (defective, ~defective) if part.any()]))


def _spread_of(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (0 of one value) of those that are defined."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
