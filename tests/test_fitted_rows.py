import numpy as np
import pytest

from anomalib_lite import Detector
from anomalib_lite.fitted.rows import FoldedRows, RowCollector, RowSelection
from anomalib_lite.images.synthetic import render_part


def fill(collector, n_images, patches=20, seed=0):
    """Give every image its own rows; returns them as (n_images, patches, 3)."""
    rows = np.random.default_rng(seed).normal(size=(n_images, patches, 3)).astype(np.float32)
    for image in range(n_images):
        collector.add(rows[image], image)
    return rows


@pytest.mark.parametrize("coreset_size", [None, 30])
class TestEveryCollector:
    def test_keeps_everything_within_its_budget(self, coreset_size):
        collector = RowCollector(200, coreset_size=coreset_size)
        rows = fill(collector, 10)
        kept, origins = collector.rows()
        assert np.array_equal(kept, rows.reshape(-1, 3))
        assert origins.tolist() == [[image, patch] for image in range(10) for patch in range(20)]

    def test_says_where_every_row_came_from(self, coreset_size):
        collector = RowCollector(100, coreset_size=coreset_size)
        rows = fill(collector, 60)
        kept, origins = collector.rows()
        assert np.array_equal(kept, rows[origins[:, 0], origins[:, 1]])
        assert len(np.unique(origins, axis=0)) == len(origins)

    def test_keeps_to_its_budget_after_every_image(self, coreset_size):
        collector = RowCollector(100, coreset_size=coreset_size)
        for image in range(60):
            collector.add(np.random.default_rng(image).normal(size=(20, 3)), image)
            assert collector._count <= 100
        assert len(collector.rows()[0]) >= 25

    def test_keeps_to_its_budget_when_one_image_is_larger(self, coreset_size):
        collector = RowCollector(50, coreset_size=coreset_size)
        fill(collector, 3, patches=1000)
        assert 0 < len(collector.rows()[0]) <= 50

    def test_follows_the_seed(self, coreset_size):
        kept = []
        for seed in (1, 1, 2):
            collector = RowCollector(100, coreset_size=coreset_size, random_state=seed)
            fill(collector, 60)
            kept.append(collector.rows()[1].tolist())
        assert kept[0] == kept[1]
        assert kept[0] != kept[2]

    def test_is_empty_afterwards(self, coreset_size):
        collector = RowCollector(200, coreset_size=coreset_size)
        fill(collector, 3)
        collector.rows()
        collector.add(np.ones((5, 3)), 7)
        assert collector.rows()[1][:, 0].tolist() == [7] * 5


class TestThinning:
    def test_by_k_center_keeps_rare_rows(self):
        rng = np.random.default_rng(0)
        planted = {4: [30.0, 0, 0], 31: [0, -30.0, 0], 57: [0, 0, 30.0]}
        collector = RowCollector(100, coreset_size=30)
        for image in range(60):
            rows = rng.normal(size=(20, 3))
            if image in planted:
                rows[11] = planted[image]
            collector.add(rows, image)
        origins = collector.rows()[1].tolist()
        assert all([image, 11] in origins for image in planted)

    def test_by_k_center_covers_the_stream(self):
        collector = RowCollector(400, coreset_size=100)
        rows = fill(collector, 300).reshape(-1, 3)
        kept = collector.rows()[0]
        radius = np.sqrt(((rows[:, None] - kept) ** 2).sum(axis=2)).min(axis=1).max()
        chance = rows[np.random.default_rng(0).choice(len(rows), len(kept), replace=False)]
        assert radius < 0.7 * np.sqrt(((rows[:, None] - chance) ** 2).sum(axis=2)).min(axis=1).max()

    def test_at_random_gives_every_image_the_same_chance(self):
        """Early and late images, of which the early ones are thinned many times."""
        n_images, n_seeds = 64, 60
        counts = np.zeros(n_images)
        for seed in range(n_seeds):
            collector = RowCollector(200, coreset_size=None, random_state=seed)
            fill(collector, n_images, seed=seed)
            counts += np.bincount(collector.rows()[1][:, 0], minlength=n_images)
        eighths = counts.reshape(8, -1).sum(axis=1)
        assert eighths.sum() > n_seeds * 80
        # Chance varies a sum of some 1000 by 3 %.
        assert eighths / eighths.mean() == pytest.approx(np.ones(8), abs=0.15)
        # Which patch it is does not matter either.
        assert counts.min() > 0


def test_without_a_budget_everything_is_kept():
    collector = RowCollector(None, coreset_size=None)
    rows = fill(collector, 60)
    assert np.array_equal(collector.rows()[0], rows.reshape(-1, 3))


class TestSelection:
    @pytest.fixture
    def contaminated(self):
        """One of 30 images is bad all over, far off in its own direction."""
        rows = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
        rows[100:110, 1] += 25
        return rows, np.repeat(np.arange(30), 10)

    def kept(self, trim, rows, groups):
        selection = RowSelection(trim).learn(rows, groups)
        return np.concatenate([10 * i + selection.kept(rows[10 * i : 10 * i + 10], i) for i in range(30)])

    def test_drops_the_rows_that_are_far_from_those_of_other_images(self, contaminated):
        assert not set(range(100, 110)) & set(self.kept(0.05, *contaminated).tolist())

    def test_drops_no_more_than_its_share(self, contaminated):
        assert len(self.kept(0.1, *contaminated)) == 270
        assert len(self.kept(0.0, *contaminated)) == 300

    def test_needs_two_images(self, contaminated):
        with pytest.raises(ValueError, match="all rows are of one; set it to 0"):
            RowSelection(0.1).learn(contaminated[0], np.zeros(300, dtype=np.int64))

    @pytest.mark.parametrize("trim", [1.0, -0.1])
    def test_shares_only(self, trim):
        with pytest.raises(ValueError, match=f"trim={trim} is a share"):
            RowSelection(trim)

    def test_stands_before_the_thinning(self, monkeypatch):
        """k-center keeps the oddest rows: thinned first, the rows to be dropped were those that stayed."""
        parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(16)]
        parts[5] = np.random.default_rng(9).integers(0, 255, parts[5].shape, dtype=np.uint8)  # 64 bad patches of 1024
        monkeypatch.setattr("anomalib_lite.scoring.knn._MAX_ROWS", 300)
        detector = Detector(image_size=64, bank_size=150, trim=0.08).fit(parts)
        assert (detector.fitted_.origins[:, 0] == 5).sum() == 0
        assert len(detector.fitted_.origins) == 150

    @pytest.mark.parametrize("scorer", ["kmeans", "subspace"])
    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_serves_every_scorer(self, scorer, level):
        parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(12)]
        noise = np.random.default_rng(9).integers(0, 255, parts[5].shape, dtype=np.uint8)
        # In float32, since the noise is among the images that integers would be calibrated on.
        network = {"image_size": 64, "dtype": "float32", "level": level}
        options = {**network, "n_clusters": 8, "scorer": scorer, "n_components": 6}
        hidden, found = (Detector(trim=trim, **options).fit([*parts, noise]) for trim in (0.0, 0.1))
        assert found.score([noise]).scores[0] > 1.2 * hidden.score([noise]).scores[0]


class TestFullBank:
    def test_is_not_thinned(self, monkeypatch):
        """Beyond 262 144 rows it was thinned to a quarter without a word."""
        parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(8)]
        monkeypatch.setattr("anomalib_lite.scoring.knn._MAX_ROWS", 100)
        detector = Detector(image_size=64, selection="full", bank_size=50).fit(parts)
        assert len(detector.fitted_.scorer.bank_) == 8 * 64

    def test_that_does_not_fit_is_refused_before_it_is_collected(self, monkeypatch):
        parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(8)]
        monkeypatch.setattr("anomalib_lite.fitted.fitting.available_bytes", lambda: 1000)
        with pytest.raises(ValueError, match=r"a bank of all 512 rows takes about .* choose selection='k-center'"):
            Detector(image_size=64, selection="full").fit(parts)


class TestFoldedRows:
    """What is kept of one fold does not hang on another, so that it may be left out."""

    @staticmethod
    def filled(blocks, **parameters):
        collected = FoldedRows(2, **parameters)
        for image, (fold, rows) in enumerate(blocks):
            collected.add(rows, image, np.arange(len(rows)), fold)
        return collected.rows(np.array([fold for fold, _ in blocks]))

    @pytest.mark.parametrize("budget", [60, 10_000])
    def test_a_fold_is_thinned_as_if_it_were_alone(self, budget):
        rng = np.random.default_rng(0)
        blocks = [(i % 2, rng.normal(size=(20, 3)).astype(np.float32)) for i in range(10)]
        rows, origins = self.filled(blocks, budget=2 * budget, coreset_size=30)
        mine = origins[:, 0] % 2 == 0
        assert (mine.sum(), (~mine).sum()) == (30, 30)  # as many as the bank, each
        blocks = [(fold, rows if fold == 0 else 100 * rows) for fold, rows in blocks]
        again, their_origins = self.filled(blocks, budget=2 * budget, coreset_size=30)
        assert np.array_equal(again[their_origins[:, 0] % 2 == 0], rows[mine])

    def test_images_may_change_their_fold_at_the_end(self):
        blocks = [(i % 2, np.full((3, 2), i, dtype=np.float32)) for i in range(4)]
        collected = FoldedRows(2, None, coreset_size=100)
        for image, (fold, rows) in enumerate(blocks):
            collected.add(rows, image, np.arange(3), fold)
        rows, origins = collected.rows(np.array([0, 0, 0, 1]))
        assert origins[:, 0].tolist() == [0] * 3 + [2] * 3 + [1] * 3 + [3] * 3
        assert np.array_equal(rows[:, 0], origins[:, 0])

    def test_what_is_thinned_at_random_is_one(self):
        blocks = [(i % 2, np.full((50, 2), i, dtype=np.float32)) for i in range(10)]
        rows, origins = self.filled(blocks, budget=100, coreset_size=None)
        assert 20 < len(rows) <= 100
        assert np.array_equal(rows[:, 0], origins[:, 0])

    def test_an_image_of_which_nothing_is_kept(self):
        blocks = [(0, np.empty((0, 2), np.float32)), (1, np.eye(3, 2, dtype=np.float32))]
        rows, origins = self.filled(blocks, budget=9, coreset_size=4)
        assert len(rows) == 2
        assert set(origins[:, 0]) == {1}
