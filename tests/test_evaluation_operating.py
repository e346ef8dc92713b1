"""Operating points: counts that are true, none that another beats, and choices by what errors cost."""

import itertools

import numpy as np
import pytest

from anomalib_lite import Detector, operating_points
from anomalib_lite.evaluation.operating import OperatingPoints
from anomalib_lite.images.mvtec import open_mvtec


def scores(seed):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=40), 1), np.round(rng.normal(size=12) + 1.5, 1)


class TestPoints:
    @pytest.mark.parametrize("seed", range(5))
    def test_count_what_they_say(self, seed):
        good, bad = scores(seed)
        for point in OperatingPoints.of(good, bad):
            assert point.alarms == (good > point.threshold).sum()
            assert point.missed == (bad <= point.threshold).sum()
            assert point.alarm_interval[0] <= point.alarms / 40 <= point.alarm_interval[1]

    @pytest.mark.parametrize("seed", range(5))
    def test_are_the_ones_that_no_other_beats(self, seed):
        good, bad = scores(seed)
        points = list(OperatingPoints.of(good, bad))
        for first, second in itertools.pairwise(points):
            assert first.threshold < second.threshold
            assert first.missed < second.missed
            assert first.alarms > second.alarms
        everywhere = np.unique(np.concatenate([good, bad, good - 0.05, bad - 0.05]))
        best = {point.missed: point.alarms for point in points}
        for threshold in everywhere:
            missed, alarms = (bad <= threshold).sum(), (good > threshold).sum()
            assert min(a for m, a in best.items() if m <= missed) <= alarms

    def test_ties_between_good_and_bad(self):
        points = OperatingPoints.of([1.0, 2.0, 2.0], [2.0, 3.0])
        assert [(point.alarms, point.missed) for point in points] == [(2, 0), (0, 1)]

    def test_apart(self):
        (point,) = OperatingPoints.of([1.0, 2.0], [5.0])
        assert (point.threshold, point.alarms, point.missed) == (3.5, 0, 0)
        assert "0 of 2 good alarm (0.0% to 84.2%), 0 of 1 bad are missed (0.0% to 97.5%)" in point.to_text()

    def test_neighbours_among_floats(self):
        points = OperatingPoints.of([1.0], [np.nextafter(1.0, 2)])
        assert [(point.alarms, point.missed) for point in points] == [(0, 0)]


class TestChoices:
    def test_by_cost(self):
        points = OperatingPoints.of(*scores(0))
        dear = points.by_cost(missed=1e6, alarm=1, defect_rate=0.01)
        assert dear == points.none_missed()
        assert points.by_cost(missed=0.001, alarm=1, defect_rate=0.01) == list(points)[-1]

    def test_bad_input(self):
        points = OperatingPoints.of(*scores(0))
        for costs in ({"missed": -1, "alarm": 1, "defect_rate": 0.1}, {"missed": 1, "alarm": 1, "defect_rate": 0}):
            with pytest.raises(ValueError, match="costs are not negative, and the rate is a share"):
                points.by_cost(**costs)
        with pytest.raises(ValueError, match="0 good and 1 bad images"):
            OperatingPoints.of([], [1.0])
        with pytest.raises(ValueError, match="no finite number"):
            OperatingPoints.of([1.0], [np.nan])


def test_from_pictures_of_defects(synthetic_set):
    detector = Detector(image_size=128).fit(synthetic_set / "train" / "good", groups="each")
    points = operating_points(detector, synthetic_set / "test" / "color")
    assert (points.none_missed().n_good, points.none_missed().n_bad) == (16, 3)
    moved = detector.at_threshold(points.none_missed().threshold)
    assert moved.score(synthetic_set / "test" / "color").alarms.all()
    assert len(points.to_text().splitlines()) == len(points)
    with pytest.raises(ValueError, match="none of the images of defects can be read"):
        operating_points(detector, [b"no picture"])
    assert len(open_mvtec(synthetic_set).train) == 16
