"""Proportions: pictures of any shape, seen as they are, by one frame that the training pictures chose."""

import io
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from anomalib_lite import Detector, UnreadableImageError
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images import open_source
from anomalib_lite.images.framing import LARGEST_FRAME, LARGEST_PIXELS, Frame, choose_frame, picture_sizes
from anomalib_lite.images.loading import load

SMALL = {"image_size": 64, "dtype": "float32", "workers": 0, "bank_size": 400}


def strip(seed, size=(64, 160), defect_at=None):
    """A brushed surface (H, W, 3), with a dark spot around (y, x) if asked for."""
    rng = np.random.default_rng(seed)
    rows = 150 + 12 * rng.normal(size=(size[0], 1, 1)) + 5 * rng.normal(size=(*size, 1))
    if defect_at is not None:
        y, x = (np.arange(length) - at for length, at in zip(size, defect_at, strict=True))
        rows -= 140 * (np.hypot(y[:, None], x[None]) < 6)[..., None]
    return np.clip(np.repeat(rows, 3, axis=2), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector():
    return Detector(**SMALL).fit([strip(seed) for seed in range(12)])


class TestFrame:
    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ([(300, 300)] * 3, (64, 64)),
            ([(100, 102), (100, 99)], (64, 64)),  # within 3 % of a square
            ([(500, 1250)] * 3, (64, 160)),
            ([(1250, 500)] * 3, (160, 64)),
            ([(100, 200), (100, 250), (100, 1000)], (64, 160)),  # the median
        ],
    )
    def test_has_the_proportions_of_the_training_pictures(self, sizes, expected):
        assert choose_frame(sizes, 64) == Frame(expected)

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ([(320, 320)], (320, 320)),
            ([(300, 300)], (288, 288)),  # a multiple of 32
            ([(1000, 1000)], (384, 384)),
            ([(40, 40)], (128, 128)),
            ([(500, 1000)], (384, 768)),
        ],
    )
    def test_sees_as_many_pixels_as_the_camera_gave(self, sizes, expected):
        assert choose_frame(sizes, None) == Frame(expected)

    def test_both_sides_can_be_said(self):
        assert choose_frame([(500, 1250)], (96, 48)) == Frame((96, 48))

    def test_pictures_that_are_too_long_are_refused_with_the_way_out(self):
        with pytest.raises(ValueError, match=r"2048 × 102400 pixels, .* the most; give a smaller image_size"):
            choose_frame([(400, 20_000)], 2048)

    def test_what_is_too_large_for_a_pass_is_seen_through_windows(self):
        frame = choose_frame([(400, 4000)], 512)
        assert frame.size == (512, 5120)
        assert frame.window == (512, 1024)
        assert frame.count == (1, 6)

    @pytest.mark.parametrize(
        ("original", "content"),
        [((100, 250), (64, 160)), ((100, 256), (64, 160)), ((100, 100), (64, 64)), ((50, 500), (16, 160))],
    )
    def test_stretches_by_no_more_than_three_percent(self, original, content):
        assert Frame((64, 160)).content(original) == content

    def test_what_a_picture_leaves_over_is_its_mirror_and_is_not_judged(self):
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        placed = Frame((64, 160)).place(pixels)
        assert np.array_equal(placed[:, :64], pixels)
        assert np.array_equal(placed[:, 64:128], pixels[:, ::-1])
        assert Frame((64, 160)).judged((64, 64), (8, 20)).tolist() == [
            row * 20 + column for row in range(8) for column in range(8)
        ]
        assert Frame((64, 160)).judged((64, 160), (8, 20)) is None

    def test_the_thinnest_picture_has_a_patch(self):
        assert Frame((64, 160)).judged((1, 1000), (8, 20)).tolist() == list(range(20))

    @pytest.mark.parametrize(
        "values",
        [
            {"size": [64]},
            {"size": [64, 0]},
            {"size": [64.5, 64]},
            {"size": [LARGEST_PIXELS, 2], "window": [LARGEST_PIXELS, 2]},
            {"size": [LARGEST_FRAME, 2], "count": [LARGEST_FRAME // 64, 1], "window": [128, 2]},
            {"stretches": "no"},
            {"count": [1, 2]},
            {"window": [64, 96]},
            {"count": [1, 2], "window": [64, 32]},
        ],
    )
    def test_of_a_stranger_is_checked(self, values):
        known = json.loads(json.dumps(Frame((64, 160)).to_dict()))
        assert Frame.read(known) == Frame((64, 160))
        with pytest.raises(ValueError, match="is no frame"):
            Frame.read(known | values)

    def test_sizes_are_read_from_headers_and_the_unreadable_passed_over(self, tmp_path):
        for i in range(3):
            Image.fromarray(strip(i)).save(tmp_path / f"{i}.png")
        (tmp_path / "1.png").write_bytes(b"broken")
        assert picture_sizes(open_source(tmp_path)) == [(64, 160)] * 2

    def test_other_loading_stretches(self):
        (loaded,) = load(open_source([strip(0)]), size=32, workers=0)
        assert loaded.pixels.shape == (32, 32, 3)


class TestDetector:
    def test_sees_pictures_in_their_proportions(self, detector):
        assert detector.embedder.image_size == (64, 160)
        assert detector.fitted_.grid == (8, 20)
        assert detector.config()["frame"]["size"] == [64, 160]

    def test_finds_a_defect_where_it_is(self, detector):
        scores = detector.score([strip(90), strip(91, defect_at=(40, 120))])
        assert scores.alarms.tolist() == [False, True]
        found = scores.anomaly_map(1)
        y, x = np.unravel_index(found.argmax(), found.shape)
        assert abs(y - 40) <= 8
        assert abs(x - 120) <= 8
        left, top, right, bottom = scores.nearest[1].box
        assert left - 4 <= 120 <= right + 4
        assert top - 4 <= 40 <= bottom + 4

    @pytest.mark.parametrize("size", [(64, 96), (64, 64), (30, 160), (128, 320)])
    def test_a_picture_of_another_shape_keeps_its_own(self, detector, size):
        """Laid into the frame: the map has its size, and a defect stays in its place."""
        at = size[0] // 2, 3 * size[1] // 4
        good, bad = strip(92, size), strip(93, size, defect_at=at)
        scores = detector.score([good, bad])
        assert scores.scores[1] > scores.scores[0]
        found = scores.anomaly_map(1)
        assert found.shape == size
        assert np.isfinite(found).all()
        y, x = np.unravel_index(found.argmax(), found.shape)
        assert np.hypot(y - at[0], x - at[1]) < 0.3 * min(size)
        left, top, right, bottom = scores.nearest[1].box
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]

    def test_the_map_of_a_thin_picture_takes_no_more_memory_than_its_pixels(self, detector):
        """Its frame has 64 times as many; a stranger's picture of one row must not fill the memory."""
        scores = detector.score([strip(97, (1, 400_000))])
        scores.anomaly_map(0)  # weights of this size are kept from here on
        tracemalloc.start()
        found = scores.anomaly_map(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.shape == (1, 400_000)
        assert np.isfinite(found).all()
        assert peak < 32 * found.nbytes

    def test_a_report_paints_such_a_picture_in_its_own_place(self, detector):
        from anomalib_lite.report.pictures import heat_maps

        (content,) = heat_maps(detector.score([strip(98, (64, 64), defect_at=(20, 44))]))
        heat = np.array(Image.open(io.BytesIO(content)))  # places in the palette, which rise with the score
        rows, columns = heat.shape
        y, x = np.argwhere(heat == heat.max()).mean(axis=0) + 0.5
        assert abs(64 * y / rows - 20) < 10
        assert abs(64 * x / columns - 44) < 10

    def test_comes_back_from_a_file(self, detector, tmp_path):
        again = Detector.load(detector.save(tmp_path / "model.safetensors"))
        pictures = [strip(94), strip(95, (64, 90))]
        assert again.fitted_.frame == detector.fitted_.frame
        assert np.array_equal(again.score(pictures).scores, detector.score(pictures).scores)

    def test_a_mixture_of_shapes_is_learnt_whole(self):
        pictures = [strip(seed, size) for seed, size in enumerate([(64, 64), (64, 96), (64, 128)] * 4)]
        with pytest.warns(UserWarning, match="8 of 12 pictures looked at have other proportions than 64 × 96"):
            detector = Detector(**SMALL).fit(pictures)
        assert detector.n_train_ == 12
        assert detector.embedder.image_size == (64, 96)
        bank, grid = detector.fitted_.origins, detector.fitted_.grid
        squares = bank[np.isin(bank[:, 0], range(0, 12, 3)), 1]
        assert len(squares)
        assert (squares % grid[1] < 8).all()  # nothing of what was filled up

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_both_sides_can_be_said(self, level):
        detector = Detector(**{**SMALL, "image_size": (48, 96)}, level=level).fit([strip(seed) for seed in range(6)])
        assert detector.embedder.image_size == (48, 96)
        assert np.isfinite(detector.score([strip(7)]).scores).all()

    @pytest.mark.parametrize("size", [(16, 64), (64,), (64, 64, 64), (64.5, 64), "64", (4096, 4096)])
    def test_sizes_that_are_none(self, size):
        with pytest.raises(ValueError, match="image_size="):
            Detector(image_size=size)

    def test_a_file_whose_frame_does_not_fit_its_grid(self, detector, tmp_path):
        from anomalib_lite.files import model_file

        path = detector.save(tmp_path / "model.safetensors")
        arrays, values = model_file.load_file(path)
        values["frame"]["size"] = values["frame"]["window"] = [64, 320]
        model_file.save_file(path, arrays, values)
        with pytest.raises(ModelFileError, match="does not fit embeddings"):
            Detector.load(path)

    def test_an_unreadable_picture_is_listed_as_ever(self, detector):
        scores = detector.score([b"broken", strip(96)])
        assert len(scores.unreadable) == 1
        with pytest.raises(UnreadableImageError):
            detector.score([b"broken"], on_unreadable="raise")
