"""How well a classifier predicts: predictions and true classes in; every figure and every mistake out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
    """An image predicted wrong: as what, what it is, and the probability of what was predicted."""

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
    accuracy : share predicted right
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
                f"  {wrong.id}: predicted {wrong.predicted} ({wrong.probability:.2f}), is {wrong.actual}"
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
    >>> predictions = Predictions(["a", "b"], ["good", "bad"], np.array([[0.9, 0.1], [0.6, 0.4]]), [])
    >>> outcome = measure_predictions(predictions, ["good", "bad"])
    >>> outcome.accuracy, outcome.misclassified
    (0.5, [Misclassified(id='b', predicted='good', actual='bad', probability=0.6)])
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if len(actual) != len(predictions) or not len(predictions):
        raise ValueError(
            f"{len(actual)} true classes for {len(predictions)} predictions: give one for each, one at least"
        )
    classes = [*predictions.classes, *sorted({*actual} - {*predictions.classes})]
    truth = np.array([classes.index(name) for name in actual])
    predicted = predictions.probabilities.argmax(axis=1)
    labels = range(len(classes))
    # NaN where a class was never predicted, or never occurs.
    figures = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=np.nan)
    per_class = [
        ClassFigures(name, int(count), _known(precision), _known(recall), _known(f1) if count else None)
        for name, precision, recall, f1, count in zip(classes, *figures, strict=True)
    ]
    wrong = np.flatnonzero(truth != predicted)
    sure = predictions.probabilities.max(axis=1)
    return Outcome(
        accuracy=float((truth == predicted).mean()),
        balanced_accuracy=_mean([one.recall for one in per_class]) or 0.0,
        precision=_mean([one.precision for one in per_class]),
        recall=_mean([one.recall for one in per_class]),
        f1=_mean([one.f1 for one in per_class]),
        roc_auc=_roc_auc(truth, predictions.probabilities),
        per_class=per_class,
        classes=classes,
        confusion=confusion_matrix(truth, predicted, labels=labels),
        misclassified=[
            Misclassified(predictions.ids[i], classes[predicted[i]], actual[i], float(sure[i]))
            for i in wrong[np.argsort(-sure[wrong], kind="stable")].tolist()
        ],
    )


def _roc_auc(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    columns = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    occur = [column for column in columns if 0 < (truth == column).sum() < len(truth)]
    return _mean([float(roc_auc_score(truth == column, probabilities[:, column])) for column in occur])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
