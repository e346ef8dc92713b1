import dataclasses

import numpy as np
import pytest

from anomalib_lite.fitted.calibration import Calibration, images_needed


def tied_scores(n, seed=0):
    return np.random.default_rng(seed).integers(0, 12, n).astype(float)


class TestPValues:
    def test_agree_with_the_definition_with_ties(self):
        known, new = tied_scores(40), np.arange(-1.0, 14.0, 0.5)
        expected = [(1 + np.sum(known >= s)) / 41 for s in new]
        assert Calibration(known, 0.05).p_values(new).tolist() == expected

    def test_infinite_scores_are_the_most_and_least_anomalous(self):
        assert Calibration([1.0, 2.0], 0.05).p_values([np.inf, -np.inf]).tolist() == [1 / 3, 1.0]

    @pytest.mark.parametrize(
        ("known", "new", "message"),
        [
            ([1.0, np.nan], [1.0], "calibration scores: nan at position 1"),
            ([1.0, 2.0], [1.0, np.nan], "scores has NaN at position 1"),
            ([1.0, 2.0], 1.0, "need a vector"),
        ],
    )
    def test_wrong_input_is_named(self, known, new, message):
        with pytest.raises(ValueError, match=message):
            Calibration(known, 0.05).p_values(new)


class TestAlarms:
    # 0.29 * 100 and 0.07 * 100 are not whole in floating point; 0.001 is not supported by 99 images.
    @pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.07, 0.1, 0.29, 0.5, 0.58, 0.999])
    @pytest.mark.parametrize("n", [1, 2, 19, 99])
    def test_alarm_is_score_above_threshold_is_p_at_most_rate(self, n, rate):
        calibration = Calibration(tied_scores(n), rate)
        scores = np.arange(-1.0, 14.0, 0.5)  # on and between the calibration scores
        alarms = calibration.alarms(scores)
        assert alarms.tolist() == (scores > calibration.threshold).tolist()
        if calibration.guarantee_met:
            assert alarms.tolist() == (calibration.p_values(scores) <= rate).tolist()
        assert alarms[-1]  # a score above all others always alarms

    @pytest.mark.parametrize("draw", ["continuous", "ties"])
    @pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (50, 0.1), (5, 0.01)])
    def test_false_alarms_keep_the_guaranteed_rate(self, n, rate, draw):
        rng = np.random.default_rng(2)
        rates, bounds = [], []
        for _ in range(3000):
            scores = rng.normal(size=n + 20)
            scores = np.round(scores, 1) if draw == "ties" else scores
            calibration = Calibration(scores[:n], rate)
            rates.append(calibration.alarms(scores[n:]).mean())
            bounds.append(calibration.guaranteed_rate)
        noise = 3 * np.std(rates) / np.sqrt(len(rates))
        assert np.mean(rates) <= bounds[0] + noise
        if draw == "continuous":  # then the bound is reached
            assert np.mean(rates) >= bounds[0] - noise

    def test_does_not_depend_on_the_order_of_the_images(self):
        scores = tied_scores(30)
        assert Calibration(scores, 0.1).threshold == Calibration(scores[::-1], 0.1).threshold


class TestGuarantee:
    @pytest.mark.parametrize(("n", "met"), [(98, False), (99, True), (100, True)])
    def test_needs_as_many_images_as_it_says(self, n, met):
        calibration = Calibration(np.arange(float(n)), 0.01)
        assert calibration.guarantee_met is met
        assert (calibration.smallest_rate, calibration.n) == (1 / (n + 1), n)
        assert images_needed(0.01) == 99

    @pytest.mark.parametrize("rate", [0.3, 0.1, 0.05, 0.049, 1 / 3, 0.001, 0.9])
    def test_images_needed_is_the_smallest_number(self, rate):
        n = images_needed(rate)
        assert 1 / (n + 1) <= rate
        assert n == 0 or 1 / n > rate

    def test_too_few_images_fall_back_to_the_largest_score(self):
        calibration = Calibration([3.0, 1.0, 2.0], 0.01)
        assert calibration.threshold == 3.0
        assert calibration.guaranteed_rate == 0.25
        assert calibration.alarms([3.0, 3.1]).tolist() == [False, True]

    def test_explain_says_what_holds_and_what_is_missing(self):
        met = Calibration(np.arange(1.0, 101.0), 0.05).explain()
        assert "scores above 96 (target 5 %)" in met
        assert "on average about 4.95 %" in met
        assert "100 calibration images" in met
        missed = Calibration(np.arange(1.0, 31.0), 0.01).explain()
        assert "1 % takes at least 99 good images to guarantee, and there are 30" in missed
        assert "there are 30: 69 more for 1 %." in missed
        assert "on average about 3.23 %" in missed

    def test_explain_says_how_many_more_a_rate_that_comes_sooner_takes(self):
        assert "there are 8: 11 more for 5 %, 91 more for 1 %." in Calibration(np.arange(8.0), 0.01).explain()
        assert "there are 8: 11 more for 5 %." in Calibration(np.arange(8.0), 0.05).explain()

    @pytest.mark.parametrize(("n", "rate"), [(299, 0.01), (149, 0.02), (59, 0.05)])
    def test_tolerance_needs_the_known_numbers_of_images(self, n, rate):
        # Wilks: the largest of n scores bounds the rate with 95 % confidence from these n on.
        assert Calibration(np.arange(float(n)), 1e-6).tolerance_rate(0.95) <= rate
        assert Calibration(np.arange(float(n - 1)), 1e-6).tolerance_rate(0.95) > rate

    def test_tolerance_holds_with_its_confidence(self):
        rng = np.random.default_rng(4)
        held = 0
        for _ in range(2000):
            calibration = Calibration(rng.random(60), 0.1)
            held += 1 - calibration.threshold <= calibration.tolerance_rate(0.9)  # uniform: P(score > t) = 1 - t
        assert held / 2000 == pytest.approx(0.9, abs=0.025)


class TestCalibrationState:
    def test_survives_its_state(self):
        calibration = Calibration(tied_scores(25), 0.07)
        again = Calibration(calibration.scores, **calibration.settings())
        assert (again.threshold, again.false_alarm_rate) == (calibration.threshold, 0.07)
        assert again.scores.tolist() == sorted(tied_scores(25))
        assert again.at_rate(0.5).threshold == Calibration(tied_scores(25), 0.5).threshold

    def test_cannot_be_changed_from_outside(self):
        scores = np.array([3.0, 1.0, 2.0])
        calibration = Calibration(scores, 0.3)
        scores[:] = 99.0
        assert calibration.threshold == 3.0
        with pytest.raises(ValueError, match="read-only"):
            calibration.scores[0] = 5.0
        with pytest.raises(dataclasses.FrozenInstanceError):
            calibration.false_alarm_rate = 0.5

    @pytest.mark.parametrize(
        ("scores", "rate", "message"),
        [
            ([], 0.1, "no calibration score: at least one good image"),
            ([1.0, np.inf], 0.1, "inf at position 1"),
            ([1.0], 5, r"false_alarm_rate is 5.0: need a share in \(0, 1\)"),
            ([1.0], 0, "false_alarm_rate is 0.0"),
        ],
    )
    def test_wrong_input_is_named(self, scores, rate, message):
        with pytest.raises(ValueError, match=message):
            Calibration(scores, rate)


class TestGroups:
    """Pictures of one part weigh one together, and n counts parts."""

    def test_of_one_picture_each_change_nothing(self):
        scores, new = tied_scores(40), np.arange(-1.0, 14.0, 0.5)
        plain, grouped = Calibration(scores, 0.1), Calibration(scores, 0.1, groups=np.arange(40)[::-1])
        assert grouped.p_values(new).tolist() == plain.p_values(new).tolist()
        assert grouped.threshold == plain.threshold

    def test_one_picture_stands_for_each(self):
        scores, groups = np.random.default_rng(0).normal(size=30), np.random.default_rng(1).integers(0, 7, 30)
        calibration = Calibration(scores, 0.2, groups=groups)
        assert (calibration.n, calibration.n_images) == (7, 30)
        p = calibration.p_values(np.sort(scores) + 1e-9)
        steps = np.sort(scores)[np.flatnonzero(np.diff(np.append(1.0, p)))]  # where a p-value falls
        assert sorted(groups[np.flatnonzero(np.isin(scores, steps))].tolist()) == list(range(7))
        assert set(p) <= {i / 8 for i in range(1, 9)}
        new = np.linspace(-3, 3, 50)
        assert calibration.alarms(new).tolist() == (calibration.p_values(new) <= 0.2).tolist()

    def test_too_few_let_no_picture_alarm(self):
        calibration = Calibration(np.arange(30.0), 0.01, groups=np.repeat(np.arange(6), 5))
        assert (calibration.threshold, calibration.guaranteed_rate) == (29.0, 1 / 7)

    def test_keep_the_promise_for_a_new_part_where_counting_pictures_breaks_it(self):
        rng = np.random.default_rng(5)
        alarms = {True: [], False: []}
        for _ in range(3000):
            sizes = rng.integers(1, 7, size=12)
            groups = np.repeat(np.arange(12), sizes)
            scores = rng.normal(size=12)[groups] + 0.2 * rng.normal(size=len(groups))
            new = rng.normal() + 0.2 * rng.normal()
            for grouped, found in alarms.items():
                found.append(Calibration(scores, 1 / 13, groups=groups if grouped else None).alarms([new])[0])
        assert np.mean(alarms[True]) == pytest.approx(1 / 13, abs=3 * np.sqrt(1 / 13 / 3000))  # and no less
        assert np.mean(alarms[False]) > 1 / 13 + 3 * np.sqrt(1 / 13 / 3000)

    def test_are_counted_in_what_is_promised(self):
        calibration = Calibration(np.arange(100.0), 0.05, groups=np.repeat(np.arange(10), 10))
        assert not calibration.guarantee_met
        assert "takes at least 19 groups to guarantee, and there are 10" in calibration.explain()
        assert "10 groups of 100 calibration images" in calibration.explain()
        assert calibration.tolerance_rate() == Calibration(np.arange(10.0), 0.05).tolerance_rate()

    @pytest.mark.parametrize("groups", [[0, 1], [0.5, 1.0, 2.0], [[0], [1], [2]]])
    def test_that_do_not_match_are_an_error(self, groups):
        with pytest.raises(ValueError, match="3 calibration scores and groups"):
            Calibration([1.0, 2.0, 3.0], 0.5, groups=groups)


class TestThresholds:
    def test_set_by_hand_alarm_above_it_and_say_what_rate_that_is(self):
        calibration = Calibration(np.arange(1.0, 100.0), 0.01).at_threshold(90.5)
        assert calibration.threshold == 90.5
        assert calibration.false_alarm_rate == calibration.guaranteed_rate == 0.1  # nine lie above it, and the new one
        assert calibration.alarms([90.5, 90.6]).tolist() == [False, True]
        assert "which was set by hand; of good images about 10 % do" in calibration.explain()
        assert calibration.at_rate(0.01).threshold == 99.0
        assert Calibration(np.arange(9.0), 0.1).at_threshold(-5.0).false_alarm_rate == 1.0

    def test_a_second_one_marks_what_to_look_at_again(self):
        calibration = Calibration(np.arange(1.0, 100.0), 0.01).at_rate(0.02, look_again=0.1)
        assert (calibration.threshold, calibration.look_again) == (98.0, 90.0)
        assert "Above 90 it is to be looked at again; about 10 % of good ones are" in calibration.explain()
        assert calibration.at_threshold(95.0, look_again=80.0).look_again == 80.0
        assert calibration.at_rate(0.5).look_again is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.at_rate(0.1, look_again=0.05), "look_again=0.05 is to be larger than the alarm's rate, 0.1"),
            (lambda c: c.at_threshold(5.0, look_again=6.0), "look_again=6 is above the alarm threshold 5"),
            (lambda c: c.at_threshold(float("nan")), "a threshold of nan"),
            (lambda c: c.at_rate(0.0), "false_alarm_rate is 0.0"),
            (lambda c: c.at_rate(1.0), "false_alarm_rate is 1.0"),
        ],
    )
    def test_impossible_ones(self, change, message):
        with pytest.raises(ValueError, match=message):
            change(Calibration(np.arange(20.0), 0.1))

    def test_survive_their_settings(self):
        for calibration in (
            Calibration(tied_scores(25), 0.07, groups=np.arange(25) // 3, exact=True).at_rate(0.2, look_again=0.3),
            Calibration(tied_scores(25), 0.07, withheld="eight parts").at_threshold(3.3),
        ):
            again = Calibration(calibration.scores, groups=calibration.groups, **calibration.settings())
            assert again.settings() == calibration.settings()
            assert again.explain() == calibration.explain()


class TestExplain:
    def test_exact_where_images_were_held_out(self):
        assert "on average at most 4.95 %" in Calibration(np.arange(100.0), 0.05, exact=True).explain()

    def test_says_whether_it_held_in_either_direction(self):
        calibration = Calibration(np.arange(199.0), 0.1)
        assert "On new good images: as many alarms as promised" in calibration.explain(np.arange(1, 101) / 100)
        assert "On new good images: more alarms than promised: the threshold does not hold" in calibration.explain(
            np.full(50, 0.01)
        )
        assert "On new good images: fewer alarms than promised: recall is given away" in calibration.explain(
            np.full(200, 0.9)
        )
        assert calibration.explain([]) == calibration.explain()

    def test_withheld(self):
        text = Calibration(
            np.arange(99.0), 0.05, withheld="8 parts seem to have been photographed 5 times each"
        ).explain()
        assert "no false-alarm rate is promised: 8 parts" in text
        assert "(groups=)" in text
