"""Embedding maps: the same seed gives the same coordinates, and neighbours stay neighbours."""

import numpy as np
import pytest
import sklearn

from anomalib_lite.diagnosis.projection import Projector

pytestmark = pytest.mark.filterwarnings("ignore:n_jobs value")


def groups(per=20):
    rng = np.random.default_rng(0)
    return np.repeat(30 * np.eye(3, 10), per, axis=0) + rng.normal(size=(3 * per, 10))


@pytest.mark.parametrize("method", ["tsne", "umap"])
class TestBothMethods:
    def test_the_seed_decides(self, method):
        first, again, other = (Projector(method, random_state=seed).fit(groups()).points for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        # t-SNE starts from the principal components, which leave nothing to chance, but for the rounding that
        # scikit-learn before 1.8 let the seed decide.
        if method == "umap" or tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8):
            assert np.array_equal(first, other) == (method == "tsne")

    def test_groups_that_are_apart_stay_apart(self, method):
        points = Projector(method).fit(groups()).points.reshape(3, 20, 2)
        centres, spread = points.mean(axis=1), points.std(axis=1).max()
        gaps = np.linalg.norm(centres[:, None] - centres, axis=-1)[np.triu_indices(3, 1)]
        assert gaps.min() > 2 * spread

    def test_many_rows_are_thinned_and_the_odd_one_is_kept(self, method):
        rows = np.vstack([groups(), np.full((1, 10), 200.0)])
        found = Projector(method, most=25).fit(rows)
        assert found.subsampled
        assert found.points.shape == (25, 2)
        assert 60 in found.rows

    def test_few_rows_are_placed_and_fewer_refused(self, method):
        assert np.isfinite(Projector(method).fit(np.random.default_rng(0).normal(size=(5, 3))).points).all()
        with pytest.raises(ValueError, match="4 images are too few for a map; give at least five"):
            Projector(method).fit(np.eye(4))


def test_umap_places_new_rows_beside_their_like():
    rows = groups()
    projector = Projector("umap")
    points = projector.fit(rows).points.reshape(3, 20, 2)
    new = projector.transform(rows[45:46] + 0.1)
    assert np.linalg.norm(points.mean(axis=1) - new, axis=1).argmin() == 2


def test_tsne_has_no_place_for_new_rows():
    projector = Projector("tsne")
    projector.fit(groups())
    with pytest.raises(ValueError, match="fit it on old and new rows together, or use method='umap'"):
        projector.transform(groups())


@pytest.mark.parametrize(
    ("options", "text"), [({"method": "pca"}, "choose 'tsne' or 'umap'"), ({"neighbors": 1}, "at least 2")]
)
def test_wrong_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Projector(**options)
