"""What goes wrong on the way in: each ends in a clear error or in an honest result."""

import errno
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from anomalib_lite import Detector, ModelFileError, NoGoodImagesError, UnreadableImageError
from anomalib_lite.files import atomic
from anomalib_lite.images.mvtec import open_mvtec

LEVELS = ("patch", "global")
SMALL = {"image_size": 64, "n_clusters": 8}


@pytest.fixture(scope="module")
def data(synthetic_set):
    return open_mvtec(synthetic_set)


@pytest.fixture(scope="module")
def train(data):
    return [data.train.read(i) for i in range(10)]


@pytest.fixture(scope="module")
def detector(train):
    return Detector(**SMALL).fit(train)


def bomb(width=60_000, height=60_000):
    """A PNG whose header claims 3600 million pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def write_good(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"good_{i}.png")
    return folder


def write_broken(folder):
    """Files that cannot be read, each with what the reason has to say."""
    whole = (folder / "good_0.png").read_bytes()
    broken = {
        "a_truncated.png": (whole[: len(whole) // 2], "truncated after"),
        "b_empty.png": (b"", "empty (0 bytes)"),
        "c_text.png": (b"these are not pixels", "not an image, or its header is damaged"),
        "d_bomb.png": (bomb(), "too large"),
        "z_last.jpg": (b"\xff\xd8\xff\xe0" + bytes(50), "z_last.jpg"),
    }
    for name, (content, _) in broken.items():
        (folder / name).write_bytes(content)
    return {name: reason for name, (_, reason) in broken.items()}


class TestUnreadableImages:
    @pytest.mark.parametrize("level", LEVELS)
    def test_are_listed_with_their_reason_and_the_rest_goes_on(self, train, detector, level, tmp_path):
        folder = write_good(tmp_path / "parts", train)
        reasons = write_broken(folder)
        fitted = Detector(level=level, **SMALL).fit(folder)
        assert fitted.n_train_ == len(train)
        assert {entry.id for entry in fitted.unreadable_} == set(reasons)
        result = detector.score(folder)
        assert [entry.id for entry in result.unreadable] == sorted(reasons)
        for entry in result.unreadable:
            assert reasons[entry.id] in entry.reason
            assert entry.id in entry.reason
        assert result.ids == [f"good_{i}.png" for i in range(len(train))]
        assert result.scores == pytest.approx(detector.score(train).scores, rel=1e-4)
        assert len(json.loads(json.dumps(result.to_dict()))["unreadable"]) == len(reasons)

    def test_do_not_change_the_fit(self, train, tmp_path):
        folder = write_good(tmp_path / "parts", train)
        write_broken(folder)
        # The same images in the same order, the unreadable ones included, since the seed shuffles all of them.
        first = Detector(**SMALL).fit(folder)
        for name in (entry.id for entry in first.unreadable_):
            (folder / name).write_bytes(b"broken otherwise")
        second = Detector(**SMALL).fit(folder)
        assert np.array_equal(first.score(train).scores, second.score(train).scores)
        assert first.score(train[:3]).nearest == second.score(train[:3]).nearest

    def test_names_of_nearest_images_are_right_in_spite_of_them(self, train, tmp_path):
        folder = write_good(tmp_path / "parts", train)
        write_broken(folder)
        fitted = Detector(k=1, **SMALL).fit(folder)
        assert [entry.train_id for entry in fitted.score(train).nearest] == [f"good_{i}.png" for i in range(10)]

    def test_stop_the_run_when_told(self, train, detector, tmp_path):
        folder = write_good(tmp_path / "parts", train)
        (folder / "b_empty.png").write_bytes(b"")
        for use in (Detector(**SMALL).fit, detector.score):
            with pytest.raises(UnreadableImageError, match=r"b_empty\.png: empty \(0 bytes\)"):
                use(folder, on_unreadable="raise")
        with pytest.raises(ValueError, match="on_unreadable='stop': give 'skip' or 'raise'"):
            detector.score(folder, on_unreadable="stop")

    @pytest.mark.parametrize("level", LEVELS)
    def test_when_there_is_nothing_else(self, train, detector, level, tmp_path):
        folder = write_good(tmp_path / "parts", train[:1])
        reasons = write_broken(folder)
        (folder / "good_0.png").unlink()
        with pytest.raises(NoGoodImagesError) as error:
            Detector(level=level, **SMALL).fit(folder)
        assert "0 readable image(s) among 5 to learn from" in str(error.value)
        for name in reasons:
            assert name in str(error.value)
        result = detector.score(folder)
        assert (len(result), len(result.unreadable)) == (0, 5)
        assert result.scores.shape == result.p_values.shape == result.alarms.shape == (0,)
        assert json.loads(json.dumps(result.to_dict()))["images"] == []
        assert result.to_csv(tmp_path / "scores.csv").read_text().count("\n") == 6
        assert result.save_overlays(tmp_path / "maps", folder) == []

    def test_in_memory(self, train, detector):
        images = [train[0], np.full((8, 8, 3), np.nan), np.zeros((0, 4, 3), np.uint8), np.zeros((5, 5, 7)), train[1]]
        result = detector.score(images)
        assert result.ids == ["image_0000", "image_0004"]
        assert [entry.index for entry in result.unreadable] == [1, 2, 3]
        assert "image_0001: holds NaN or infinity" in result.unreadable[0].reason
        with pytest.raises(NoGoodImagesError, match="image_0000: holds NaN or infinity"):
            Detector(**SMALL).fit(np.full((3, 8, 8, 3), np.nan))

    def test_formats_that_are_not_read_and_systems_folders(self, train, detector, tmp_path):
        folder = write_good(tmp_path / "parts", train[:3])
        (folder / "from_the_phone.heic").write_bytes(b"ftypheic")
        (folder / "@eaDir").mkdir()
        (folder / "good_2.png").rename(folder / "@eaDir" / "good_2.png")
        result = detector.score(folder)
        assert result.ids == ["good_0.png", "good_1.png"]
        assert [entry.id for entry in result.unreadable] == ["from_the_phone.heic"]
        assert "convert it to PNG" in result.unreadable[0].reason

    def test_an_open_file_is_one_image(self, train, detector, tmp_path):
        folder = write_good(tmp_path / "parts", train[:1])
        with open(folder / "good_0.png", "rb") as file:
            result = detector.score(file)
        assert result.scores == pytest.approx(detector.score(train[:1]).scores, rel=1e-4)
        assert result.unreadable == []

    def test_missing_files(self, detector, tmp_path):
        result = detector.score([tmp_path / "absent.png"])
        assert "no such file" in result.unreadable[0].reason


class TestHowManyImages:
    @pytest.mark.parametrize("level", LEVELS)
    def test_none(self, level, tmp_path, detector):
        for use in (Detector(level=level, **SMALL).fit, detector.score):
            with pytest.raises(ValueError, match="no images: the list is empty; give at least one image"):
                use([])
            with pytest.raises(FileNotFoundError, match="no images; looked in all its folders"):
                use(tmp_path)
            with pytest.raises(FileNotFoundError, match="no such file or folder"):
                use(tmp_path / "absent")
            with pytest.raises(TypeError, match="NoneType cannot be opened"):
                use(None)

    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("scorer", ["knn", "kmeans", "dbscan", "subspace"])
    def test_one(self, train, level, scorer):
        with pytest.raises(
            NoGoodImagesError, match=r"1 readable image\(s\) among 1 to learn from; [23] good images are"
        ):
            Detector(level=level, scorer=scorer, **SMALL).fit(train[0])

    @pytest.mark.parametrize("level", LEVELS)
    def test_the_fewest_that_can_be_learnt_from_promise_nothing(self, train, level):
        few = 2 if level == "patch" else 3
        fitted = Detector(level=level, **SMALL).fit(train[:few])
        result = fitted.score(train[few:])
        assert np.isfinite(result.scores).all()
        assert not result.guarantee_met
        assert result.p_values.min() >= 1 / (few + 1)
        assert f"there are {few}" in fitted.fitted_.calibration.explain()


class TestOddImages:
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("scorer", ["knn", "kmeans", "dbscan", "subspace"])
    def test_constant_training_images(self, level, scorer):
        with pytest.raises(ValueError, match="the training images are all the same"):
            Detector(level=level, scorer=scorer, **SMALL).fit(np.full((6, 64, 64, 3), 90, np.uint8))

    def test_a_constant_image_to_score(self, detector, train):
        result = detector.score([np.full((64, 64, 3), value, np.uint8) for value in (0, 255)])
        assert result.alarms.all()
        assert np.isfinite(result.scores).all()
        assert result.scores.min() > detector.score(train).scores.max()

    @pytest.mark.parametrize("level", LEVELS)
    def test_one_of_another_size_among_the_good(self, train, level, tmp_path):
        folder = write_good(tmp_path / "parts", train)
        Image.fromarray(train[3]).resize((57, 91)).save(folder / "good_3.png")
        fitted = Detector(level=level, **SMALL).fit(folder)
        assert (fitted.n_train_, fitted.unreadable_) == (10, [])
        result = fitted.score(folder)
        assert result.image_sizes == [(91, 57) if i == 3 else (128, 128) for i in range(10)]
        if level == "patch":
            assert result.anomaly_map(3).shape == (91, 57)
        for entry in result.nearest:
            width, height = (57, 91) if entry.train_id == "good_3.png" else (128, 128)
            assert entry.train_box[2] <= width
            assert entry.train_box[3] <= height

    def test_alpha_of_zero_does_not_make_all_images_alike(self, detector, train):
        rgba = [np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)]) for pixels in train[:3]]
        assert np.array_equal(detector.score(rgba).scores, detector.score(train[:3]).scores)

    def test_a_single_pixel(self, detector):
        assert np.isfinite(detector.score(np.zeros((1, 1, 3), np.uint8)).scores).all()


class TestTooMuchAsked:
    @pytest.mark.parametrize("level", LEVELS)
    def test_more_components_than_dimensions(self, train, level):
        with pytest.raises(
            ValueError, match=r"n_components=500 is more than .* dimensions can give; choose at most \d+"
        ):
            Detector(level=level, n_components=500, **SMALL).fit(train)

    @pytest.mark.parametrize("level", LEVELS)
    def test_more_neighbours_than_rows(self, train, level):
        with pytest.raises(ValueError, match=r"k=800 neighbours wanted from \d+ rows; lower k or give more images"):
            Detector(level=level, k=800, **SMALL).fit(train)

    def test_more_neighbours_than_the_bank_holds(self):
        with pytest.raises(ValueError, match="k=5 neighbours wanted from a bank of 4; lower k or enlarge the bank"):
            Detector(k=5, bank_size=4)

    def test_a_bank_of_one_image(self, train):
        """It is calibrated by banks that other images gave."""
        detector = Detector(bank_size=1, k=1, **SMALL).fit(train)
        assert len(set(detector.fitted_.calibration.scores)) == len(train)

    @pytest.mark.parametrize("level", LEVELS)
    def test_eps_that_makes_no_core_sample(self, train, level):
        with pytest.raises(ValueError, match=r"eps=1e-05 makes no row a core sample") as error:
            Detector(scorer="dbscan", level=level, eps=1e-5, **SMALL).fit(train)
        assert "Raise eps, lower min_samples, or use eps='knee'" in str(error.value)

    def test_more_clusters_than_rows_is_every_row(self, train):
        fitted = Detector(scorer="kmeans", image_size=64, n_clusters=10_000).fit(train)
        assert len(fitted.fitted_.scorer.centroids_) <= 640
        assert np.isfinite(fitted.score(train).scores).all()

    def test_a_rate_that_the_images_do_not_support(self, detector, train):
        result = detector.score(train)
        assert not result.guarantee_met
        assert not result.to_dict()["guarantee_met"]
        assert "takes at least 99 good images to guarantee, and there are 10" in detector.fitted_.calibration.explain()


class TestModelFiles:
    def test_of_another_backbone(self, train, tmp_path):
        network = {"backbone": "resnet18", "layers": "layer2", "weights": "random", "dtype": "float32"}
        path = Detector(**network, **SMALL).fit(train).save(tmp_path / "model.safetensors")
        torch.manual_seed(1)
        with pytest.raises(ModelFileError, match="was fitted with other weights of resnet18 than those given"):
            Detector.load(path, weights=resnet18().state_dict())

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_full_disk_leaves_the_old_one(self, train, detector, step, tmp_path, monkeypatch):
        path = detector.save(tmp_path / "model.safetensors")
        before = path.read_bytes()

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomic.os, step, full)
        with pytest.raises(OSError, match=f"cannot save {path}: No space left on device; nothing was changed"):
            Detector(scorer="subspace", **SMALL).fit(train).save(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == [path.name]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_folder(self, detector, tmp_path):
        path = detector.save(tmp_path / "model.safetensors")
        before = path.read_bytes()
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(PermissionError, match="cannot save"):
                detector.save(path)
        finally:
            tmp_path.chmod(0o700)
        assert path.read_bytes() == before

    def test_a_place_that_cannot_be_written(self, detector, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OSError, match=r"cannot save .*nothing was changed, choose another place"):
            detector.save(tmp_path / "file" / "model.safetensors")
