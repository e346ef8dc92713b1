import numpy as np
import pytest
from sklearn.cluster import KMeans

from anomalib_lite.scoring import KMeansScorer


def blobs(k, n=240, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return (20 * np.eye(k, d)[np.arange(n) % k] + rng.normal(size=(n, d))).astype(np.float32)


def new_rows(d=5):
    return (10 * np.random.default_rng(1).normal(size=(40, d))).astype(np.float32)


def nearest(rows, centroids):
    return np.linalg.norm(rows[:, None].astype(float) - centroids[None], axis=2).min(axis=1)


def test_scores_are_distances_to_the_nearest_centroid():
    X = blobs(4)
    scorer = KMeansScorer(n_clusters=12).fit(X)
    scores = scorer.score(new_rows())
    assert scorer.centroids_.shape == (12, 5)
    assert scores == pytest.approx(nearest(new_rows(), scorer.centroids_), rel=1e-4)
    assert scorer.inertia_ == pytest.approx((nearest(X, scorer.centroids_) ** 2).mean(), rel=1e-3)
    assert len(np.unique(scores)) == len(scores)


def test_is_as_tight_as_scikit_learn_with_its_starts():
    X = blobs(4)
    reference = KMeans(4, n_init=5, random_state=0).fit(X)
    assert KMeansScorer(n_clusters=4).fit(X).inertia_ == pytest.approx(reference.inertia_ / len(X), rel=1e-3)


def test_rare_good_rows_get_a_centroid():
    X = np.concatenate([np.random.default_rng(0).normal(size=(500, 3)), [[40, 0, 0], [0, 40, 0]]]).astype(np.float32)
    assert KMeansScorer(n_clusters=8).fit(X).score(X[-2:]).max() < 1e-3


def test_follows_the_seed():
    X = np.random.default_rng(0).normal(size=(200, 3))
    centroids = [KMeansScorer(n_clusters=9, random_state=s).fit(X).centroids_ for s in (1, 1, 2)]
    assert np.array_equal(centroids[0], centroids[1])
    assert not np.allclose(np.sort(centroids[0], axis=0), np.sort(centroids[2], axis=0))


class TestSilhouette:
    @pytest.mark.parametrize("planted", [2, 3, 4])
    def test_finds_planted_groups(self, planted):
        scorer = KMeansScorer(n_clusters="silhouette").fit(blobs(planted))
        assert len(scorer.centroids_) == planted
        assert max(scorer.silhouettes_, key=scorer.silhouettes_.get) == planted
        assert all(-1 <= value <= 1 for value in scorer.silhouettes_.values())

    def test_is_not_asked_when_the_number_is_given(self):
        assert KMeansScorer(n_clusters=3).fit(blobs(3)).silhouettes_ == {}

    def test_three_rows_are_enough_and_two_are_not(self):
        assert len(KMeansScorer(n_clusters="silhouette").fit([[0.0], [0.1], [5.0]]).centroids_) == 2
        for X in (np.array([[0.0], [1.0]]), np.ones((30, 2))):
            with pytest.raises(ValueError, match=f"at least 3 rows that are not all the same, got {len(X)}"):
                KMeansScorer(n_clusters="silhouette").fit(X)


@pytest.mark.parametrize("distinct", [1, 4])
def test_more_clusters_than_distinct_rows(distinct):
    rows = np.random.default_rng(0).normal(size=(distinct, 3)).astype(np.float32)
    scorer = KMeansScorer(n_clusters=50).fit(np.repeat(rows, 30, axis=0))
    assert len(scorer.centroids_) == distinct
    assert scorer.inertia_ == 0.0
    assert scorer.score(rows) == pytest.approx(0.0, abs=1e-6)
    assert scorer.score(rows + 9).min() > 1


def test_state_restores_the_very_same_scores():
    scorer = KMeansScorer(n_clusters="silhouette", max_iter=7, random_state=3).fit(blobs(3))
    restored = KMeansScorer.from_state(scorer.parameters(), scorer.state())
    assert np.array_equal(restored.score(new_rows()), scorer.score(new_rows()))
    assert restored.parameters() == {"n_clusters": "silhouette", "max_iter": 7, "random_state": 3}


@pytest.mark.parametrize("n_clusters", [0, -3, 2.5, "elbow"])
def test_impossible_numbers_of_clusters(n_clusters):
    with pytest.raises(ValueError, match=f"n_clusters={n_clusters!r}; give a number of clusters or 'silhouette'"):
        KMeansScorer(n_clusters=n_clusters)
