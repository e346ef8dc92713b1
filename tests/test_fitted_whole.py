"""Whole images beside their patches: pieces too few, and the unit both are told in."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from anomalib_lite import Detector
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.fitted.roles import Roles
from anomalib_lite.fitted.whole import Whole, WholeVectors, brought_together
from anomalib_lite.scoring.subspace import SubspaceScorer

SMALL = {"image_size": 64, "level": "both", "false_alarm_rate": 0.1}


def tray(rng, pieces=6):
    """Round pieces, loose in a tray."""
    picture = np.full((64, 64), 60.0)
    rows, columns = np.indices(picture.shape)
    places = []
    while len(places) < pieces:
        place = rng.uniform(9, 55, 2)
        if all(np.hypot(*(place - other)) > 13 for other in places):
            places.append(place)
            picture[np.hypot(rows - place[0], columns - place[1]) < 6] = 180
    picture = picture + rng.normal(0, 2, picture.shape)
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def trays():
    rng = np.random.default_rng(0)
    return [tray(rng) for _ in range(100)]


@pytest.fixture(scope="module")
def wrong():
    rng = np.random.default_rng(1)
    return [tray(rng, 4) for _ in range(30)]


@pytest.fixture(scope="module")
def detector(trays):
    return Detector(**SMALL).fit(trays, groups="each")


class TestLoosePieces:
    def test_pieces_that_are_missing_are_found_as_a_whole_where_patches_miss_some(self, detector, trays, wrong):
        both = detector.score(wrong)
        assert both.alarms.mean() > 0.8
        assert sum(both.as_a_whole(i) for i in range(len(both))) > 0.8 * both.alarms.sum()
        patches = Detector(**{**SMALL, "level": "patch"}).fit(trays, groups="each").score(wrong)
        assert patches.alarms.mean() < both.alarms.mean() - 0.2
        assert not any(patches.as_a_whole(i) for i in range(len(patches)))

    def test_good_ones_alarm_as_rarely_as_promised(self, detector):
        rng = np.random.default_rng(2)
        alarms = detector.score([tray(rng) for _ in range(100)]).alarms.sum()
        assert alarms <= 20  # at 10 %, of a threshold from 100 images: more come once in hundreds

    def test_the_larger_of_both_scores_is_the_score(self, detector, trays, wrong):
        scores = detector.score(trays[:5] + wrong)
        patches = Detector(**{**SMALL, "level": "patch"}).fit(trays, groups="each").score(trays[:5] + wrong)
        assert np.array_equal(scores.patch_scores, patches.patch_scores)
        assert np.array_equal(scores.scores, np.maximum(patches.scores, scores.whole_scores))
        assert [entry["whole_score"] for entry in scores.to_dict()["images"]] == scores.whole_scores.tolist()

    def test_split_and_recalibrated(self, trays, wrong):
        detector = Detector(**SMALL, calibration="split").fit(trays, groups="each")
        assert detector.score(wrong).alarms.mean() > 0.6
        rng = np.random.default_rng(4)
        again = detector.recalibrate([tray(rng) for _ in range(30)], groups="each")
        assert again.score(wrong).alarms.mean() > 0.6

    def test_of_varied_copies_the_worst_calibrates(self, trays):
        from anomalib_lite import Variations

        detector = Detector(**SMALL, variations=Variations(brightness=0.3, draws=2)).fit(trays[:20], groups="each")
        assert len(detector.fitted_.train.scores) == 20

    def test_three_images_are_the_least(self, trays):
        with pytest.raises(ValueError, match="3 good images are the least"):
            Detector(**SMALL).fit(trays[:2])


class TestUnit:
    def test_medians_and_high_quantiles_come_together(self):
        rng = np.random.default_rng(0)
        scorer = SubspaceScorer().fit(rng.normal(size=(50, 4)))
        whole = dict(enumerate(rng.uniform(5, 9, 101).tolist()))
        patches = dict(enumerate(rng.uniform(1, 2, 101).tolist()))
        found = brought_together(scorer, whole, patches)
        brought = [found.brought(score) for score in whole.values()]
        for share in (0.5, 0.9):
            assert np.quantile(brought, share) == pytest.approx(np.quantile(list(patches.values()), share))

    def test_where_whole_images_never_differ_they_say_nothing(self):
        scorer = SubspaceScorer().fit(np.random.default_rng(0).normal(size=(50, 4)))
        found = brought_together(scorer, {0: 2.0, 1: 2.0}, {0: 1.0, 1: 3.0})
        assert found.score(np.full(4, 1e6)) == found.usual_patches

    def test_an_image_is_left_out_with_its_group(self):
        """What is far from all others is far from its twin too, and both are of one group."""
        rng = np.random.default_rng(0)
        X = rng.normal(size=(40, 5)).astype(np.float32)
        X[0] = X[1] = 50
        for together, far in ((True, True), (False, False)):
            groups = np.arange(40)
            groups[1] = 0 if together else 1
            roles = Roles(40, copies=1, groups=groups, held_out_for=None, calibration_images=40, random_state=0)
            vectors = WholeVectors(roles)
            for i in roles.learnt.tolist():
                vectors.see(i, X[i])
            found = vectors.as_if_unseen()
            assert len(found) == 40
            assert (found[0] > 20) == far


class TestFile:
    def test_what_does_not_fit_is_refused(self, detector, tmp_path):
        path = detector.save(tmp_path / "model.safetensors")
        arrays = load_file(path)
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        names = [name for name in arrays if name.startswith("whole.")]
        assert names
        for name in names:
            cut = {**arrays, name: arrays[name][:-1]}
            save_file(cut, path, metadata)
            with pytest.raises(ModelFileError, match="is damaged"):
                Detector.load(path)

    @pytest.mark.parametrize("unit", [-1.0, float("nan"), "much", None])
    def test_a_unit_that_is_none(self, unit):
        scorer = SubspaceScorer().fit(np.random.default_rng(0).normal(size=(50, 4)))
        values = {**Whole(scorer, 1.0, 1.0, 1.0).to_dict(), "unit": unit}
        with pytest.raises(ValueError, match="malformed"):
            Whole.read(values, scorer.state())
