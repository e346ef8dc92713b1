"""From verdicts to rows: means and spreads over seeds, what a left-out defect costs, the images judged wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomalib_lite.comparison.methods import Contestant
from anomalib_lite.comparison.runs import Verdict
from anomalib_lite.comparison.tables import ComparisonRow, FewLabelsRow, LeftOutRow
from anomalib_lite.evaluation import metrics
from anomalib_lite.supervised.labelled import LabelledImages
from anomalib_lite.supervised.outcome import Misclassified
from anomalib_lite.supervised.splitting import Split


def comparison_row(contestant: Contestant, found: Sequence[Verdict | str], images: LabelledImages) -> ComparisonRow:
    """One contestant over all seeds; a verdict that is a text is the error it failed with."""
    verdicts = [verdict for verdict in found if isinstance(verdict, Verdict)]
    errors = [verdict for verdict in found if isinstance(verdict, str)]
    areas = _spread_of([image_auroc(verdict, images) for verdict in verdicts])
    pixels = _spread_of([verdict.pixels.pixel_auroc for verdict in verdicts if verdict.pixels])
    accuracies = [_accuracies(verdict, images) for verdict in verdicts]
    return ComparisonRow(
        name=contestant.name,
        kind=contestant.kind,
        image_auroc_mean=areas[0],
        image_auroc_std=areas[1],
        accuracy_mean=_spread_of([plain for plain, _ in accuracies])[0],
        balanced_accuracy_mean=_spread_of([balanced for _, balanced in accuracies])[0],
        pixel_auroc_mean=pixels[0],
        pixel_auroc_std=pixels[1],
        aupro_mean=_spread_of([verdict.pixels.aupro for verdict in verdicts if verdict.pixels])[0],
        iou_mean=_spread_of([verdict.iou for verdict in verdicts])[0],
        train_seconds=_spread_of([verdict.train_seconds for verdict in verdicts])[0],
        ms_per_image=_spread_of([verdict.ms_per_image for verdict in verdicts])[0],
        seeds=len(verdicts),
        error=errors[0] if errors else None,
    )


def left_out_row(
    defect: str,
    contestant: Contestant,
    seen: Sequence[Verdict | str],
    unseen: Sequence[Verdict | str],
    images: LabelledImages,
) -> LeftOutRow:
    """A kind of defect as judged by those that learnt it and by those that never saw it labelled."""

    def figures(found: Sequence[Verdict | str]) -> tuple[tuple[float | None, float | None], float | None]:
        verdicts = [verdict for verdict in found if isinstance(verdict, Verdict)]
        areas = _spread_of([image_auroc(verdict, images, defect) for verdict in verdicts])
        recalls = _spread_of([_recall(verdict, images, defect) for verdict in verdicts])
        return areas, recalls[0]

    (seen_area, _), seen_recall = figures(seen)
    (unseen_area, deviation), unseen_recall = figures(unseen)
    return LeftOutRow(
        defect, contestant.name, contestant.kind, seen_area, unseen_area, deviation, seen_recall, unseen_recall
    )


def few_labels_row(
    contestant: Contestant, count: int, found: Sequence[Verdict | str], images: LabelledImages
) -> FewLabelsRow:
    """A contestant that learnt from so many labelled defects, over all seeds."""
    mean, deviation = _spread_of([image_auroc(verdict, images) for verdict in found if isinstance(verdict, Verdict)])
    return FewLabelsRow(contestant.name, contestant.kind, count, mean, deviation)


def image_auroc(verdict: Verdict, images: LabelledImages, defect: str | None = None) -> float | None:
    """Of defective against good images, or of one kind of defect against them."""
    kinds = _kinds(verdict, images)
    chosen = (kinds == images.good) | (kinds == defect) if defect else np.ones(len(kinds), bool)
    try:
        return metrics.auroc(kinds[chosen] != images.good, verdict.scores[chosen])
    except metrics.UndefinedMetricError:
        return None


def mistakes(verdict: Verdict, images: LabelledImages) -> list[Misclassified]:
    """Images judged wrong, the surest first; what they are is the name of their kind."""
    kinds = _kinds(verdict, images)
    sure = np.where(verdict.alarms, verdict.confidence, 1 - verdict.confidence)
    wrong = np.flatnonzero(verdict.alarms == (kinds == images.good))
    return [
        Misclassified(
            verdict.ids[i],
            "defective" if verdict.alarms[i] else str(images.good),
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


def _kinds(verdict: Verdict, images: LabelledImages) -> np.ndarray:
    position = images.positions
    return np.array([images.kinds[position[image_id]] for image_id in verdict.ids])


def _recall(verdict: Verdict, images: LabelledImages, defect: str) -> float | None:
    chosen = _kinds(verdict, images) == defect
    return float(verdict.alarms[chosen].mean()) if chosen.any() else None


def _accuracies(verdict: Verdict, images: LabelledImages) -> tuple[float, float]:
    """Share judged right, and the mean of the shares of good and of defective images."""
    defective = _kinds(verdict, images) != images.good
    right = verdict.alarms == defective
    return float(right.mean()), float(np.mean([right[part].mean() for part in (defective, ~defective) if part.any()]))


def _spread_of(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (0 of one value) of those that are defined."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
