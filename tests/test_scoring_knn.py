import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from anomalib_lite.scoring import SCORERS, KNNScorer, knn
from anomalib_lite.scoring.coreset import greedy_k_center
from anomalib_lite.scoring.neighbors import NeighborIndex


@pytest.fixture
def good():
    return np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def new_rows(n=50):
    return (2 * np.random.default_rng(1).normal(size=(n, 6))).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3])
def test_full_bank_equals_scikit_learn(good, k):
    expected = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(good).kneighbors(new_rows())
    scorer = KNNScorer(selection="full", k=k).fit(good)
    scores = scorer.score(new_rows())
    assert scores == pytest.approx(expected[0].mean(axis=1), rel=1e-4)
    assert np.array_equal(scorer.neighbors(new_rows())[1], expected[1])
    assert scores.dtype == np.float64
    assert len(np.unique(scores)) == len(scores)


class TestBank:
    def test_holds_everything_when_it_fits(self, good):
        for scorer in (KNNScorer(bank_size=300), KNNScorer(bank_size=10, selection="full")):
            scorer.fit(good)
            assert np.array_equal(scorer.bank_, good)
            assert scorer.covering_radius_ == 0.0

    @pytest.mark.parametrize("selection", ["k-center", "random"])
    def test_keeps_to_its_budget_and_says_how_far_it_reaches(self, good, selection):
        groups = np.repeat(np.arange(30), 10)
        scorer = KNNScorer(bank_size=40, selection=selection).fit(good, groups)
        assert scorer.bank_.shape == (40, 6)
        assert len(set(scorer.bank_rows_)) == 40
        distances = np.linalg.norm(good[:, None] - scorer.bank_[None], axis=2).min(axis=1)
        assert scorer.covering_radius_ == pytest.approx(distances.max(), rel=1e-4)

    def test_says_how_far_it_reaches_without_looking_at_all_rows(self, monkeypatch):
        good = np.random.default_rng(1).normal(size=(5000, 6)).astype(np.float32)
        searched = []
        search = NeighborIndex.search

        def watched(index, queries, k=1, **told):
            searched.append((len(index.bank), len(queries)))
            return search(index, queries, k, **told)

        monkeypatch.setattr(NeighborIndex, "search", watched)
        monkeypatch.setattr(knn, "_AT_ONCE", 64)
        scorer = KNNScorer(bank_size=400, local=0).fit(good)
        distances = np.linalg.norm(good[:, None] - scorer.bank_[None], axis=2).min(axis=1)
        assert scorer.covering_radius_ == pytest.approx(distances.max(), rel=1e-5)
        (_, nearest), *farthest = searched
        assert nearest == 5000
        assert 0 < sum(rows for _, rows in farthest) < 2500

    def test_random_rows_are_as_they_were(self, good):
        scorer = KNNScorer(bank_size=40, selection="random").fit(good)
        assert np.array_equal(scorer.bank_, good[scorer.bank_rows_])

    def test_rows_of_a_coreset_are_the_means_of_what_is_nearest_to_them(self, good):
        centres = good[greedy_k_center(good, 40)[0]]
        cells = np.linalg.norm(good[:, None] - centres[None], axis=2).argmin(axis=1)
        means = np.array([good[cells == i].mean(axis=0) for i in range(40)])
        scorer = KNNScorer(bank_size=40).fit(good)
        assert scorer.bank_ == pytest.approx(means, rel=1e-5, abs=1e-6)
        distances = np.linalg.norm(good[:, None] - means[None], axis=2)
        for i, row in enumerate(scorer.bank_rows_):  # the row that stands for each is the nearest of its own
            assert cells[row] == i
            assert distances[row, i] == pytest.approx(distances[cells == i, i].min())

    def test_depends_less_on_the_seed_than_a_coreset_alone(self, good):
        new = np.random.default_rng(9).normal(size=(200, 6)).astype(np.float32)
        banks = [good[greedy_k_center(good, 60, random_state=s)[0]] for s in range(6)]
        plain = [KNNScorer(bank_size=60, local=0).fit(bank).score(new) for bank in banks]
        moved = [KNNScorer(bank_size=60, local=0, random_state=s).fit(good).score(new) for s in range(6)]
        assert np.std(moved, axis=0).mean() < 0.9 * np.std(plain, axis=0).mean()

    def test_k_center_covers_better_than_chance(self, good):
        chance = [KNNScorer(bank_size=40, selection="random", random_state=s).fit(good) for s in range(5)]
        assert KNNScorer(bank_size=40).fit(good).covering_radius_ < 0.9 * min(s.covering_radius_ for s in chance)

    @pytest.mark.parametrize("selection", ["k-center", "random"])
    def test_follows_the_seed(self, good, selection):
        banks = [KNNScorer(bank_size=20, selection=selection, random_state=s).fit(good).bank_rows_ for s in (3, 3, 4)]
        assert np.array_equal(banks[0], banks[1])
        assert not np.array_equal(banks[0], banks[2])


class TestLocalUnits:
    """Where good rows are rare and far apart, a new one may be farther off."""

    @pytest.fixture
    def dense_and_sparse(self):
        rng = np.random.default_rng(0)
        dense, sparse = rng.normal(size=(60, 2)), 4 * rng.normal(size=(60, 2)) + [100, 0]
        return np.concatenate([dense, sparse]).astype(np.float32)

    def test_follow_the_spacing_of_the_bank(self, dense_and_sparse):
        near_dense, near_sparse = [[0, 8]], [[100, 32]]  # eight deviations off, each
        plain, local = (KNNScorer(local=value, k=1).fit(dense_and_sparse) for value in (0, 1))
        assert plain.score(near_sparse)[0] > 2.5 * plain.score(near_dense)[0]
        assert local.score(near_sparse)[0] < 1.7 * local.score(near_dense)[0]

    def test_none_is_the_plain_distance(self, dense_and_sparse):
        queries = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32) * 40
        distances = np.sort(np.linalg.norm(queries[:, None] - dense_and_sparse[None], axis=2), axis=1)[:, :2]
        for scorer in (KNNScorer(local=0), KNNScorer(local=1, selection="full")):
            assert scorer.fit(dense_and_sparse).score(queries) == pytest.approx(distances.mean(axis=1), rel=1e-3)

    def test_distances_to_the_nearest_stay_distances(self, dense_and_sparse):
        _, nearest, distances = KNNScorer(local=1).fit(dense_and_sparse).score_and_nearest(np.array([[100.0, 32.0]]))
        expected = np.linalg.norm(dense_and_sparse - [100, 32], axis=1)
        assert nearest[0] == expected.argmin()
        assert distances[0] == pytest.approx(expected.min(), rel=1e-3)

    def test_rows_that_coincide_make_nothing_infinite(self):
        X = np.repeat(np.random.default_rng(0).normal(size=(8, 3)), 6, axis=0)
        for rows in (X, np.append(X, X[:1] + 5, axis=0)):
            assert np.isfinite(KNNScorer().fit(rows).score(X + 1)).all()


def test_state_restores_the_very_same_scores(good):
    groups = np.repeat(np.arange(30), 10)
    scorer = KNNScorer(bank_size=50, k=3, random_state=5).fit(good, groups)
    restored = KNNScorer.from_state(scorer.parameters(), scorer.state())
    assert np.array_equal(restored.score(new_rows()), scorer.score(new_rows()))
    assert restored.parameters() == scorer.parameters()
    assert restored.covering_radius_ == scorer.covering_radius_


class TestErrors:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"selection": "best"}, "selection='best'; choose 'k-center', 'random' or 'full'"),
            ({"local": 1.5}, "local=1.5 says how far the unit of distance follows the bank, from 0 to 1"),
            ({"k": 0}, "at least 1, got bank_size=10000, k=0"),
            ({"bank_size": 0}, "at least 1, got bank_size=0"),
            ({"k": 5, "bank_size": 4}, "k=5 neighbours wanted from a bank of 4"),
        ],
    )
    def test_impossible_parameters(self, parameters, message):
        with pytest.raises(ValueError, match=message):
            KNNScorer(**parameters)

    def test_fewer_rows_than_k(self, good):
        with pytest.raises(ValueError, match="k=4 neighbours wanted from 3 rows"):
            KNNScorer(k=4).fit(good[:3])
        with pytest.raises(ValueError, match="k=2 neighbours wanted, but only 1 rows are distinct"):
            KNNScorer(k=2, bank_size=10).fit(np.ones((30, 4)))

    def test_groups_that_do_not_match_the_rows(self, good):
        with pytest.raises(ValueError, match=r"300 are needed, got shape \(299,\)"):
            KNNScorer().fit(good, np.arange(299))


FACTORIES = {
    "knn": lambda: KNNScorer(bank_size=100),
    "kmeans": lambda: SCORERS["kmeans"](n_clusters=20),
    "dbscan": lambda: SCORERS["dbscan"](),
    "subspace": lambda: SCORERS["subspace"](),
}


@pytest.mark.parametrize("name", SCORERS)
class TestEveryScorer:
    """What `scoring.base.Scorer` promises, for all of them."""

    def test_has_the_shape_of_the_protocol(self, name):
        scorer = FACTORIES[name]()
        assert scorer.name == name
        assert scorer.max_rows > 1000
        for method in ("fit", "score", "parameters", "state", "from_state"):
            assert callable(getattr(scorer, method))
        assert type(scorer)(**scorer.parameters()).parameters() == scorer.parameters()

    def test_far_rows_score_higher(self, name, good):
        scorer = FACTORIES[name]()
        assert scorer.fit(good) is scorer
        scores = scorer.score(good[:1] * 0 + np.array([[0.0], [5.0], [10.0], [30.0]], dtype=np.float32))
        assert (np.diff(scores) > 1).all()
        assert (scores.dtype, scores.shape) == (np.float64, (4,))

    def test_float64_and_lists_are_fine_and_left_alone(self, name, good):
        X = good.astype(np.float64)
        expected = FACTORIES[name]().fit(good).score(new_rows())
        assert np.array_equal(FACTORIES[name]().fit(X).score(new_rows().tolist()), expected)
        assert np.array_equal(X, good)

    @pytest.mark.filterwarnings("error::RuntimeWarning")
    def test_wrong_rows_are_named(self, name, good):
        spoilt = good.copy()
        spoilt[[3, 8], 2] = -np.inf, np.inf
        fitted = FACTORIES[name]().fit(good)
        for use in (FACTORIES[name]().fit, fitted.score):
            for wrong in (good[:0], good[0]):
                with pytest.raises(ValueError, match=r"takes rows \(n, d\) with n >= 1, got shape"):
                    use(wrong)
            with pytest.raises(ValueError, match="2 of 300 rows hold NaN or infinity"):
                use(spoilt)
        with pytest.raises(ValueError, match="rows have 5 dimensions, the scorer was fitted on 6"):
            fitted.score(good[:, :5])

    def test_is_of_no_use_before_fit_and_after_a_failed_one(self, name, good):
        scorer = FACTORIES[name]()
        with pytest.raises(ValueError, match="NaN"):
            scorer.fit(good * np.nan)
        with pytest.raises(RuntimeError, match=f"the {name} scorer is not fitted yet"):
            scorer.score(good)

    def test_a_failed_fit_leaves_the_old_one(self, name, good):
        scorer = FACTORIES[name]().fit(good)
        expected = scorer.score(new_rows())
        with pytest.raises(ValueError, match="NaN"):
            scorer.fit(good * np.nan)
        assert np.array_equal(scorer.score(new_rows()), expected)
