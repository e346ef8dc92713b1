"""Accuracy, precision, recall, F1, ROC AUC and the list of mistakes, against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from anomalib_lite.supervised.outcome import Predictions, measure_predictions

CLASSES = ["good", "dent", "rust"]


@pytest.fixture(scope="module")
def said():
    rng = np.random.default_rng(0)
    actual = rng.choice(CLASSES, 60, p=[0.6, 0.25, 0.15]).tolist()
    logits = rng.normal(size=(60, 3)) + 1.5 * np.array([[name == kind for kind in CLASSES] for name in actual])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions([f"{i}.png" for i in range(60)], CLASSES, probabilities, []), actual


def test_agrees_with_scikit_learn(said):
    predictions, actual = said
    outcome = measure_predictions(predictions, actual)
    assert outcome.accuracy == pytest.approx(reference.accuracy_score(actual, predictions.predicted))
    assert outcome.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(actual, predictions.predicted))
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        actual, predictions.predicted, labels=CLASSES, average="macro"
    )
    assert (outcome.precision, outcome.recall, outcome.f1) == pytest.approx((precision, recall, f1))
    table = reference.confusion_matrix(actual, predictions.predicted, labels=CLASSES)
    assert np.array_equal(outcome.confusion, table)
    one_to_rest = [
        reference.roc_auc_score(np.array(actual) == name, predictions.probabilities[:, i])
        for i, name in enumerate(CLASSES)
    ]
    assert outcome.roc_auc == pytest.approx(np.mean(one_to_rest))


def test_of_two_classes_the_area_is_of_the_second():
    predictions = Predictions(["a", "b", "c"], ["good", "bad"], np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), [])
    assert measure_predictions(predictions, ["good", "bad", "good"]).roc_auc == 1.0


def test_lists_every_mistake_the_surest_first(said):
    predictions, actual = said
    outcome = measure_predictions(predictions, actual)
    wrong = [i for i in range(60) if predictions.predicted[i] != actual[i]]
    assert sorted(one.id for one in outcome.misclassified) == sorted(f"{i}.png" for i in wrong)
    assert len(wrong) > 3
    sure = [one.probability for one in outcome.misclassified]
    assert sure == sorted(sure, reverse=True)
    text = outcome.to_text()
    assert all(one.id in text for one in outcome.misclassified)
    assert json.loads(outcome.to_json())["confusion"] == outcome.confusion.tolist()


def test_a_class_never_learnt_is_always_missed():
    predictions = Predictions(["a", "b"], ["good", "bad"], np.array([[0.9, 0.1], [0.2, 0.8]]), [])
    outcome = measure_predictions(predictions, ["good", "odd"])
    assert outcome.classes == ["good", "bad", "odd"]
    assert outcome.accuracy == 0.5
    assert outcome.per_class[2].recall == 0.0
    assert outcome.per_class[2].precision is None


def test_undefined_figures_are_none():
    predictions = Predictions(["a"], ["good", "bad"], np.array([[0.9, 0.1]]), [])
    outcome = measure_predictions(predictions, ["good"])
    assert outcome.roc_auc is None
    assert outcome.per_class[1].precision is None
    assert "n/a" in outcome.to_text()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 true classes for 1 predictions"):
        measure_predictions(Predictions(["a"], ["good", "bad"], np.array([[0.9, 0.1]]), []), ["good", "bad"])


def test_anomaly_scores_are_the_probability_of_not_being_good(said):
    predictions, _ = said
    assert predictions.anomaly_scores("good") == pytest.approx(1 - predictions.probabilities[:, 0])
    with pytest.raises(ValueError, match="good='fine' is none of the classes"):
        predictions.anomaly_scores("fine")
