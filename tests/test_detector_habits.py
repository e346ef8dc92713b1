"""What a Python user expects of a detector without having read about it."""

import datetime

import numpy as np
import pytest

from anomalib_lite import Detector
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.scoring import SubspaceScorer


@pytest.fixture(scope="module")
def parts():
    return [render_part(np.random.default_rng(i), 64)[0] for i in range(24)]


@pytest.fixture(scope="module")
def detector(parts):
    return Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:20])


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
