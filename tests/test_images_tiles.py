"""Tiles: a large picture is seen through windows, and stays one picture without seams."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from anomalib_lite import Detector
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import embed_source
from anomalib_lite.files import model_file
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.fitted import fitting
from anomalib_lite.images import framing, open_source
from anomalib_lite.images.framing import Frame, check_tiles, choose_frame
from anomalib_lite.images.tiles import cut, window_starts, windows_needed

SMALL = {"dtype": "float32", "workers": 0, "bank_size": 400}


def strip(seed, size=(128, 320), defect_at=None):
    """A brushed surface (H, W, 3), with a dark spot around (y, x) if asked for."""
    rng = np.random.default_rng(seed)
    rows = 150 + 12 * rng.normal(size=(size[0], 1, 1)) + 5 * rng.normal(size=(*size, 1))
    if defect_at is not None:
        y, x = (np.arange(length) - at for length, at in zip(size, defect_at, strict=True))
        rows -= 140 * (np.hypot(y[:, None], x[None]) < 5)[..., None]
    return np.clip(np.repeat(rows, 3, axis=2), 0, 255).astype(np.uint8)


class TestWindows:
    @pytest.mark.parametrize(
        ("length", "window", "count"),
        [(64, 64, 1), (128, 64, 2), (320, 80, 5), (1008, 96, 11), (1008, 96, 40), (208, 112, 2)],
    )
    def test_cover_everything(self, length, window, count):
        starts = window_starts(length, window, count)
        assert len(starts) == count
        assert starts[0] == 0
        assert starts[-1] + window == length
        assert all(0 <= after - before <= window for before, after in itertools.pairwise(starts))
        assert all(start % 16 == 0 for start in starts)

    @pytest.mark.parametrize(
        ("length", "window", "overlap", "count"),
        [(100, 100, 0.5, 1), (200, 100, 0, 2), (200, 100, 0.5, 3), (10, 20, 0, 1)],
    )
    def test_are_as_many_as_the_overlap_takes(self, length, window, overlap, count):
        assert windows_needed(length, window, overlap) == count

    @pytest.mark.parametrize("own", [(8, 10), (7, 9)])
    def test_every_patch_comes_from_one_window_and_from_its_place(self, own):
        size, window, count = (128, 240), (64, 80), (3, 4)
        windows = cut(size, window, count, own)
        grid = round(size[0] * own[0] / window[0]), round(size[1] * own[1] / window[1])
        numbers = np.concatenate([one.patches for one in windows])
        assert sorted(numbers.tolist()) == list(range(grid[0] * grid[1]))
        for one in windows:
            there = np.stack(np.divmod(one.patches, grid[1])) + 0.5
            here = np.stack(np.divmod(one.own, own[1])) + 0.5
            corner = np.array([[one.rows.start], [one.columns.start]])
            cell = np.array([[window[0] / own[0]], [window[1] / own[1]]])
            whole = np.array([[size[0] / grid[0]], [size[1] / grid[1]]])
            assert (np.abs(there * whole - (corner + here * cell)) <= cell).all()


class TestFrame:
    def test_of_tiles_in_pixels_of_the_picture(self):
        assert choose_frame([(500, 1250)], 256, tiles=500).size == (256, 640)
        assert choose_frame([(500, 1250)], 256, tiles=250).size == (512, 1280)

    def test_of_rows_and_columns(self):
        assert choose_frame([(400, 1000)], 64, tiles=(2, 5)).size == (128, 320)
        assert choose_frame([(400, 1000)], 64, tiles=(2, 5), tile_overlap=0.5).size == (96, 240)

    def test_a_tile_is_seen_at_no_more_pixels_than_it_has_unless_that_is_asked_for(self):
        assert choose_frame([(400, 1000)], None, tiles=(2, 5)).size == (384, 960)  # 192 of the 200 that a tile has
        assert choose_frame([(4000, 10_000)], None, tiles=(2, 5)).size == (768, 1920)  # 384 of 2 000

    def test_a_network_is_shown_windows_of_what_is_too_large(self):
        frame = choose_frame([(4000, 10_000)], None, tiles=500)
        assert frame.size == (3072, 7680)
        assert frame.window == (1024, 1024)
        assert frame.count == (4, 9)

    @pytest.mark.parametrize(
        ("tiles", "message"),
        [
            (501, "tiles=501: tiles of so many pixels do not fit pictures of 500 × 1250; give at most 500"),
            ((600, 2), "are more than pictures of 500 × 1250 have pixels"),
        ],
    )
    def test_tiles_that_do_not_fit(self, tiles, message):
        with pytest.raises(ValueError, match=message):
            choose_frame([(500, 1250)], 64, tiles=tiles)

    def test_more_than_there_is_memory_for_is_refused_with_the_way_out(self):
        with pytest.raises(ValueError, match="give a smaller image_size, or larger tiles"):
            choose_frame([(4000, 10_000)], 2000, tiles=16)

    def test_both_sides_of_a_tile_cannot_be_said(self):
        with pytest.raises(ValueError, match="of tiles give one number"):
            choose_frame([(500, 1250)], (64, 96), tiles=500)

    @pytest.mark.parametrize("tiles", [0, 15, True, (0, 2), (2,), (1, 2, 3), "3", 64.5, (1.5, 2)])
    def test_what_is_no_number_of_tiles(self, tiles):
        with pytest.raises(ValueError, match=r"tiles=.*give \(rows, columns\)"):
            check_tiles(tiles)

    @pytest.mark.parametrize("overlap", [-0.1, 1, 1.5])
    def test_what_is_no_overlap(self, overlap):
        with pytest.raises(ValueError, match="tile_overlap="):
            Detector(tiles=64, tile_overlap=overlap)

    def test_tiles_larger_than_the_pictures_are_refused_before_the_work(self):
        with pytest.raises(ValueError, match="do not fit pictures of 128 × 320"):
            Detector(tiles=200, **SMALL).fit([strip(seed) for seed in range(3)])


@pytest.fixture(scope="module")
def windows():
    """Small windows, so that small pictures have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "_WHOLE_PIXELS", 0)
        patch.setattr(framing, "_WINDOW", 112)
        yield


@pytest.fixture(scope="module")
def tiled(windows):
    detector = Detector(image_size=64, tiles=(2, 5), **SMALL).fit([strip(seed) for seed in range(8)])
    assert detector.embedder.frame.count == (2, 4)
    return detector


@pytest.mark.usefixtures("windows")
class TestDetector:
    def test_one_picture_is_one_item(self, tiled):
        scores = tiled.score([strip(24), strip(21, defect_at=(30, 200))])
        assert len(scores) == 2
        assert tiled.fitted_.calibration.n == 8
        assert scores.alarms.tolist() == [False, True]
        y, x = np.unravel_index(scores.anomaly_map(1).argmax(), (128, 320))
        assert np.hypot(y - 30, x - 200) < 8
        left, top, right, bottom = scores.nearest[1].box
        assert left - 4 <= 200 <= right + 4
        assert top - 4 <= 30 <= bottom + 4

    def test_a_map_has_no_seams(self, monkeypatch):
        """Patches come from the middle of windows, where they are those of the whole picture."""
        picture = strip(22, (128, 640), defect_at=(64, 320))
        monkeypatch.setattr(framing, "_WINDOW", 400)
        monkeypatch.setattr(framing, "_SHARED", 192 / 400)
        cut_up = choose_frame([(128, 640)], 128)
        assert cut_up.count == (1, 3)
        one, other = (embedded(frame, picture) for frame in (cut_up, Frame((128, 640))))
        assert one.shape == other.shape == (16, 80, 384)
        assert np.linalg.norm(one - other, axis=-1).max() < 0.02 * np.linalg.norm(other, axis=-1).min()

    def test_a_defect_is_found_wherever_it_lies(self, tiled):
        places = [(y, x) for y in (10, 64, 118) for x in (10, 64, 128, 160, 192, 310)]
        scores = tiled.score([strip(30 + i, defect_at=place) for i, place in enumerate(places)])
        assert scores.alarms.all()
        assert scores.scores.max() < 1.6 * scores.scores.min()

    def test_batches_and_files_change_nothing(self, tiled, tmp_path):
        pictures = [strip(40), strip(41, defect_at=(90, 90))]
        expected = tiled.score(pictures)
        again = Detector.load(tiled.save(tmp_path / "model.safetensors"), batch_size=3)
        assert again.fitted_.frame == tiled.fitted_.frame
        assert_allclose(again.score(pictures).scores, expected.scores, rtol=1e-4)

    def test_a_file_whose_windows_do_not_fit_its_grid(self, tiled, tmp_path):
        path = tiled.save(tmp_path / "model.safetensors")
        arrays, values = model_file.load_file(path)
        values["frame"]["size"] = [values["frame"]["size"][0], values["frame"]["size"][1] - 16]
        model_file.save_file(path, arrays, values)
        with pytest.raises(ModelFileError, match="does not fit embeddings"):
            Detector.load(path)

    @pytest.mark.parametrize("size", [(64, 160), (128, 200), (20, 320)])
    def test_pictures_of_other_sizes_and_shapes(self, tiled, size):
        """Those that are smaller than a tile too."""
        scores = tiled.score([strip(50, size)])
        assert scores.anomaly_map(0).shape == size
        assert np.isfinite(scores.anomaly_map(0)).all()

    def test_a_mixture_of_shapes_in_training(self):
        pictures = [strip(seed, size) for seed, size in enumerate([(128, 320), (128, 320), (128, 128)] * 3)]
        with pytest.warns(UserWarning, match="3 of 9 pictures looked at have other proportions"):
            detector = Detector(image_size=64, tiles=120, **SMALL).fit(pictures)
        assert detector.n_train_ == 9

    @pytest.mark.parametrize("scorer", ["knn", "kmeans", "dbscan", "subspace"])
    def test_any_scorer(self, scorer):
        detector = Detector(image_size=64, tiles=(2, 5), scorer=scorer, n_clusters=20, **SMALL)
        scores = detector.fit([strip(seed) for seed in range(8)]).score([strip(60), strip(61, defect_at=(64, 160))])
        assert scores.scores[1] > scores.scores[0]

    def test_the_global_level_takes_the_mean_of_windows(self):
        detector = Detector(image_size=64, tiles=(2, 5), level="global", **SMALL)
        scores = detector.fit([strip(seed) for seed in range(8)]).score([strip(70)], vectors=True)
        assert scores.vectors.shape == (1, 768)
        assert np.isfinite(scores.scores).all()

    def test_integers_are_calibrated_on_windows(self):
        detector = Detector(image_size=64, tiles=(2, 5), **{**SMALL, "dtype": "int8", "engine": "reference"})
        scores = detector.fit([strip(seed) for seed in range(8)]).score([strip(80), strip(81, defect_at=(64, 160))])
        assert scores.alarms.tolist() == [False, True]

    def test_little_is_held_of_a_picture_of_many_windows(self, tiled, monkeypatch):
        monkeypatch.setattr(fitting, "_HELD_BYTES", 1)
        found = Detector(image_size=64, tiles=(2, 5), **SMALL).fit([strip(seed) for seed in range(8)])
        assert found.fitted_.train_scores == pytest.approx(tiled.fitted_.train_scores)


def embedded(frame, picture):
    embedder = Embedder(dtype="float32").framed(frame)
    (image,) = embed_source(embedder, open_source([picture]), np.array([0]))
    return image.embedding
