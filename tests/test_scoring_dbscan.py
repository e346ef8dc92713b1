import re

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from anomalib_lite.scoring import DBSCANScorer, dbscan
from anomalib_lite.scoring.dbscan import knee, leave_out_k_distances


@pytest.fixture
def X():
    """Two clumps and thinly spread rows around them."""
    rng = np.random.default_rng(0)
    clumps = [rng.normal(size=(120, 3)), 0.5 * rng.normal(size=(60, 3)) + 6, rng.uniform(-8, 12, size=(30, 3))]
    return np.concatenate(clumps).astype(np.float32)


class TestAgreementWithScikitLearn:
    @pytest.mark.parametrize("eps", [0.3, 0.6, 1.0, 2.0, 5.0, 40.0])
    @pytest.mark.parametrize("min_samples", [1, 4])
    @pytest.mark.parametrize("offset", [0, 300])
    def test_core_samples_clusters_and_noise(self, X, eps, min_samples, offset, monkeypatch):
        monkeypatch.setattr(dbscan, "_BLOCK", 50)  # clusters join across blocks
        X = X + np.float32(offset)
        reference = DBSCAN(eps=eps, min_samples=min_samples).fit(X)
        scorer = DBSCANScorer(eps=eps, min_samples=min_samples).fit(X)
        assert np.array_equal(scorer.core_rows_, reference.core_sample_indices_)
        assert np.array_equal(scorer.core_samples_, X[reference.core_sample_indices_])
        assert scorer.n_clusters_ == reference.labels_.max() + 1
        assert scorer.n_noise_ == (reference.labels_ == -1).sum()

    def test_rows_at_exactly_eps_are_within(self):
        X = np.arange(10.0)[:, None]
        reference = DBSCAN(eps=1.0, min_samples=3).fit(X)
        scorer = DBSCANScorer(eps=1.0, min_samples=3).fit(X)
        assert np.array_equal(scorer.core_rows_, reference.core_sample_indices_)
        assert (scorer.n_clusters_, scorer.n_noise_) == (1, 0)

    def test_equal_rows_are_within_any_radius(self):
        X = np.repeat(np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32), 5, axis=0)
        scorer = DBSCANScorer(eps=1e-6, min_samples=5).fit(X)
        assert (len(scorer.core_rows_), scorer.n_clusters_, scorer.n_noise_) == (30, 6, 0)

    def test_one_far_row_does_not_blur_the_others(self, X):
        X[0] = 5e3
        reference = DBSCAN(eps=0.6, min_samples=4).fit(X)
        assert np.array_equal(DBSCANScorer(eps=0.6, min_samples=4).fit(X).core_rows_, reference.core_sample_indices_)


def test_scores_are_distances_to_the_nearest_core_sample(X):
    scorer = DBSCANScorer(eps=1.0).fit(X)
    new = np.random.default_rng(1).uniform(-10, 14, size=(40, 3)).astype(np.float32)
    expected = np.linalg.norm(new[:, None] - scorer.core_samples_[None], axis=2).min(axis=1)
    assert scorer.score(new) == pytest.approx(expected, rel=1e-4)
    assert scorer.score(X[scorer.core_rows_]).max() == 0.0
    assert len(np.unique(scorer.score(new))) == 40


class TestKnee:
    def test_lies_between_good_and_odd_rows(self):
        rng = np.random.default_rng(0)
        good, odd = rng.normal(size=(200, 2)), 100 * (1 + np.arange(12))[:, None] * np.ones(2)
        X = np.concatenate([good, odd])
        scorer = DBSCANScorer().fit(X)
        distances = leave_out_k_distances(X.astype(np.float32), np.arange(212), 4)
        assert np.median(distances) < scorer.eps_ < 100
        assert scorer.core_rows_.max() < 200
        assert len(scorer.core_rows_) > 180
        assert scorer.eps_ == DBSCANScorer().fit(X).eps_

    def test_curve(self):
        assert knee(np.array([0.0, 0.0, 0.0, 0.0, 10.0])) == 3
        assert knee(np.concatenate([np.linspace(0, 1, 50), np.linspace(1, 50, 10)])) in (49, 50)
        assert knee(np.ones(5)) == 4

    def test_distances_skip_the_own_image(self):
        # Each image's rows lie on top of each other, images a unit apart.
        X, groups = np.repeat(np.arange(6.0), 8)[:, None].astype(np.float32), np.repeat(np.arange(6), 8)
        assert leave_out_k_distances(X, groups, 3) == pytest.approx(1.0)
        assert DBSCANScorer(min_samples=4).fit(X, groups).eps_ == pytest.approx(1.0)
        assert leave_out_k_distances(X, np.arange(48), 3) == pytest.approx(0.0)

    def test_distances_are_the_brute_force_ones(self, X):
        groups = np.arange(len(X)) // 7
        distances = np.linalg.norm(X[:, None] - X[None], axis=2)
        distances[groups[:, None] == groups[None]] = np.inf
        expected = np.sort(np.sort(distances, axis=1)[:, 2])
        assert leave_out_k_distances(X, groups, 3) == pytest.approx(expected, rel=1e-4)

    def test_many_equal_rows_still_give_a_positive_radius(self):
        X = np.concatenate([np.zeros((50, 1)), [[1.0], [1.5]]])
        assert DBSCANScorer(min_samples=3).fit(X).eps_ > 0

    def test_equal_rows_have_none(self):
        with pytest.raises(ValueError, match="distances have no knee; set eps to a number"):
            DBSCANScorer().fit(np.ones((40, 3)))
        scorer = DBSCANScorer(eps=0.1).fit(np.ones((40, 3)))
        assert (len(scorer.core_rows_), scorer.n_clusters_, scorer.n_noise_) == (40, 1, 0)

    def test_one_image_has_none(self, X):
        with pytest.raises(ValueError, match="all rows are of one image"):
            DBSCANScorer().fit(X, np.zeros(len(X)))


class TestNoCoreSample:
    @pytest.mark.parametrize("scale", [1, 1e-3, 12345.678])
    @pytest.mark.parametrize("seed", range(4))
    def test_names_the_smallest_radius_that_makes_one(self, scale, seed):
        X = scale * np.random.default_rng(seed).normal(size=(60, 3))
        with pytest.raises(ValueError, match="makes no row a core sample of 5 rows") as error:
            DBSCANScorer(eps=1e-6 * scale, min_samples=5).fit(X)
        named = float(re.search(r"smallest eps that does is ([-+.e\d]+\d)", str(error.value))[1])
        assert len(DBSCANScorer(eps=named, min_samples=5).fit(X).core_rows_) >= 1
        with pytest.raises(ValueError, match="no row a core sample"):
            DBSCANScorer(eps=0.998 * named, min_samples=5).fit(X)

    def test_more_samples_than_rows(self):
        with pytest.raises(ValueError, match="min_samples=9 is more than the 8 rows"):
            DBSCANScorer(eps=1.0, min_samples=9).fit(np.ones((8, 2)))


@pytest.mark.parametrize("eps", [0.8, "knee"])
def test_state_restores_the_very_same_scores(X, eps):
    scorer = DBSCANScorer(eps=eps, min_samples=4).fit(X)
    restored = DBSCANScorer.from_state(scorer.parameters(), scorer.state())
    assert np.array_equal(restored.score(X + 1), scorer.score(X + 1))
    assert restored.eps_ == scorer.eps_
    assert restored.parameters() == scorer.parameters()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"eps": 0}, "eps=0; give a distance above 0 or 'knee'"),
        ({"eps": "elbow"}, "eps='elbow'; give"),
        ({"min_samples": 0}, "min_samples=0; at least 1"),
    ],
)
def test_impossible_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        DBSCANScorer(**parameters)


def test_groups_that_do_not_match_the_rows(X):
    with pytest.raises(ValueError, match=r"210 are needed, got shape \(3,\)"):
        DBSCANScorer().fit(X, [0, 1, 2])
