"""What a Python user expects of a detector without having read about it."""

import datetime
import inspect
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from anomalib_lite import Detector
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.scoring import SubspaceScorer


@pytest.fixture(scope="module")
def parts():
    return [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]


@pytest.fixture(scope="module")
def detector(parts):
    return Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:20])


class TestScikitLearn:
    def test_is_cloned_with_all_it_was_given(self):
        roi = np.ones((8, 8), bool)
        given = {"image_size": 64, "roi": roi, "scorer": SubspaceScorer(), "k": 3}
        detector = Detector(**given)
        other = clone(detector)
        assert other.get_params().keys() == inspect.signature(Detector).parameters.keys()
        assert detector.get_params()["roi"] is roi
        np.testing.assert_array_equal(other.get_params()["roi"], roi)
        assert other.scorer is not detector.scorer
        assert other.get_params()["k"] == 3

    def test_set_params_forgets_what_was_learnt_by_others(self, parts):
        detector = Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:20])
        assert detector.set_params() is detector
        assert detector.n_train_ == 20
        assert detector.set_params(k=3) is detector
        assert (detector.get_params()["k"], detector.get_params()["image_size"]) == (3, 64)
        with pytest.raises(RuntimeError, match="not fitted yet"):
            detector.score(parts[20:])
        with pytest.raises(ValueError, match="no parameter 'bank'; it has backbone, layers"):
            detector.set_params(bank=3)

    def test_decides_by_the_sign(self, detector, parts):
        images = [*parts[20:], 255 - parts[20]]
        scores = detector.score(images)
        np.testing.assert_allclose(detector.decision_function(images), scores.threshold - scores.scores)
        np.testing.assert_array_equal(detector.predict(images) == -1, scores.alarms)
        assert detector.predict(images)[-1] == -1
        assert set(detector.predict(images)) == {-1, 1}
        with pytest.raises(UnreadableImageError):
            detector.predict([parts[20], b""])

    def test_scores_of_training_images_in_their_order(self, detector, parts):
        found = detector.decision_scores_
        assert found.shape == (20,)
        assert dict(enumerate(found.tolist())) == detector.fitted_.train_scores
        few = Detector(image_size=64, calibration_images=5).fit(parts[:20])
        assert np.isfinite(few.decision_scores_).sum() == 5

    def test_stands_at_the_end_of_a_pipeline_on_arrays(self, detector, parts):
        images = np.stack(parts)
        line = Pipeline([("mirror", FunctionTransformer(lambda x: x[:, :, ::-1])), ("detector", clone(detector))])
        assert line.fit(images[:20], np.ones(20)).predict(images[20:]).shape == (4,)
        expected = clone(detector).fit(images[:20, :, ::-1]).decision_function(images[20:, :, ::-1])
        np.testing.assert_array_equal(line.decision_function(images[20:]), expected)
        line.set_params(detector__k=1)
        assert line.get_params()["detector__k"] == 1
        check_is_fitted(detector)
        with pytest.raises(NotFittedError):
            check_is_fitted(Detector())

    def test_labels_of_several_kinds_are_refused(self, parts):
        with pytest.raises(ValueError, match="y has several labels, and a detector learns from good images alone"):
            Detector(image_size=64).fit(parts, [1] * 20 + [-1] * 4)

    def test_is_chosen_by_a_search(self, parts):
        images = np.stack(parts)

        def share_that_passes(detector, images, y=None):
            return (detector.predict(images) == 1).mean()

        search = GridSearchCV(Detector(image_size=64), {"k": [1, 2]}, scoring=share_that_passes, cv=2, refit=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a rate that twelve images cannot promise
            search.fit(images)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()


class TestInWords:
    def test_says_what_was_chosen_and_learnt(self, detector):
        told = repr(detector)
        threshold = detector.fitted_.calibration.threshold
        assert told.startswith("<Detector(image_size=64, false_alarm_rate=0.1), fitted on 20 images: threshold ")
        assert told.endswith(f"{threshold:.4g}, false-alarm rate 0.1>")
        assert repr(detector.at_rate(0.001)).endswith("false-alarm rate 0.001, which is not promised>")

    def test_is_short_whatever_was_given(self):
        assert repr(Detector()) == "<Detector(), not fitted>"
        assert repr(Detector(scorer=SubspaceScorer())) == "<Detector(scorer='SubspaceScorer'), not fitted>"

    def test_explains_when_an_image_alarms(self, detector):
        assert detector.explain() == detector.fitted_.calibration.explain()
        with pytest.raises(RuntimeError, match="not fitted yet"):
            Detector().explain()


def test_scores_say_by_which_model_and_when(detector, parts):
    before = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    scores = detector.score(parts[20:])
    assert scores.model == detector.digest
    assert before <= datetime.datetime.fromisoformat(scores.time) <= datetime.datetime.now(datetime.timezone.utc)
    assert detector.at_rate(0.2).score(parts[20:]).model != scores.model
