import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from anomalib_lite.scoring import SubspaceScorer


def rows(n, d, seed=0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(77).normal(size=(d, d))
    return (rng.normal(size=(n, d)) * 0.7 ** np.arange(d) @ mixing + 3).astype(np.float32)


@pytest.mark.parametrize("shrinkage", ["auto", 0.2])
def test_all_components_give_the_shrunk_mahalanobis_distance(shrinkage):
    good, new = rows(2000, 8), rows(50, 8, seed=1) * 1.5
    scorer = SubspaceScorer(n_components=None, shrinkage=shrinkage).fit(good)
    mean, scale = good.mean(axis=0), good.std(axis=0, ddof=1)
    reference = LedoitWolf().fit((good - mean) / scale)
    if shrinkage == "auto":
        assert scorer.shrinkage_ == pytest.approx(reference.shrinkage_, rel=1e-2)
        expected = np.sqrt(reference.mahalanobis((new - mean) / scale))
    else:
        covariance = 0.8 * np.cov((good - mean) / scale, rowvar=False) + 0.2 * np.eye(8)
        centred = (new - mean) / scale
        expected = np.sqrt((centred @ np.linalg.inv(covariance) * centred).sum(axis=1))
    assert scorer.score(new) == pytest.approx(expected, rel=1e-3)
    assert len(np.unique(scorer.score(new))) == 50


def test_fewer_components_add_the_residual_over_its_variance():
    good, new = rows(500, 8), rows(30, 8, seed=1)
    scorer = SubspaceScorer(n_components=3, shrinkage=0.1).fit(good)
    centred = (new - good.mean(axis=0)) / good.std(axis=0, ddof=1)
    values, axes = np.linalg.eigh(np.corrcoef(good, rowvar=False))
    inside, outside = centred @ axes[:, -3:], centred @ axes[:, :-3]
    squared = (inside**2 / (0.9 * values[-3:] + 0.1)).sum(axis=1)
    squared += (outside**2).sum(axis=1) / (0.9 * values[:-3].mean() + 0.1)
    assert scorer.score(new) == pytest.approx(np.sqrt(squared), rel=1e-3)


class TestFewerRowsThanDimensions:
    def test_scores_are_finite_and_differ(self):
        scorer = SubspaceScorer().fit(rows(12, 40))
        scores = scorer.score(rows(30, 40, seed=1))
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) == 30
        assert 0 < scorer.shrinkage_ <= 1

    @pytest.mark.parametrize("n_components", [0.9, None])
    def test_a_direction_unseen_among_good_rows_scores_high(self, n_components):
        rng = np.random.default_rng(0)
        good = rng.normal(size=(20, 5)) @ rng.normal(size=(5, 40))  # of 40 dimensions good rows fill 5
        unseen = np.linalg.svd(good)[2][-1] * np.linalg.norm(good, axis=1).mean()
        scorer = SubspaceScorer(n_components=n_components).fit(good)
        assert scorer.score(unseen[None])[0] > 1.5 * scorer.score(good).max()


def test_units_of_dimensions_do_not_matter():
    good, new = rows(300, 6), rows(20, 6, seed=1)
    units = 10.0 ** np.array([-3, 3, 0, 1, -1, 2])
    expected = SubspaceScorer().fit(good).score(new)
    assert SubspaceScorer().fit(good * units).score(new * units) == pytest.approx(expected, rel=1e-3)


def test_a_constant_dimension_that_moves_is_noticed():
    good = rows(200, 5)
    good[:, 2] = 1.0
    scorer = SubspaceScorer().fit(good)
    moved = good[:5].copy()
    moved[:, 2] = 9.0
    assert np.isfinite(scorer.score(good)).all()
    assert (scorer.score(moved) > scorer.score(good[:5]) + 5).all()


@pytest.mark.parametrize(("n", "d", "n_components"), [(300, 6, None), (300, 6, 0.9), (12, 40, 0.99)])
def test_state_restores_the_very_same_scores(n, d, n_components):
    scorer = SubspaceScorer(n_components=n_components).fit(rows(n, d))
    restored = SubspaceScorer.from_state(scorer.parameters(), scorer.state())
    new = rows(30, d, seed=1)
    assert np.array_equal(restored.score(new), scorer.score(new))
    assert restored.parameters() == scorer.parameters()


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(ValueError, match="at least two rows"):
        SubspaceScorer().fit(np.ones((1, 5)))
    with pytest.raises(ValueError, match="all rows are the same"):
        SubspaceScorer().fit(np.ones((9, 5)))


@pytest.mark.parametrize("shrinkage", [0, 1.5, "oas"])
def test_impossible_shrinkage(shrinkage):
    with pytest.raises(ValueError, match=f"shrinkage={shrinkage!r}; give a weight"):
        SubspaceScorer(shrinkage=shrinkage)
