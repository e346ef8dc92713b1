"""The threshold moves without a refit, says from what, and the detector it came from stays as it was."""

import datetime
import hashlib
import warnings

import numpy as np
import pytest
from told import but_for_the_time

from anomalib_lite import Detector
from anomalib_lite.fitted.history import Record
from anomalib_lite.fitted.suspicion import far_out_limit
from anomalib_lite.images.synthetic import render_part

SMALL = {"image_size": 64, "workers": 0}


def parts(first, count, light=1.0):
    rendered = (render_part(np.random.default_rng(i), 64)[0] for i in range(first, first + count))
    return [np.clip(light * pixels, 0, 255).astype(np.uint8) for pixels in rendered]


@pytest.fixture(scope="module")
def detector():
    return Detector(false_alarm_rate=0.1, **SMALL).fit(parts(0, 24), groups="each")


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestAtRate:
    def test_is_the_threshold_of_a_fit_at_that_rate(self, detector):
        other = Detector(false_alarm_rate=0.3, **SMALL).fit(parts(0, 24), groups="each")
        moved = detector.at_rate(0.3)
        assert moved.fitted_.calibration.threshold == other.fitted_.calibration.threshold
        assert moved.parameters() == other.parameters()
        assert moved.false_alarm_rate == moved.config()["false_alarm_rate"] == 0.3
        assert detector.false_alarm_rate == 0.1

    def test_shares_what_was_learnt(self, detector):
        moved = detector.at_rate(0.3)
        assert moved.fitted_.scorer is detector.fitted_.scorer
        assert moved.embedder is detector.embedder

    def test_two_thresholds_give_three_verdicts(self, detector):
        new = parts(100, 30)
        found = detector.at_rate(0.05, look_again=0.9).score(new)
        assert set(found.verdicts) >= {"good", "look again"}
        for verdict, score in zip(found.verdicts, found.scores, strict=True):
            expected = "alarm" if score > found.threshold else "look again" if score > found.look_again else "good"
            assert verdict == expected
        assert set(detector.score(new).verdicts) <= {"good", "alarm"}

    def test_before_a_fit_there_is_nothing_to_move(self):
        with pytest.raises(RuntimeError, match="not fitted yet"):
            Detector(**SMALL).at_rate(0.1)


class TestAttributes:
    @pytest.mark.parametrize("name", ["false_alarm_rate", "scorer", "variations", "workers", "some_new_name"])
    def test_cannot_be_set_since_nothing_would_follow(self, detector, name):
        with pytest.raises(AttributeError, match=f"a detector's {name} cannot be set.* Use at_rate, at_threshold or"):
            setattr(detector, name, 0.5)


class TestRecalibrate:
    def test_restores_the_rate_in_another_light(self, detector, quiet):
        """What the old threshold takes for odd is how good parts look now."""
        moved = detector.recalibrate(parts(600, 40, light=1.9), groups="each")
        assert (moved.fitted_.calibration.n, moved.fitted_.calibration.exact) == (40, True)
        assert moved.fitted_.calibration.false_alarm_rate == 0.1
        before, after = (d.score(parts(700, 60, light=1.9)).alarms.mean() for d in (detector, moved))
        assert before > 0.3
        assert after <= 0.2

    def test_replaces_or_extends(self, detector):
        fresh = parts(400, 10)
        replaced = detector.recalibrate(fresh, groups="each").fitted_.calibration
        extended = detector.recalibrate(fresh, groups="each", mode="extend").fitted_.calibration
        assert np.array_equal(replaced.scores, np.sort(detector.score(fresh).scores))
        assert (extended.n, extended.n_images, extended.exact) == (34, 34, False)
        assert set(replaced.scores) | set(detector.fitted_.calibration.scores) == set(extended.scores)

    def test_leaves_the_detector_and_what_it_knows_of_training_images_alone(self, detector):
        before = detector.fitted_.calibration.threshold
        moved = detector.recalibrate(parts(400, 10), groups="each")
        assert detector.fitted_.calibration.threshold == before
        assert moved.fitted_.train_scores == detector.fitted_.train_scores

    def test_goes_back_to_the_rate_after_a_threshold_set_by_hand(self, detector):
        moved = detector.at_threshold(1e-3).recalibrate(parts(400, 12), groups="each")
        assert moved.fitted_.calibration.fixed is None
        assert moved.fitted_.calibration.false_alarm_rate == 0.1

    def test_groups_count_once(self, detector):
        moved = detector.recalibrate(parts(400, 12), groups=np.repeat(np.arange(4), 3))
        assert (moved.fitted_.calibration.n, moved.fitted_.calibration.n_images) == (4, 12)
        with pytest.raises(ValueError, match="2 groups for 12 pictures"):
            detector.recalibrate(parts(400, 12), groups=[1, 2])

    def test_shots_of_one_part_are_found(self, detector):
        fresh = parts(400, 12)
        with pytest.warns(UserWarning, match="1 part seems to have been photographed 2 times; such pictures count as"):
            moved = detector.recalibrate([*fresh, fresh[3]])
        assert moved.fitted_.calibration.n == 12


class TestDoubts:
    def test_a_defect_among_the_good_ones_is_named(self, detector):
        defect = np.full((64, 64, 3), 255, dtype=np.uint8)
        with pytest.warns(
            UserWarning, match=r"1 of 16 images are unlike the others: image_0015\. If they are defective"
        ):
            detector.recalibrate([*parts(400, 15), defect], groups="each")

    def test_by_the_measure_of_diagnose(self):
        scores = np.append(np.linspace(1, 1.5, 20), 9.0)
        assert (scores > far_out_limit(scores)).sum() == 1

    def test_images_that_were_learnt_from_are_noticed(self, detector):
        with pytest.warns(UserWarning, match="24 of 24 images score below every good image that calibrated before"):
            detector.recalibrate(parts(0, 24), groups="each")

    def test_unreadable_ones_are_told_and_left_out(self, detector):
        with pytest.warns(UserWarning, match=r"1 images cannot be read: image_0005"):
            moved = detector.recalibrate([*parts(400, 5), b"no picture"], groups=list("abcdef"))
        assert moved.fitted_.calibration.n == 5

    def test_nothing_that_can_be_read(self, detector):
        cannot = pytest.warns(UserWarning, match="cannot be read")
        with pytest.raises(ValueError, match="no fresh good image can be read"), cannot:
            detector.recalibrate([b"no picture"])
        with pytest.raises(ValueError, match="mode='add'; 'replace' forgets"):
            detector.recalibrate(parts(400, 5), mode="add", groups="each")

    def test_the_root_of_a_data_set_is_refused(self, detector, synthetic_set):
        with pytest.raises(ValueError, match="train/good"):
            detector.recalibrate(synthetic_set)


class TestHistory:
    def test_says_when_from_what_and_at_what_rate(self, detector):
        moved = detector.recalibrate(parts(400, 10), groups="each").at_rate(0.2)
        fitted, replaced, by_hand = moved.fitted_.history
        assert [fitted.how, replaced.how, by_hand.how] == ["fit", "replace", "rate"]
        assert (fitted.n_images, replaced.n_images, by_hand.n_images) == (24, 10, 10)
        ids = "\n".join(f"image_{i:04d}" for i in range(10))
        assert replaced.ids == hashlib.sha256(ids.encode()).hexdigest()
        assert (replaced.false_alarm_rate, by_hand.false_alarm_rate) == (0.1, 0.2)
        assert by_hand.threshold == moved.fitted_.calibration.threshold
        age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(replaced.date)
        assert age < datetime.timedelta(minutes=5)

    def test_of_thresholds_tried_by_hand_the_last_counts(self, detector):
        moved = detector.at_rate(0.2).at_rate(0.3).at_threshold(1.0)
        assert [record.how for record in moved.fitted_.history] == ["fit", "threshold"]

    def test_survives_a_file(self, detector, tmp_path):
        moved = detector.recalibrate(parts(400, 12), groups=np.repeat(np.arange(6), 2)).at_rate(0.2, look_again=0.5)
        loaded = Detector.load(moved.save(tmp_path / "model.safetensors"))
        assert loaded.fitted_.history == moved.fitted_.history
        assert loaded.fitted_.calibration.settings() == moved.fitted_.calibration.settings()
        assert np.array_equal(loaded.fitted_.calibration.groups, moved.fitted_.calibration.groups)
        new = parts(500, 5)
        assert but_for_the_time(loaded.score(new)) == but_for_the_time(moved.score(new))
        assert loaded.false_alarm_rate == 0.2

    @pytest.mark.parametrize("values", [None, {}, {"date": "today"}, [1]])
    def test_of_a_stranger_is_checked(self, values):
        with pytest.raises(ValueError, match="a record of a calibration is malformed"):
            Record.read(values)


def test_a_stored_backbone_stays_in_the_file(tmp_path):
    """A line recalibrates in place; the next machine has no weights of its own."""
    detector = Detector(backbone="resnet18", weights="random", layers="layer1", image_size=64).fit(parts(0, 6))
    path = detector.save(tmp_path / "model.safetensors", include_backbone=True)
    Detector.load(path).recalibrate(parts(400, 5), groups="each").save(path)
    assert Detector.load(path).fitted_.calibration.n == 5
    small = Detector.load(path).save(tmp_path / "small.safetensors", include_backbone=False)
    assert small.stat().st_size < path.stat().st_size / 2
