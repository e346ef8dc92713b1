"""What a classifier said, and how right it was: predictions and true classes in; every figure and every mistake out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anomalib_lite.evaluation import metrics
from anomalib_lite.images.loading import UnreadableImage


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of new images, in the order given; unreadable ones are listed apart.

    Attributes
    ----------
    ids : list of str, length n
    classes : list of str, length k
    probabilities : float64 (n, k), rows sum to 1
    unreadable : list of UnreadableImage
    """

    ids: list[str]
    classes: list[str]
    probabilities: np.ndarray
    unreadable: list[UnreadableImage]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def predicted(self) -> list[str]:
        """The likeliest class of every image."""
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    def anomaly_scores(self, good: str) -> np.ndarray:
        """Probability (n,) of not being good; higher = more anomalous.

        Raises
        ------
        ValueError
            If there is no such class.
        """
        if good not in self.classes:
            raise ValueError(f"good={good!r} is none of the classes {', '.join(self.classes)}")
        others = [i for i, name in enumerate(self.classes) if name != good]
        return self.probabilities[:, others].sum(axis=1)


@dataclass(frozen=True)
class Misclassified:
    """An image judged wrong: what it was called, what it is, and the probability of what it was called."""

    id: str
    predicted: str
    actual: str
    probability: float


@dataclass(frozen=True)
class ClassFigures:
    """How well one class is told from all others; None where nothing was predicted, or nothing is, of that class."""

    name: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Outcome:
    """How a classifier did on images whose classes are known.

    Attributes
    ----------
    accuracy : share judged right
    balanced_accuracy : mean recall of the classes that occur
    precision, recall, f1 : means over classes where they are defined
    roc_auc : of two classes, the second against the first; of more, mean of each against the rest. None if undefined.
    per_class : list of ClassFigures
    classes : list of str
    confusion : int (k, k), rows actual, columns predicted
    misclassified : list of Misclassified, the surest mistakes first
    """

    accuracy: float
    balanced_accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None
    per_class: list[ClassFigures]
    classes: list[str]
    confusion: np.ndarray
    misclassified: list[Misclassified]

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return {**asdict(self), "confusion": self.confusion.tolist()}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict())

    def to_text(self) -> str:
        """The figures and the mistakes, to read."""
        lines = [
            f"accuracy {self.accuracy:.3f}, balanced {self.balanced_accuracy:.3f}, ROC AUC {_number(self.roc_auc)}",
            f"mean precision {_number(self.precision)}, recall {_number(self.recall)}, F1 {_number(self.f1)}",
            *(
                f"  {one.name:<20} {one.count:4d} images: precision {_number(one.precision)}, recall "
                f"{_number(one.recall)}, F1 {_number(one.f1)}"
                for one in self.per_class
            ),
            f"{len(self.misclassified)} misclassified" + (":" if self.misclassified else ""),
            *(
                f"  {wrong.id}: called {wrong.predicted} ({wrong.probability:.2f}), is {wrong.actual}"
                for wrong in self.misclassified
            ),
        ]
        return "\n".join(lines)


def measure_predictions(predictions: Predictions, actual: Sequence[str]) -> Outcome:
    """Compare predictions with the true classes.

    Parameters
    ----------
    predictions : Predictions of n images
    actual : (n,) class names; a class the classifier does not know counts as always missed.

    Raises
    ------
    ValueError
        If the lengths differ or there is nothing to measure.

    Examples
    --------
    >>> said = Predictions(["a", "b"], ["good", "bad"], np.array([[0.9, 0.1], [0.6, 0.4]]), [])
    >>> outcome = measure_predictions(said, ["good", "bad"])
    >>> outcome.accuracy, outcome.misclassified
    (0.5, [Misclassified(id='b', predicted='good', actual='bad', probability=0.6)])
    """
    if len(actual) != len(predictions) or not len(predictions):
        raise ValueError(
            f"{len(actual)} true classes for {len(predictions)} predictions: give one for each, one at least"
        )
    classes = [*predictions.classes, *sorted({*actual} - {*predictions.classes})]
    place = {name: i for i, name in enumerate(classes)}
    truth = np.array([place[name] for name in actual])
    said = predictions.probabilities.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (truth, said), 1)
    per_class = [_figures(name, confusion, i) for i, name in enumerate(classes)]
    wrong = np.flatnonzero(truth != said)
    sure = predictions.probabilities.max(axis=1)
    return Outcome(
        accuracy=float((truth == said).mean()),
        balanced_accuracy=_mean([one.recall for one in per_class]) or 0.0,
        precision=_mean([one.precision for one in per_class]),
        recall=_mean([one.recall for one in per_class]),
        f1=_mean([one.f1 for one in per_class]),
        roc_auc=_roc_auc(truth, predictions.probabilities),
        per_class=per_class,
        classes=classes,
        confusion=confusion,
        misclassified=[
            Misclassified(predictions.ids[i], classes[said[i]], actual[i], float(sure[i]))
            for i in wrong[np.argsort(-sure[wrong], kind="stable")].tolist()
        ],
    )


def _figures(name: str, confusion: np.ndarray, i: int) -> ClassFigures:
    hits, actual, called = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
    return ClassFigures(
        name=name,
        count=actual,
        precision=hits / called if called else None,
        recall=hits / actual if actual else None,
        f1=2 * hits / (actual + called) if actual else None,
    )


def _roc_auc(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    columns = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = []
    for column in columns:
        try:
            areas.append(metrics.auroc(truth == column, probabilities[:, column]))
        except metrics.UndefinedMetricError:
            continue
    return _mean(areas)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
