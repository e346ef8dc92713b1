"""Accuracy, precision, recall, F1, ROC AUC and the list of mistakes, against counting by hand."""

import json

import numpy as np
import pytest

from anomalib_lite.supervised.outcome import Predictions, measure_predictions

CLASSES = ["good", "dent", "rust"]


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    actual = rng.choice(CLASSES, 60, p=[0.6, 0.25, 0.15]).tolist()
    logits = rng.normal(size=(60, 3)) + 1.5 * np.array([[name == kind for kind in CLASSES] for name in actual])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions([f"{i}.png" for i in range(60)], CLASSES, probabilities, []), actual


def test_counts_as_one_would_by_hand(example):
    predictions, actual = example
    outcome = measure_predictions(predictions, actual)
    pairs = list(zip(actual, predictions.predicted, strict=True))
    assert outcome.confusion.tolist() == [[pairs.count((true, named)) for named in CLASSES] for true in CLASSES]
    assert outcome.accuracy == pytest.approx(sum(true == named for true, named in pairs) / 60)
    areas = []
    for i, one in enumerate(outcome.per_class):
        hits = pairs.count((one.name, one.name))
        named, true = predictions.predicted.count(one.name), actual.count(one.name)
        assert (one.name, one.count) == (CLASSES[i], true)
        assert (one.precision, one.recall, one.f1) == pytest.approx(
            (hits / named, hits / true, 2 * hits / (named + true))
        )
        inside = np.array([name == one.name for name in actual])
        p = predictions.probabilities[:, i]
        areas.append((p[inside][:, None] > p[~inside]).mean())
    assert outcome.roc_auc == pytest.approx(np.mean(areas))
    for figure in ("precision", "recall", "f1"):
        mean = np.mean([getattr(one, figure) for one in outcome.per_class])
        assert getattr(outcome, figure) == pytest.approx(mean)
    assert outcome.balanced_accuracy == outcome.recall


def test_of_two_classes_the_area_is_of_the_second():
    predictions = Predictions(["a", "b", "c"], ["good", "bad"], np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), [])
    assert measure_predictions(predictions, ["good", "bad", "good"]).roc_auc == 1.0


def test_lists_every_mistake_the_surest_first(example):
    predictions, actual = example
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
    never = measure_predictions(Predictions(["a"], ["good", "bad"], np.array([[0.1, 0.9]]), []), ["good"])
    assert vars(never.per_class[1]) == {"name": "bad", "count": 0, "precision": 0.0, "recall": None, "f1": None}
    assert vars(never.per_class[0]) == {"name": "good", "count": 1, "precision": None, "recall": 0.0, "f1": 0.0}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 true classes for 1 predictions"):
        measure_predictions(Predictions(["a"], ["good", "bad"], np.array([[0.9, 0.1]]), []), ["good", "bad"])


def test_anomaly_scores_are_the_probability_of_not_being_good(example):
    predictions, _ = example
    assert predictions.anomaly_scores("good") == pytest.approx(1 - predictions.probabilities[:, 0])
    with pytest.raises(ValueError, match="good='fine' is none of the classes"):
        predictions.anomaly_scores("fine")
