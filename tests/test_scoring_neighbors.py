import faiss
import numpy as np
import pytest

from anomalib_lite.machine.integers import onednn_fault
from anomalib_lite.scoring import neighbors
from anomalib_lite.scoring.blocks import BlockSearch
from anomalib_lite.scoring.neighbors import NeighborIndex


@pytest.fixture(params=["float32", "bfloat16", "int8", "faiss", "blocks"])
def index_of(request):
    if request.param == "int8" and onednn_fault():
        pytest.skip(onednn_fault())

    def build(bank, groups=None):
        return NeighborIndex(bank, groups, device="cpu", product=request.param)

    build.low_precision = request.param in ("bfloat16", "int8")
    return build


def clusters(n, *, spread, d=32, seed=0):
    """Rows in 20 clumps: norms are much larger than the distances that decide."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, d))
    return (centres[rng.integers(20, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def brute_force(queries, bank, k, allowed=None):
    queries, bank = queries.astype(np.float64), bank.astype(np.float64)
    distances = np.linalg.norm(queries[:, None] - bank[None], axis=2)
    if allowed is not None:
        distances[~allowed] = np.inf
    order = np.argsort(distances, axis=1)[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


def assert_distances_belong_to_indices(queries, bank, distances, indices):
    measured = np.linalg.norm(queries[:, None].astype(np.float64) - bank[indices].astype(np.float64), axis=2)
    found = np.isfinite(distances)
    assert distances[found] == pytest.approx(measured[found], rel=1e-5, abs=1e-6)
    assert (distances[:, 1:] >= distances[:, :-1]).all()


@pytest.mark.parametrize("m", [40, 900])  # without and with groups of bank rows; 900 is no multiple of the group
def test_agrees_with_faiss(index_of, m):
    rng = np.random.default_rng(0)
    bank, queries = (rng.normal(size=(n, 24)).astype(np.float32) for n in (m, 200))
    flat = faiss.IndexFlatL2(24)
    flat.add(bank)
    squared, expected = flat.search(queries, 5)
    distances, indices = index_of(bank).search(queries, 5)
    assert distances == pytest.approx(np.sqrt(squared), rel=1e-2 if index_of.low_precision else 1e-5)
    assert (indices == expected).mean() >= (0.999 if index_of.low_precision else 1.0)
    assert_distances_belong_to_indices(queries, bank, distances, indices)
    assert (distances.dtype, indices.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("spread", [0.1, 0.03])
def test_loses_only_near_ties_among_clumped_rows(index_of, spread):
    bank, queries = clusters(2000, spread=spread), clusters(100, spread=spread, seed=1)
    expected, _ = brute_force(queries, bank, 3)
    distances, indices = index_of(bank).search(queries, 3)
    assert_distances_belong_to_indices(queries, bank, distances, indices)
    excess = distances / expected - 1
    assert excess.min() > -1e-5
    assert excess.max() < 0.03
    assert excess.mean() < (5e-4 if index_of.low_precision else 1e-6)


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0), (1e6, 0), (1.0, 1000.0), (0.01, 10.0)])
def test_scale_and_distance_from_the_origin_do_not_matter(index_of, scale, offset):
    rng = np.random.default_rng(3)
    bank, queries = ((scale * rng.normal(size=(n, 16)) + offset).astype(np.float32) for n in (500, 100))
    expected, nearest = brute_force(queries, bank, 2)
    distances, indices = index_of(bank).search(queries, 2)
    assert distances == pytest.approx(expected, rel=1e-3)
    assert (indices == nearest).mean() > 0.99


@pytest.mark.parametrize("m", [50, 600])
def test_a_row_of_the_bank_is_at_distance_zero_from_itself(index_of, m):
    bank = clusters(m, spread=0.5) + 100
    distances, indices = index_of(bank).search(bank, 1)
    assert (distances == 0).all()
    assert np.array_equal(indices[:, 0], np.arange(m))


class TestExclude:
    @pytest.mark.parametrize("m", [60, 500])
    def test_equals_a_loop_over_the_other_groups(self, index_of, m, monkeypatch):
        monkeypatch.setattr(neighbors, "_QUERIES", 64)  # several blocks of queries
        rng = np.random.default_rng(1)
        groups = rng.integers(6, size=m)
        bank = (rng.normal(size=(m, 16)) + 3 * rng.normal(size=(6, 16))[groups]).astype(np.float32)
        expected, nearest = brute_force(bank, bank, 4, allowed=groups[:, None] != groups[None])
        distances, indices = index_of(bank, groups).search(bank, 4, exclude=groups)
        assert (groups[indices] != groups[:, None]).all()
        assert distances == pytest.approx(expected, rel=1e-2 if index_of.low_precision else 1e-5)
        assert (indices == nearest).mean() > 0.99
        assert_distances_belong_to_indices(bank, bank, distances, indices)

    @pytest.mark.parametrize("m", [10, 400])
    def test_is_infinite_where_too_few_are_allowed(self, index_of, m):
        groups = np.zeros(m, dtype=np.int64)
        groups[0] = 1
        bank = np.random.default_rng(2).normal(size=(m, 4)).astype(np.float32)
        distances, indices = index_of(bank, groups).search(bank[1:3], 3, exclude=np.array([0, 0]))
        assert (indices[:, 0] == 0).all()
        assert np.isfinite(distances[:, 0]).all()
        assert np.isinf(distances[:, 1:]).all()

    def test_needs_groups(self, index_of):
        bank = np.ones((3, 2), dtype=np.float32)
        with pytest.raises(ValueError, match="needs the groups of the bank rows"):
            index_of(bank).search(bank, 1, exclude=np.arange(3))


class TestSizes:
    # 64 rows share a group once the bank has 256: sizes around both, and k around the number of groups.
    @pytest.mark.parametrize(("m", "k"), [(1, 1), (5, 5), (63, 10), (255, 4), (256, 4), (257, 1), (300, 300), (320, 6)])
    def test_bank_and_k(self, index_of, m, k):
        rng = np.random.default_rng(m)
        bank, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (m, 30))
        distances, indices = index_of(bank).search(queries, k)
        assert distances == pytest.approx(brute_force(queries, bank, k)[0], rel=1e-2)
        assert all(len(set(row)) == k for row in indices)
        assert indices.max() < m

    def test_no_queries(self, index_of):
        distances, indices = index_of(np.ones((4, 3), dtype=np.float32)).search(np.ones((0, 3)), 2)
        assert distances.shape == indices.shape == (0, 2)

    def test_wrong_sizes_are_named(self, index_of):
        index = index_of(np.ones((4, 3), dtype=np.float32))
        with pytest.raises(ValueError, match="k=5 neighbours wanted from a bank of 4"):
            index.search(np.ones((2, 3)), 5)
        with pytest.raises(ValueError, match=r"queries have shape \(2, 4\), the bank holds 3-d"):
            index.search(np.ones((2, 4)), 1)
        for bank in (np.ones((0, 3)), np.ones(3)):
            with pytest.raises(ValueError, match="at least one row"):
                NeighborIndex(bank)


class TestBlocks:
    def test_a_large_bank_in_clumps_is_cut_and_an_even_one_is_not(self, monkeypatch):
        monkeypatch.setattr(neighbors, "FROM_ROWS", 1000)
        even = np.random.default_rng(0).normal(size=(6000, 32)).astype(np.float32)
        assert isinstance(NeighborIndex(clusters(6000, spread=0.02), device="cpu")._flat, BlockSearch)
        assert not isinstance(NeighborIndex(even, device="cpu")._flat, BlockSearch)
        assert BlockSearch(clusters(6000, spread=0.02)).share < 0.1 < BlockSearch(even).share

    def test_far_queries_and_repeated_rows(self):
        bank = np.repeat(clusters(700, spread=0.02), 3, axis=0)
        queries = np.concatenate([bank[:50], clusters(50, spread=2, seed=1), bank[:20] + 100])
        distances, _ = BlockSearch(bank).search(queries, 5)
        np.testing.assert_allclose(distances, brute_force(queries, bank, 5)[0], rtol=1e-5, atol=1e-6)
        assert (distances[:50, :3] == 0).all()
