import numpy as np
import pytest

from anomalib_lite.scoring import coreset
from anomalib_lite.scoring.coreset import greedy_k_center


def plain_greedy(X, size, first):
    """The textbook loop, in float64: (indices, covering radius)."""
    X = np.asarray(X, dtype=np.float64)
    chosen, nearest = [first], np.linalg.norm(X - X[first], axis=1)
    while len(chosen) < size:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(X - X[chosen[-1]], axis=1))
    return chosen, nearest.max()


def covering_radius(X, indices):
    X = np.asarray(X, dtype=np.float64)
    return np.linalg.norm(X[:, None] - X[indices][None], axis=2).min(axis=1).max()


@pytest.fixture(params=["gaussian", "clusters", "far from the origin"])
def X(request):
    rng = np.random.default_rng(5)
    if request.param == "clusters":
        return rng.normal(size=(12, 8))[rng.integers(12, size=400)] + 0.05 * rng.normal(size=(400, 8))
    return rng.normal(size=(400, 8)) + (1000 if request.param == "far from the origin" else 0)


@pytest.mark.parametrize("pool", [8, 50, 4096])
def test_traverses_as_the_plain_loop(X, pool, monkeypatch):
    monkeypatch.setattr(coreset, "_POOL", pool)  # small pools take many rounds
    monkeypatch.setattr(coreset, "_BLOCK", 128)
    X = X.astype(np.float32)
    indices, radius = greedy_k_center(X, 60)
    expected, expected_radius = plain_greedy(X, 60, indices[0])
    assert indices.tolist() == expected
    assert radius == pytest.approx(expected_radius, rel=1e-4)
    assert radius == pytest.approx(covering_radius(X, indices), rel=1e-4)


def test_every_prefix_is_the_smaller_coreset(X, monkeypatch):
    monkeypatch.setattr(coreset, "_POOL", 32)
    longest, _ = greedy_k_center(X, 100)
    radii = []
    for size in (1, 2, 37, 100):
        indices, radius = greedy_k_center(X, size)
        assert np.array_equal(indices, longest[:size])
        radii.append(radius)
    assert radii == sorted(radii, reverse=True)
    assert len(set(radii)) == 4


def test_seed_decides_the_first_centre_only(X):
    same, other = greedy_k_center(X, 20, random_state=1), greedy_k_center(X, 20, random_state=2)
    assert np.array_equal(same[0], greedy_k_center(X, 20, random_state=1)[0])
    assert same[0][0] != other[0][0]
    assert other[0].tolist() == plain_greedy(X.astype(np.float32), 20, other[0][0])[0]


class TestFewRows:
    def test_size_beyond_the_rows_takes_them_all(self):
        X = np.random.default_rng(0).normal(size=(7, 3))
        indices, radius = greedy_k_center(X, 20)
        assert sorted(indices) == list(range(7))
        assert radius == 0.0

    @pytest.mark.parametrize("offset", [0.0, 100.0])
    def test_duplicates_are_taken_once(self, offset):
        rng = np.random.default_rng(0)
        X = np.repeat(rng.normal(size=(5, 16)), 40, axis=0) + offset
        indices, radius = greedy_k_center(X, 50)
        assert sorted(indices // 40) == [0, 1, 2, 3, 4]
        assert radius == 0.0

    def test_all_rows_the_same(self):
        indices, radius = greedy_k_center(np.full((30, 4), 3.3), 5)
        assert (len(indices), radius) == (1, 0.0)

    def test_one_far_row_does_not_make_the_others_the_same(self):
        X = np.random.default_rng(0).normal(size=(500, 4))
        X[7] = 1e4
        indices, _ = greedy_k_center(X, 100)
        assert len(indices) == len(set(indices)) == 100

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
    def test_rows_without_a_distance_are_an_error(self, bad):
        """One NaN made it choose the same rows again and again."""
        X = np.random.default_rng(0).normal(size=(500, 4))
        X[7, 2] = bad
        with pytest.raises(ValueError, match="rows hold NaN, infinity or values whose squares overflow"):
            greedy_k_center(X, 100)

    @pytest.mark.parametrize(("rows", "size"), [(0, 3), (3, 0)])
    def test_nothing_is_an_error(self, rows, size):
        with pytest.raises(ValueError, match=f"got {rows} rows and size={size}"):
            greedy_k_center(np.ones((rows, 2)), size)
