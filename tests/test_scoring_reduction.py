import numpy as np
import pytest
from sklearn.decomposition import PCA as ReferencePCA
from sklearn.preprocessing import StandardScaler

from anomalib_lite.scoring.reduction import PCA, Standardizer, restore_reduction


def rows(n, d, seed=0):
    """Correlated rows with falling variances, off the origin."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rng.normal(size=(n, d)) * 0.8 ** np.arange(d)) @ mixing + rng.normal(size=d)


def up_to_signs(a, b):
    """Columns of `a` turned to the side of those of `b`."""
    return a * np.sign((a * b).sum(axis=0))


@pytest.fixture(params=[(300, 12), (9, 20)], ids=["n > d", "n < d"])
def X(request):
    return rows(*request.param)


class TestAgreementWithScikitLearn:
    @pytest.mark.parametrize("whiten", [False, True])
    def test_projection(self, X, whiten):
        reference = ReferencePCA(6, whiten=whiten, svd_solver="full").fit(X)
        pca = PCA(6, whiten=whiten).fit(X)
        new = rows(50, X.shape[1], seed=1)
        expected = reference.transform(new)
        assert up_to_signs(pca.transform(new), expected) == pytest.approx(expected, abs=1e-4)
        assert pca.explained_variance_ == pytest.approx(reference.explained_variance_, rel=1e-4)
        assert pca.explained_variance_ratio_ == pytest.approx(reference.explained_variance_ratio_, rel=1e-4)
        assert pca.mean_ == pytest.approx(reference.mean_, abs=1e-6)
        assert (pca.n_rows_, pca.transform(new).dtype) == (len(X), np.float32)

    @pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
    def test_share_of_variance(self, X, share):
        assert PCA(share).fit(X).n_components_ == ReferencePCA(share, svd_solver="full").fit(X).n_components_

    def test_standardize_is_pca_of_standardised_rows(self, X):
        X = X * 10.0 ** np.arange(X.shape[1])[::-1][: X.shape[1]].clip(max=3)
        # scikit-learn divides by n, a standard deviation of a sample by n - 1.
        scaled = StandardScaler().fit_transform(X) * np.sqrt(1 - 1 / len(X))
        expected = ReferencePCA(4, svd_solver="full").fit_transform(scaled)
        assert up_to_signs(PCA(4, standardize=True).fit(X).transform(X), expected) == pytest.approx(expected, abs=1e-4)

    def test_all_components_but_those_of_rounding(self, X):
        # n centred rows span n - 1 directions at most.
        assert PCA().fit(X).n_components_ == min(len(X) - 1, X.shape[1])


class TestChunks:
    @pytest.mark.parametrize("standardize", [False, True])
    def test_equal_all_at_once_in_any_order(self, standardize):
        X = rows(300, 12) + np.linspace(0, 3, 300)[:, None]  # chunks differ in their mean
        whole = PCA(8, standardize=standardize).fit(X)
        for bounds, order in (([1, 7, 150], 1), ([100, 200], -1), ([50, 50, 299], 1)):
            pca = PCA(8, standardize=standardize)
            for chunk in np.split(X, bounds)[::order]:
                pca.partial_fit(chunk)  # the empty one too
            pca.finish()
            assert pca.components_ == pytest.approx(whole.components_, abs=1e-5)
            assert pca.mean_ == pytest.approx(whole.mean_, abs=1e-6)
            assert pca.explained_variance_ == pytest.approx(whole.explained_variance_, rel=1e-6)
            assert pca.n_rows_ == 300

    def test_more_may_follow_after_the_end(self):
        """It began anew without a word, and forgot what it had seen."""
        X = rows(300, 12)
        pca = PCA(8).partial_fit(X[:100]).finish().partial_fit(X[100:]).finish()
        assert pca.n_rows_ == 300
        assert pca.components_ == pytest.approx(PCA(8).fit(X).components_, abs=1e-5)

    def test_none_may_follow_where_earlier_ones_were_not_kept(self):
        X = rows(10, 12)
        for pca in (PCA(3).fit(X), PCA.from_state(PCA(3).fit(rows(40, 12)).state())):
            with pytest.raises(RuntimeError, match="no chunk can be added; begin with a new one"):
                pca.partial_fit(X)

    def test_other_dimension_is_an_error(self):
        pca = PCA().partial_fit(rows(10, 4))
        with pytest.raises(ValueError, match="rows have 5 dimensions, earlier chunks had 4"):
            pca.partial_fit(rows(10, 5))

    def test_no_chunk_is_an_error(self):
        with pytest.raises(ValueError, match="seen no rows"):
            PCA().finish()

    def test_fit_forgets_earlier_chunks(self, X):
        pca = PCA(2).partial_fit(rows(40, X.shape[1], seed=9) + 5).fit(X)
        assert pca.mean_ == pytest.approx(X.mean(axis=0), abs=1e-6)


@pytest.mark.parametrize("standardize", [False, True])
def test_residual_is_the_norm_of_the_reconstruction_error(X, standardize):
    pca = PCA(3, standardize=standardize).fit(X)
    new = rows(40, X.shape[1], seed=2).astype(np.float32)
    rebuilt = pca.transform(new) @ pca.components_ * pca.scale_ + pca.mean_
    expected = np.linalg.norm((new - rebuilt) / pca.scale_, axis=1)
    assert pca.residual(new) == pytest.approx(expected, rel=1e-4)
    assert PCA().fit(X).residual(X).max() < 1e-4


@pytest.mark.parametrize(
    "make",
    [lambda: PCA(5, whiten=True), lambda: PCA(0.9, standardize=True), Standardizer],
    ids=["whitened", "standardised", "standardizer"],
)
def test_state_restores_the_very_same_projection(X, make):
    learnt = make().fit(X)
    restored = restore_reduction(learnt.state())
    new = rows(30, X.shape[1], seed=3)
    assert type(restored) is type(learnt)
    assert np.array_equal(restored.transform(new), learnt.transform(new))
    if isinstance(learnt, PCA):
        assert np.array_equal(restored.residual(new), learnt.residual(new))
        assert (restored.n_rows_, restored.whiten, restored.standardize) == (
            learnt.n_rows_,
            learnt.whiten,
            learnt.standardize,
        )


def test_equal_rows_give_equal_signs():
    X = rows(200, 6)
    a, b = PCA(6).fit(X), PCA(6).fit(X[::-1])
    assert a.components_ == pytest.approx(b.components_, abs=1e-5)
    assert (np.take_along_axis(a.components_, abs(a.components_).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_constant_dimensions_are_left_alone():
    X = rows(60, 4)
    X[:, 2] = 7.0
    for learnt in (PCA(standardize=True).fit(X), Standardizer().fit(X)):
        assert learnt.scale_[2] == 1.0
        assert np.isfinite(learnt.transform(X)).all()
    assert Standardizer().fit(X).transform(X)[:, 2] == pytest.approx(0.0)


def test_standardizer_equals_scikit_learn():
    X = rows(50, 5)
    expected = StandardScaler().fit(X).transform(X) * np.sqrt(1 - 1 / 50)
    assert Standardizer().fit(X).transform(X) == pytest.approx(expected, abs=1e-5)


class TestErrors:
    @pytest.mark.parametrize("n_components", [0, -1, 0.0, 1.0, 1.5, float("nan")])
    def test_impossible_numbers_of_components(self, n_components):
        with pytest.raises(ValueError, match="give a number of components"):
            PCA(n_components)

    @pytest.mark.parametrize(("shape", "most"), [((30, 5), 5), ((4, 9), 4)])
    def test_more_components_than_there_can_be(self, shape, most):
        with pytest.raises(ValueError, match=f"choose at most {most}, or a share"):
            PCA(most + 1).fit(rows(*shape))

    @pytest.mark.parametrize("standardize", [False, True])
    @pytest.mark.parametrize("shape", [(20, 3), (3, 20)])
    def test_constant_rows(self, shape, standardize):
        with pytest.raises(ValueError, match="all rows are the same"):
            PCA(standardize=standardize).fit(np.full(shape, 0.5))

    @pytest.mark.parametrize("d", [1, 5])
    def test_one_row_and_none(self, d):
        for make in (PCA, Standardizer):
            with pytest.raises(ValueError, match="at least two rows"):
                make().fit(np.ones((1, d)))
        with pytest.raises(ValueError, match="seen no rows"):
            PCA().fit(np.ones((0, d)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_rows_that_are_not_finite(self, X, bad):
        X[3, 1] = bad
        for learn in (PCA().fit, PCA().partial_fit, Standardizer().fit):
            with pytest.raises(ValueError, match="NaN or infinity"):
                learn(X)

    @pytest.mark.filterwarnings("error")
    def test_large_finite_rows_are_no_error(self):
        # Their float32 sum overflows; the rows do not.
        assert PCA(1).fit(np.array([[2e38, 0.0], [2e38, 1.0], [2e38, 2.0]], dtype=np.float32)).n_components_ == 1

    def test_other_dimension(self, X):
        for learnt in (PCA(2).fit(X), Standardizer().fit(X)):
            for use in {learnt.transform, getattr(learnt, "residual", learnt.transform)}:
                for wrong in (np.ones((4, X.shape[1] + 1)), np.ones(X.shape[1])):
                    with pytest.raises(ValueError, match=f"learnt on rows of {X.shape[1]} dimensions"):
                        use(wrong)
        with pytest.raises(ValueError, match=r"rows \(n, d\), got shape \(4,\)"):
            PCA().fit(np.ones(4))
