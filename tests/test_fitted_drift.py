"""Drift, picture by picture: quiet for years while nothing changes, loud within a hundred pictures of another light."""

import json

import numpy as np
import pytest

from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.drift import DriftMonitor, tied_share, watch


def good_p_values(rng, n, m, shift=0.0):
    """p-values of m good images whose scores are `shift` standard deviations off, calibrated on n really drawn ones."""
    return Calibration(rng.normal(size=n), 0.05).p_values(rng.normal(size=m) + shift)


class TestQuiet:
    @pytest.mark.parametrize("n", [20, 200])
    def test_while_nothing_changes(self, n):
        alarms = sum(watch(good_p_values(np.random.default_rng(seed), n, 1500), n).alarm for seed in range(40))
        assert alarms == 0  # 1 % are allowed

    @pytest.mark.parametrize("n", [40, 200])
    def test_of_a_batch_with_ten_per_cent_defects_in_twenty_runs_of_twenty(self, n):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            p = good_p_values(rng, n, 1000)
            p[rng.random(1000) < 0.1] = 1 / (n + 1)
            assert not watch(p, n).alarm

    def test_of_ties(self):
        """A scorer with few values gives every second good image the largest p-value."""
        rng = np.random.default_rng(0)
        scores = np.maximum(rng.normal(size=200), 0)
        p = Calibration(scores, 0.05).p_values(np.maximum(rng.normal(size=1000), 0))
        assert watch(p, 200).direction == "down"
        assert not watch(p, 200, tied=tied_share(scores)).alarm


class TestAlarm:
    @pytest.mark.parametrize("n", [60, 200])
    def test_within_a_hundred_pictures_of_another_light(self, n):
        """Such as bottle's at 80 %: most good pictures score above nearly all that calibrate."""
        for seed in range(5):
            monitor = watch(good_p_values(np.random.default_rng(seed), n, 100, shift=2.5), n)
            assert monitor.alarm
            assert monitor.direction == "up"

    def test_after_years_of_good_pictures_too(self):
        rng = np.random.default_rng(3)
        monitor = watch(good_p_values(rng, 200, 20_000), 200)
        assert not monitor.alarm
        for p in good_p_values(rng, 200, 100, shift=2.5):
            monitor.update(p)
        assert monitor.alarm
        assert 20_000 < monitor.alarmed_at <= 20_100

    def test_of_falling_scores(self):
        """A lens cap makes all pictures alike, and defects invisible."""
        monitor = watch(good_p_values(np.random.default_rng(1), 100, 100, shift=-3), 100)
        assert monitor.direction == "down"
        assert "lower than good images do" in monitor.explain()

    def test_stays_until_it_is_reset(self):
        monitor = watch(np.full(100, 0.01), 99)
        when = monitor.alarmed_at
        for p in np.linspace(0.3, 1, 50):
            assert monitor.update(p)
        assert monitor.alarmed_at == when
        monitor.reset()
        assert not monitor.alarm
        assert (monitor.n_seen, monitor.direction) == (0, None)

    def test_says_what_to_do(self):
        text = watch(np.full(100, 0.01), 99).explain()
        assert "more than 15 % of defects explain" in text
        assert "`recalibrate` with fresh good images" in text
        assert "15 %" not in watch(np.full(100, 0.01), 99, tolerated_defects=0).explain()
        assert "No drift in 0 pictures" in DriftMonitor(100).explain()

    @pytest.mark.parametrize("tolerated", [0.0, 0.15])
    def test_many_defects_are_no_reason_for_another_fit(self, tolerated):
        """An operator whose parts are bad is sent to the pictures, and learns no defect into the detector."""
        text = watch(np.full(100, 0.01), 99, tolerated_defects=tolerated).explain()
        assert "fit again" not in text
        assert text.index("If they are") < text.index("`recalibrate` with fresh good images")

    def test_too_few_calibration_images_tell_nothing_and_say_so(self):
        monitor = watch(np.full(100, 0.5), 1)
        assert not monitor.alarm
        assert "too few to tell it from chance" in monitor.explain()


class TestState:
    def test_goes_on_as_if_never_stopped(self):
        p = good_p_values(np.random.default_rng(2), 80, 60, shift=1.0)
        whole = watch(p, 80)
        text = json.dumps(watch(p[:25], 80).state())
        assert len(text) < 2048
        resumed = DriftMonitor.from_state(json.loads(text))
        for value in p[25:]:
            resumed.update(value)
        assert resumed.state() == whole.state()
        assert resumed.wealth == whole.wealth

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 9}, "version is 9"),
            ({"n_seen": -1}, "n_seen is -1"),
            ({"n_calibration": 0.5}, "n_calibration is 0.5"),
            ({"log_stakes": [0.0]}, "log_stakes: need a list"),
            ({"log_stakes": float("nan")}, "log_stakes: need a list"),
            ({"direction": "up"}, "need both, or None for both"),
            ({"alarmed_at": 70, "direction": "up"}, "it cannot be later"),
            ({"more": 1}, "missing or unknown: more"),
            ({"confidence": 1.0}, "confidence is 1.0"),
        ],
    )
    def test_of_a_stranger_is_checked(self, change, message):
        state = {**watch(np.full(10, 0.5), 80).state(), **change}
        with pytest.raises(ValueError, match=message):
            DriftMonitor.from_state(state)
        with pytest.raises(ValueError, match="need a dict"):
            DriftMonitor.from_state([])

    def test_stakes_that_are_no_numbers(self):
        state = watch(np.full(10, 0.5), 80).state()
        state["log_stakes"][0] = float("nan")
        with pytest.raises(ValueError, match="nan is no finite number"):
            DriftMonitor.from_state(state)


class TestBadInput:
    @pytest.mark.parametrize("p", [0.0, 1.01, -0.5, float("nan"), "much", None])
    def test_what_is_no_p_value_is_named_and_not_counted(self, p):
        monitor = DriftMonitor(50)
        with pytest.raises(ValueError, match=r"need a share in \(0, 1\], not a score"):
            monitor.update(p)
        assert monitor.n_seen == 0

    def test_in_a_batch_its_position_is_named(self):
        with pytest.raises(ValueError, match=r"at position 2"):
            watch([0.5, 0.2, 7.0], 50)
        with pytest.raises(ValueError, match="need a vector"):
            watch([[0.5]], 50)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"n_calibration": 0}, "n_calibration is 0"),
            ({"n_calibration": True}, "n_calibration is True"),
            ({"n_calibration": 9, "tolerated_defects": 1.0}, "nothing to watch"),
            ({"n_calibration": 9, "tolerated_defects": 2}, "tolerated_defects is 2"),
        ],
    )
    def test_impossible_parameters(self, parameters, message):
        with pytest.raises(ValueError, match=message):
            DriftMonitor(**parameters)
