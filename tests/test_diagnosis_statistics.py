"""Diagnostics: what they find where the answer is known."""

import numpy as np
import pytest
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.metrics import silhouette_score

from anomalib_lite.diagnosis import statistics as diagnostics


def blobs(count, per=30, apart=20.0, d=4, seed=0):
    """`count` round groups whose centres lie `apart` from each other; rows and the group of each."""
    rng = np.random.default_rng(seed)
    centres = apart * np.eye(count, max(count, d))[:, : max(count, d)]
    rows = np.repeat(centres, per, axis=0) + rng.normal(size=(count * per, max(count, d)))
    return rows.astype(np.float32), np.repeat(np.arange(count), per)


class TestElbowAndSilhouette:
    @pytest.mark.parametrize("groups", [3, 5])
    def test_both_find_groups_that_are_well_apart(self, groups):
        rows, truth = blobs(groups)
        assert diagnostics.elbow(rows).k == groups
        found = diagnostics.silhouette(rows)
        assert found.k == groups
        assert diagnostics.cluster_match(found.labels, truth[found.rows]) == diagnostics.ClusterMatch(1.0, 1.0)

    def test_inertia_falls_with_every_cluster(self):
        found = diagnostics.elbow(blobs(4)[0], counts=range(1, 9))
        assert (np.diff(found.inertias) <= 0).all()
        assert found.inertias[0] == pytest.approx(blobs(4)[0].astype(float).var(axis=0).sum(), rel=1e-3)

    def test_the_silhouette_is_scikit_learns(self):
        rows, _ = blobs(3, apart=4.0)
        found = diagnostics.silhouette(rows, counts=[3])
        assert found.values.mean() == pytest.approx(silhouette_score(rows, found.labels), abs=1e-6)
        assert found.means[0] == pytest.approx(found.values.mean())

    def test_many_rows_are_sampled_and_the_sample_follows_the_seed(self, monkeypatch):
        monkeypatch.setattr(diagnostics, "SILHOUETTE_ROWS", 50)
        rows, _ = blobs(3)
        first, again, other = (diagnostics.silhouette(rows, random_state=seed) for seed in (1, 1, 2))
        assert len(first.rows) == len(first.values) == 50
        assert np.array_equal(first.rows, again.rows)
        assert not np.array_equal(first.rows, other.rows)

    @pytest.mark.parametrize("examine", [diagnostics.elbow, diagnostics.silhouette])
    def test_too_few_rows_are_refused(self, examine):
        with pytest.raises(ValueError, match="3 rows are too few to look for clusters; give at least four"):
            examine(np.eye(3))

    def test_rows_that_are_all_the_same_make_no_clusters(self):
        with pytest.raises(ValueError, match="all 10 rows are the same"):
            diagnostics.silhouette(np.ones((10, 3)))


class TestDensity:
    def test_the_k_distance_is_the_distance_to_the_kth_other_row(self):
        line = np.array([[0.0], [1.0], [3.0], [7.0]])
        assert diagnostics.k_distance(line, k=1).distances.tolist() == [1, 1, 2, 4]
        assert diagnostics.k_distance(line, [0, 0, 1, 1], k=1).distances.tolist() == [2, 2, 3, 6]

    def test_the_knee_lies_between_the_groups_and_the_outliers(self):
        rows, _ = blobs(2)
        far = np.vstack([rows, np.full((3, rows.shape[1]), 300.0) * np.array([[1], [2], [4]])])
        found = diagnostics.k_distance(far)
        assert np.median(found.distances) < found.eps < 20
        assert found.eps == found.distances[found.knee]

    def test_the_sweep_goes_from_all_noise_to_one_cluster(self):
        rows, _ = blobs(3)
        found = diagnostics.dbscan_sweep(rows, [1e-3, 4.0, 100.0])
        assert found.n_clusters.tolist() == [0, 3, 1]
        assert found.noise_share[0] == 1
        assert found.noise_share[2] == 0
        own = diagnostics.dbscan_sweep(rows)
        assert own.n_clusters[-1] == 1
        assert 3 in own.n_clusters
        assert (np.diff(own.noise_share) <= 0).all()


class TestVariance:
    def test_is_scikit_learns(self):
        rows = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 2, 1, 0.5, 0.1]
        found = diagnostics.explained_variance(rows)
        assert np.allclose(found.ratios, SklearnPCA().fit(rows).explained_variance_ratio_, atol=1e-6)
        assert found.components_for(1.0) == 6
        assert (
            np.cumsum(found.ratios)[found.components_for(0.9) - 1]
            >= 0.9
            > np.cumsum(found.ratios)[found.components_for(0.9) - 2]
        )


class TestSuspicious:
    def test_the_worst_come_first_with_their_share(self):
        found = diagnostics.suspicious(list("abcdefgh"), [1.0, 9.0, 1.1, 1.1, 1.2, 1.05, 1.15, 1.12])
        assert found.ids == ["b", "e", "g", "h", "c", "d", "f", "a"]
        assert found.p_values.tolist() == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 6 / 8, 6 / 8, 7 / 8, 1.0]
        assert found.outlying.tolist() == [True] + 7 * [False]

    def test_good_images_are_rarely_called_outlying(self):
        scores = np.exp(0.1 * np.random.default_rng(0).normal(size=2000))
        assert diagnostics.suspicious([str(i) for i in range(2000)], scores).outlying.sum() == 0

    def test_scores_and_ids_must_match(self):
        with pytest.raises(ValueError, match="2 ids and 1 scores"):
            diagnostics.suspicious(["a", "b"], [1.0])
