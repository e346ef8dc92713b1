"""What a detector is given: pictures of more than 8 bits, roots of data sets, pages and files that say little."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from anomalib_lite import Classifier, Detector, Segmenter, diagnose, make_metal_nut
from anomalib_lite.images.synthetic import render_part

SMALL = {"image_size": 64, "workers": 0, "dtype": "float32"}


@pytest.fixture(scope="module")
def parts():
    return [render_part(np.random.default_rng(i), 64)[0] for i in range(14)]


def deep(folder, parts, bits):
    """The parts in grey, as a camera of so many bits writes them into 16-bit files."""
    folder.mkdir()
    for i, part in enumerate(parts):
        grey = part.mean(axis=2) / 255
        Image.fromarray(np.round(grey * (2**bits - 1)).astype(np.uint16)).save(folder / f"{i:02d}.png")
    return folder


class TestBits:
    @pytest.mark.parametrize("bits", [10, 12, 14])
    def test_in_files_of_sixteen_score_as_if_all_were_used(self, parts, tmp_path, bits):
        few, all_used = deep(tmp_path / "few", parts, bits), deep(tmp_path / "all", parts, 16)
        with pytest.warns(UserWarning, match=rf"no value above {2**bits - 1}, so that is taken for white"):
            detector = Detector(**SMALL).fit(few)
        assert detector.fitted_.value_range == (0, 2**bits - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = Detector(**SMALL).fit(all_used)
        assert detector.score(few).scores == pytest.approx(expected.score(all_used).scores, rel=0.05, abs=0.02)

    def test_are_kept_in_the_model_and_hold_for_new_pictures(self, parts, tmp_path):
        folder = deep(tmp_path / "good", parts, 12)
        with pytest.warns(UserWarning, match="taken for white"):
            detector = Detector(**SMALL).fit(folder)
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert loaded.fitted_.value_range == (0, 4095)
        dark = tmp_path / "dark.png"  # its own brightest value would fit 10 bits
        Image.fromarray((np.array(Image.open(folder / "03.png")) // 8).astype(np.uint16)).save(dark)
        assert np.array_equal(loaded.score(dark).scores, detector.score(dark).scores)
        assert loaded.score(dark).scores[0] > 1.5 * loaded.score(folder / "03.png").scores[0]

    def test_a_picture_that_leaves_the_range_is_named(self, parts, tmp_path):
        folder = deep(tmp_path / "good", parts, 12)
        detector = Detector(bits=12, **SMALL).fit(folder)
        bright = tmp_path / "bright.png"
        Image.fromarray(np.full((64, 64), 9000, np.uint16)).save(bright)
        scores = detector.score([bright, folder / "01.png"])
        assert list(scores.notes) == [str(bright)]
        assert "leave the range 0 to 4095, and are clipped" in scores.notes[str(bright)]
        assert scores.to_dict()["notes"] == scores.notes

    def test_can_be_said_instead_of_guessed(self, parts, tmp_path):
        folder = deep(tmp_path / "good", parts, 12)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            said = Detector(value_range=(0, 4095), **SMALL).fit(folder)
            whole = Detector(value_range=None, **SMALL).fit(folder)
        assert (said.fitted_.value_range, whole.fitted_.value_range) == ((0, 4095), None)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"bits": 12, "value_range": (0, 5)}, "give one of them"),
            ({"bits": 0}, "bits from 1 to 32"),
            ({"value_range": (5, 5)}, "black below white"),
            ({"max_pixels": 0}, "max_pixels=0"),
        ],
    )
    def test_wrong_ones_are_named(self, parameters, message):
        with pytest.raises(ValueError, match=message):
            Detector(**parameters)


class TestRoots:
    """A data set's root holds its test images and masks, which were learnt as good ones."""

    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory):
        return make_metal_nut(tmp_path_factory.mktemp("set") / "nut", n_train=6, n_good=2, n_defect=2, size=64)

    def test_is_refused_and_the_folder_to_give_is_named(self, root):
        for use in (Detector(**SMALL).fit, lambda folder: diagnose(folder, **SMALL)):
            with pytest.raises(ValueError, match=r"holds more than good images.*nut/train/good"):
                use(root)

    def test_can_be_meant(self, root):
        assert Detector(**SMALL).fit(root, everything_is_good=True).n_train_ > 6

    def test_the_good_images_alone_are_learnt(self, root):
        assert Detector(**SMALL).fit(root / "train" / "good").n_train_ == 6


def test_an_open_file_is_one_image(parts):
    detector = Detector(**SMALL).fit(parts)
    buffer = io.BytesIO()
    Image.fromarray(parts[0]).save(buffer, "PNG")
    buffer.seek(0)
    assert len(detector.score(buffer)) == 1


def test_more_pages_are_named(parts, tmp_path):
    pages = [Image.fromarray(part) for part in parts[:3]]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for i, part in enumerate(parts):
        Image.fromarray(part).save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match=r"1 training images are not wholly shown: pages\.tif: holds several pages"):
        detector = Detector(**SMALL).fit(tmp_path)
    assert list(detector.score(tmp_path).notes) == ["pages.tif"]


def test_max_pixels_reaches_reading(parts, tmp_path):
    big = tmp_path / "big.png"
    Image.new("RGB", (200, 200)).save(big)
    detector = Detector(max_pixels=64 * 64, **SMALL).fit(parts)
    assert "million are allowed" in detector.score(big).unreadable[0].reason
    path = detector.save(tmp_path / "model.safetensors")
    assert len(Detector.load(path).score(big)) == 0
    assert len(Detector.load(path, max_pixels=10**6).score(big)) == 1


class TestSeveralShotsOfOnePart:
    """Each is recognised by its twins when it is scored as if unseen: the threshold is far too low for other parts."""

    @pytest.fixture(scope="class")
    def shots(self, parts):
        rng = np.random.default_rng(3)

        def shot(part):
            moved = np.roll(part, rng.integers(-1, 2, size=2), axis=(0, 1)) * rng.uniform(0.97, 1.03)
            return np.clip(moved + rng.normal(0, 2, part.shape), 0, 255).astype(np.uint8)

        return [shot(part) for part in parts[:8] for _ in range(5)]

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_promise_nothing(self, shots, parts, level, tmp_path):
        with pytest.warns(UserWarning, match=r"\d parts seem to have been photographed .* no false-alarm"):
            detector = Detector(level=level, false_alarm_rate=0.05, **SMALL).fit(shots)
        calibration = detector.fitted_.calibration
        assert not calibration.guarantee_met
        assert "no false-alarm rate is promised" in calibration.explain()
        assert not calibration.at_rate(0.2).guarantee_met
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert not loaded.score(parts[8:]).guarantee_met
        assert loaded.fitted_.calibration.explain() == calibration.explain()

    def test_single_pictures_do(self, parts):
        many = [*parts, *(render_part(np.random.default_rng(100 + i), 64)[0] for i in range(16))]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Detector(false_alarm_rate=0.05, **SMALL).fit(many).fitted_.calibration.guarantee_met


@pytest.mark.parametrize(
    "make",
    [
        lambda size: Detector(image_size=size),
        lambda size: Classifier("cnn", image_size=size),
        lambda size: Classifier("linear", image_size=size),
        lambda size: Segmenter(image_size=size),
    ],
)
@pytest.mark.parametrize("size", [0, -1, 4096])
def test_a_size_that_nothing_can_see_is_named(make, size):
    """Zero was taken for "the default"."""
    with pytest.raises(ValueError, match=f"image_size={size}"):
        make(size)
