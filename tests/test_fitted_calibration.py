import dataclasses
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest

from anomalib_lite.fitted.calibration import (
    Calibration,
    CrossFit,
    conformal_p_values,
    drift,
    images_needed,
)


def out_of_sample_scores(make_scorer, X, groups, n_folds=5, random_state=0):
    return CrossFit(make_scorer, n_folds, random_state).fit(X, groups).score_excluding(X, groups)


def tied_scores(n, seed=0):
    return np.random.default_rng(seed).integers(0, 12, n).astype(float)


class TestPValues:
    def test_agree_with_the_definition_with_ties(self):
        known, new = tied_scores(40), np.arange(-1.0, 14.0, 0.5)
        expected = [(1 + np.sum(known >= s)) / 41 for s in new]
        assert conformal_p_values(known, new).tolist() == expected

    def test_infinite_scores_are_the_most_and_least_anomalous(self):
        assert conformal_p_values([1.0, 2.0], [np.inf, -np.inf]).tolist() == [1 / 3, 1.0]

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
            conformal_p_values(known, new)


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
        assert "on average at most 4.95 %" in met
        assert "100 calibration images" in met
        missed = Calibration(np.arange(1.0, 31.0), 0.01).explain()
        assert "1 % takes at least 99 good images to guarantee, and there are 30" in missed
        assert "on average at most 3.23 %" in missed

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


class Recorder:
    """A scorer that counts its rows, and remembers which images it learnt from."""

    fits: ClassVar[Counter] = Counter()

    def fit(self, X, groups):
        self.seen_ = frozenset(groups.tolist())
        self.fits[self.seen_] += 1
        return self

    def score(self, X):
        # X holds the image index: a scorer that has learnt from it gives itself away.
        assert not self.seen_ & set(X[:, 0].astype(int).tolist())
        return X[:, 1] + 0.5


@pytest.fixture
def fits(monkeypatch):
    counter = Counter()
    monkeypatch.setattr(Recorder, "fits", counter)
    return counter


def rows_of(sizes):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.random.default_rng(0).permutation(groups)
    return np.column_stack([groups, np.arange(groups.size)]).astype(float), groups


class TestOutOfSampleScores:
    def test_no_row_is_scored_by_a_scorer_that_knows_its_image(self, fits):
        X, groups = rows_of([4] * 23)
        scores = out_of_sample_scores(Recorder, X, groups)
        assert scores.tolist() == (np.arange(groups.size) + 0.5).tolist()  # every row once, in its place
        assert sorted(len(seen) for seen in fits) == [18, 18, 18, 19, 19]

    def test_balances_rows_when_images_differ_in_size(self, fits):
        X, groups = rows_of([12, 3, 3, 3, 3])
        out_of_sample_scores(Recorder, X, groups, n_folds=2)
        assert set(fits) == {frozenset({0}), frozenset({1, 2, 3, 4})}

    def test_leaves_one_image_out_when_there_are_few(self, fits):
        out_of_sample_scores(Recorder, *rows_of([5, 5, 5]), n_folds=10)
        assert set(fits) == {frozenset({0, 1}), frozenset({0, 2}), frozenset({1, 2})}

    def test_folds_follow_the_seed(self, fits):
        X, groups = rows_of([2] * 12)
        for seed in (0, 0, 1):
            out_of_sample_scores(Recorder, X, groups, n_folds=3, random_state=seed)
        assert sorted(fits.values()) == [1, 1, 1, 2, 2, 2]

    @pytest.mark.parametrize(
        ("sizes", "n_folds", "message"),
        [([5], 5, "1 image given: two images are needed"), ([1, 1], 1, "n_folds is 1: at least 2")],
    )
    def test_too_little_to_leave_out_is_an_error(self, sizes, n_folds, message):
        with pytest.raises(ValueError, match=message):
            out_of_sample_scores(Recorder, *rows_of(sizes), n_folds=n_folds)

    def test_wrong_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"groups \(2,\) and X \(3, 2\)"):
            out_of_sample_scores(Recorder, np.ones((3, 2)), [0, 1])

        class OneScore(Recorder):
            def score(self, X):
                return np.zeros(1)

        with pytest.raises(ValueError, match=r"scorer returned shape \(1,\) for 2 rows"):
            out_of_sample_scores(OneScore, *rows_of([2, 2]))


class TestDrift:
    @pytest.mark.parametrize(("n", "m"), [(50, 400), (200, 60)])
    def test_keeps_quiet_on_exchangeable_images(self, n, m):
        # With m > n the p-values hang together by their calibration set: a one-sample test fails here.
        rng = np.random.default_rng(6)
        alarms = 0
        for _ in range(400):
            calibration = Calibration(rng.normal(size=n), 0.05)
            alarms += drift(calibration.p_values(rng.normal(size=m)), n).p_value <= 0.05
        assert alarms / 400 <= 0.08

    def test_sees_scores_rise_but_not_fall(self):
        rng = np.random.default_rng(8)
        calibration = Calibration(rng.normal(size=200), 0.05)
        risen = drift(calibration.p_values(rng.normal(size=100) + 0.8), 200)
        assert risen.p_value < 1e-4
        assert risen.statistic > 0.2
        assert drift(calibration.p_values(rng.normal(size=100) - 0.8), 200).p_value > 0.5

    @pytest.mark.parametrize(
        ("p_values", "n", "message"),
        [
            ([], 10, "0 p-values and 10 calibration images"),
            ([0.5], 0, "1 p-values and 0 calibration images"),
            ([0.5, 3.0], 10, "from 0.5 to 3.0: need shares"),
            ([np.nan], 10, "p_values: nan at position 0"),
        ],
    )
    def test_wrong_input_is_named(self, p_values, n, message):
        with pytest.raises(ValueError, match=message):
            drift(p_values, n)
