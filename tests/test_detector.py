import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from told import but_for_the_time

from anomalib_lite import Detector, KNNScorer, fit, score
from anomalib_lite.embedding.weights import WeightsError
from anomalib_lite.files import atomic, model_file
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images.framing import resize
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.reading import read_image
from anomalib_lite.images.sources import open_source
from anomalib_lite.machine import hardware
from anomalib_lite.scoring import SubspaceScorer

LEVELS = ("patch", "global", "both")
SCORERS = ("knn", "kmeans", "dbscan", "subspace")
SMALL = {
    "builtin": {"image_size": 128, "n_clusters": 24, "dtype": "float32"},
    # float32, since bf16 rounds differently from one batch size to the next.
    "resnet18": {"image_size": 64, "n_clusters": 24, "layers": "layer2", "weights": "random", "dtype": "float32"},
}


@pytest.fixture(scope="module")
def data(synthetic_set):
    return open_mvtec(synthetic_set)


@pytest.fixture(scope="module")
def train(data):
    return [data.train.read(i) for i in range(12)]


@pytest.fixture(scope="module")
def good(data):
    return [data.test.read(i) for i, kind in enumerate(data.kinds) if kind == "good"]


@pytest.fixture(scope="module")
def stained(data):
    return [data.test.read(i) for i, kind in enumerate(data.kinds) if kind == "color"]


@pytest.fixture(scope="module")
def fitted(train):
    """Fitted detectors, each made once; not to be changed."""
    made = {}

    def get(scorer="knn", level="patch", backbone="builtin", **options):
        key = (scorer, level, backbone, *options.items())
        if key not in made:
            options = {**SMALL[backbone], **options}
            made[key] = Detector(backbone=backbone, scorer=scorer, level=level, **options).fit(train)
        return made[key]

    return get


def with_block(pixels):
    """A part with a chequered block on it, which also a network of random weights sees."""
    spoilt = pixels.copy()
    size = len(pixels) // 3
    squares = np.indices((size, size)).sum(axis=0) // 4 % 2
    spoilt[size : 2 * size, size : 2 * size] = (255 * squares[..., None]).astype(np.uint8)
    return spoilt


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scorer", SCORERS)
class TestEveryScorerAtEveryLevel:
    def test_ranks_stains_above_good_parts(self, fitted, good, stained, scorer, level):
        scores = fitted(scorer, level).score(good + stained).scores
        assert scores.dtype == np.float64
        assert len(set(scores)) == len(scores)
        assert scores[len(good) :].mean() > scores[: len(good)].mean()

    def test_ranks_blocks_above_good_parts_on_a_network(self, fitted, good, scorer, level):
        scores = fitted(scorer, level, "resnet18").score(good + [with_block(image) for image in good]).scores
        assert len(set(scores)) == len(scores)
        assert scores[len(good) :].mean() > 1.1 * scores[: len(good)].mean()

    def test_saved_and_loaded_scores_the_same(self, fitted, good, stained, scorer, level, tmp_path):
        detector = fitted(scorer, level)
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        before, after = detector.score(good + stained), loaded.score(good + stained)
        assert np.array_equal(before.scores, after.scores)
        assert np.array_equal(before.p_values, after.p_values)
        assert np.array_equal(before.alarms, after.alarms)
        assert but_for_the_time(before) == but_for_the_time(after)  # nearest training images too
        assert before.map_scale == after.map_scale
        if level == "patch":
            assert np.array_equal(before.patch_scores, after.patch_scores)
        assert {key: value for key, value in loaded.config().items() if key != "device"} == {
            key: value for key, value in detector.config().items() if key != "device"
        }
        # And once more: a loaded detector can be saved.
        again = Detector.load(loaded.save(tmp_path / "again.safetensors"))
        assert np.array_equal(again.score(good).scores, before.scores[: len(good)])

    def test_same_seed_same_scores(self, fitted, train, good, scorer, level):
        detector = fitted(scorer, level)
        first = detector.score(good).scores
        assert np.array_equal(detector.score(good).scores, first)
        again = Detector(scorer=scorer, level=level, **SMALL["builtin"]).fit(train)
        assert np.array_equal(again.score(good).scores, first)
        assert again.fitted_.calibration.threshold == detector.fitted_.calibration.threshold


class TestScores:
    @pytest.mark.parametrize("backbone", SMALL)
    def test_do_not_depend_on_the_batch_size(self, fitted, train, good, backbone):
        singly = Detector(backbone=backbone, batch_size=1, **SMALL[backbone]).fit(train)
        expected = fitted(backbone=backbone).score(good)
        scores = singly.score(good)
        # A row that rounds otherwise may change the coreset by one centre, so the same model is asked as well.
        assert scores.scores == pytest.approx(expected.scores, rel=0.02)
        singly._fitted = fitted(backbone=backbone).fitted_
        assert singly.score(good).scores == pytest.approx(expected.scores, rel=1e-4)

    def test_keep_the_order_given(self, fitted, good, stained):
        images = [good[0], stained[0], good[1], stained[1], good[2]]
        expected = [fitted().score([image]).scores[0] for image in images]
        assert fitted().score(images).scores == pytest.approx(expected, rel=1e-4)
        assert np.argmax(expected) in (1, 3)

    def test_are_the_same_for_files_arrays_tensors_and_pil_images(self, fitted, data):
        folder = data.test.root / "color"
        detector = fitted()
        expected = detector.score(folder)
        assert expected.ids == ["000.png", "001.png", "002.png"]
        paths = [folder / image_id for image_id in expected.ids]
        arrays = [read_image(path) for path in paths]
        others = {
            "text path": str(folder),
            "paths": paths,
            "text paths": [str(path) for path in paths],
            "source": open_source(folder),
            "arrays": arrays,
            "array": np.stack(arrays),
            "floats": np.stack(arrays).astype(np.float32) / 255,
            "16 bits": np.stack(arrays).astype(np.uint16) * 257,
            "tensor": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2),
            "PIL": [Image.fromarray(array) for array in arrays],
            "bytes": [path.read_bytes() for path in paths],
        }
        for kind, images in others.items():
            assert np.array_equal(detector.score(images).scores, expected.scores), kind
        assert detector.score(paths[1]).scores == pytest.approx(expected.scores[1:2], rel=1e-4)
        assert detector.score(paths).ids == [str(path) for path in paths]

    def test_fit_and_score_as_functions(self, fitted, train, good):
        detector = fit(train, **SMALL["builtin"])
        assert np.array_equal(score(detector, good).scores, fitted().score(good).scores)

    def test_alarms_are_scores_above_the_threshold_and_small_p_values(self, train, good, stained):
        detector = Detector(false_alarm_rate=0.1, **SMALL["builtin"]).fit(train)
        scores = detector.score(train + good + stained)
        assert 0 < scores.alarms.sum() < len(scores)
        assert np.array_equal(scores.alarms, scores.scores > scores.threshold)
        assert np.array_equal(scores.alarms, scores.p_values <= 0.1)
        order = np.argsort(scores.scores)
        assert (np.diff(scores.p_values[order]) <= 0).all()
        assert (scores.false_alarm_rate, scores.guarantee_met) == (0.1, True)

    def test_says_when_there_are_too_few_images_for_the_rate(self, fitted, stained):
        detector = fitted()  # 12 images, 1 %
        scores = detector.score(stained)
        assert not scores.guarantee_met
        assert scores.p_values.min() >= 1 / 13
        assert "takes at least 99 good images to guarantee, and there are 12" in detector.fitted_.calibration.explain()

    def test_top_share(self, fitted, good, train):
        patches = np.sort(fitted().score(good).patch_scores.reshape(len(good), -1), axis=1)  # (n, 256)
        assert fitted().score(good).scores == pytest.approx(patches[:, -2:].mean(axis=1), rel=1e-6)
        half = Detector(top_share=0.5, **SMALL["builtin"]).fit(train)
        assert half.score(good).scores == pytest.approx(patches[:, -128:].mean(axis=1), rel=1e-5)
        assert half.fitted_.calibration.threshold < fitted().fitted_.calibration.threshold

    def test_before_fit(self, good, tmp_path):
        detector = Detector(image_size=64)
        for use in (lambda: detector.score(good), lambda: detector.save(tmp_path / "model.safetensors")):
            with pytest.raises(RuntimeError, match=r"not fitted yet; call fit\(images\) or Detector\.load\(path\)"):
                use()

    def test_a_failed_refit_leaves_the_detector_as_it_was(self, train, good):
        detector = Detector(**SMALL["builtin"]).fit(train)
        expected = but_for_the_time(detector.score(good))
        with pytest.raises(ValueError, match="1 readable"):
            detector.fit(train[:1])
        assert but_for_the_time(detector.score(good)) == expected
        assert detector.n_train_ == len(train)


class TestMaps:
    def test_are_higher_where_the_stain_is(self, fitted, data):
        for scorer in SCORERS:
            scores = fitted(scorer).score(data.test)
            for i, kind in enumerate(data.kinds):
                if kind == "color":
                    mask, anomaly_map = data.read_mask(i), scores.anomaly_map(i)
                    assert anomaly_map.shape == mask.shape
                    assert anomaly_map[mask].mean() > 1.2 * anomaly_map[~mask].mean(), (scorer, i)

    def test_have_the_size_of_their_image(self, fitted, good):
        sizes = [(128, 128), (50, 70), (201, 33), (5, 300)]
        images = [np.array(Image.fromarray(good[0]).resize(size[::-1])) for size in sizes]
        scores = fitted().score(images)
        assert scores.image_sizes == sizes
        assert [scores.anomaly_map(i).shape for i in range(len(sizes))] == sizes
        assert {scores.anomaly_map(i).dtype for i in range(len(sizes))} == {np.dtype(np.float32)}

    def test_share_one_scale(self, fitted, good, stained):
        """A heat map normalised per image would paint a good part as red as a bad one."""
        scores = fitted().score(good + stained)
        peaks = np.array([scores.anomaly_map(i).max() for i in range(len(scores))])
        assert np.corrcoef(peaks, scores.scores)[0, 1] > 0.9
        assert peaks == pytest.approx(scores.scores, rel=0.5)
        low, high = scores.map_scale
        assert low < scores.threshold < high
        assert fitted().score(good[:1]).map_scale == scores.map_scale


class TestNearest:
    def test_a_training_image_is_its_own_nearest(self, fitted, data, train):
        detector = Detector(selection="full", k=1, **SMALL["builtin"]).fit(data.train)
        scores = detector.score([train[3], train[7]])
        assert [entry.train_id for entry in scores.nearest] == ["003.png", "007.png"]
        assert scores.scores == pytest.approx([0, 0], abs=1e-2)
        assert scores.scores.max() < 0.01 * detector.fitted_.calibration.threshold
        assert [entry.box for entry in scores.nearest] == [entry.train_box for entry in scores.nearest]

    @pytest.mark.parametrize("level", LEVELS)
    def test_boxes_lie_in_their_images(self, level, data, good, tmp_path):
        sizes = {}
        for i, (width, height) in enumerate([(90, 60), (64, 64), (33, 120), (128, 40)]):
            image = Image.fromarray(good[i]).resize((width, height))
            image.save(tmp_path / f"{i}.png")
            sizes[f"{i}.png"] = (height, width)
        detector = Detector(level=level, **SMALL["builtin"]).fit(tmp_path)
        new = [np.array(Image.fromarray(image).resize((75, 101))) for image in good]
        scores = detector.score(new)
        for i, entry in enumerate(scores.nearest):
            assert_inside(entry.box, scores.image_sizes[i])
            assert_inside(entry.train_box, sizes[entry.train_id])
            if level == "global":
                assert entry.box == (0, 0, 75, 101)
                assert entry.distance <= scores.scores[i]

    def test_names_the_patch_that_scores_highest(self, fitted, stained):
        scores = fitted(scorer=KNNScorer(local=0)).score(stained)
        for i, entry in enumerate(scores.nearest):
            row, column = np.unravel_index(scores.patch_scores[i].argmax(), scores.patch_scores[i].shape)
            left, top, right, bottom = entry.box
            side = 128 / scores.patch_scores.shape[1]
            assert (left, top) == (round(column * side), round(row * side))
            assert (right, bottom) == (round((column + 1) * side), round((row + 1) * side))
            assert entry.distance <= scores.patch_scores[i].max()

    def test_names_the_training_patch_that_is_most_like_it(self, fitted, stained):
        detector = fitted()
        for entry, pixels in zip(detector.score(stained).nearest, stained, strict=True):
            grid = detector.embedder.embed(resize(pixels, detector.embedder.image_size)[None])[0]
            patch = grid[round(entry.box[1] / 8), round(entry.box[0] / 8)]
            row = detector.fitted_.reduction.transform(patch[None])
            distances = np.linalg.norm(detector.fitted_.scorer.bank_ - row, axis=1)
            image, train_patch = detector.fitted_.origins[distances.argmin()]
            assert entry.distance == pytest.approx(distances.min(), rel=1e-3)
            assert entry.train_id == f"image_{image:04d}"
            assert entry.train_box[:2] == (train_patch % 16 * 8, train_patch // 16 * 8)

    def test_only_knn_has_them(self, fitted, good):
        assert fitted("kmeans").score(good).nearest is None


def assert_inside(box, size):
    left, top, right, bottom = box
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]


class TestParameters:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"level": "pixel"}, "level='pixel'; choose 'patch' or 'global'"),
            ({"backbone": "resnet19"}, "no backbone 'resnet19'; did you mean resnet18"),
            ({"scorer": "svm"}, "scorer='svm'; choose one of knn, kmeans, dbscan, subspace"),
            ({"top_share": 0}, r"top_share=0 is a share of patches, in \(0, 1\]"),
            ({"false_alarm_rate": 1.0}, r"false_alarm_rate=1.0 is a share of good images, in \(0, 1\)"),
            ({"false_alarm_rate": 5}, "false_alarm_rate=5"),
            ({"batch_size": 0}, "batch_size=0 is the number of images per forward pass, at least 1"),
            ({"random_state": -1}, "random_state=-1 is a seed, not negative"),
            ({"trim": 1}, "trim=1 is a share of rows"),
            ({"bank_size": 0}, "bank_size=0"),
            ({"k": 9, "bank_size": 8}, "k=9 neighbours wanted from a bank of 8; lower k or enlarge the bank"),
            ({"selection": "greedy"}, "selection='greedy'"),
            ({"dtype": "float16"}, "dtype='float16'"),
            ({"image_size": 8}, "image_size=8"),
            ({"weights": "imagenet"}, "the built-in backbone has its own weights; leave"),
        ],
    )
    def test_wrong_ones_are_named_at_once(self, parameters, message):
        with pytest.raises(ValueError, match=message):
            Detector(**parameters)

    def test_trim_keeps_a_bad_training_image_out_of_the_bank(self, train):
        bad = with_block(train[0])
        images = [*train, bad]
        contaminated = Detector(**SMALL["builtin"]).fit(images)
        trimmed = Detector(trim=0.1, **SMALL["builtin"]).fit(images)
        assert (contaminated.fitted_.origins[:, 0] == len(train)).sum() == 256
        assert (trimmed.fitted_.origins[:, 0] == len(train)).sum() < 200
        new = with_block(train[5])
        assert trimmed.score([new]).scores[0] > 1.5 * contaminated.score([new]).scores[0]

    def test_few_small_images_get_as_many_components_as_they_can_give(self, train):
        detector = Detector(image_size=32).fit(train[:2])  # 32 patches of 384 dimensions
        assert detector.fitted_.reduction.n_components_ <= 32
        assert detector.score(train[5:6]).scores[0] > 0

    def test_a_scorer_of_ones_own(self, train, good, stained, tmp_path):
        detector = Detector(scorer=FarFromMean(power=3), **SMALL["builtin"]).fit(train)
        scores = detector.score(good + stained)
        assert scores.nearest is None
        assert len(set(scores.scores)) == len(scores)
        assert scores.scores[len(good) :].mean() > scores.scores[: len(good)].mean()
        assert detector.scorer.power == 3
        assert detector.config()["scorer"] == "far_from_mean"
        with pytest.raises(ValueError, match="a FarFromMean cannot be saved: a model file holds numbers, no code"):
            detector.save(tmp_path / "model.safetensors")
        assert os.listdir(tmp_path) == []

    def test_an_instance_brings_its_own_parameters(self, train):
        given = SubspaceScorer(n_components=3)
        detector = Detector(scorer=given, **SMALL["builtin"]).fit(train)
        assert len(detector.fitted_.scorer.variances_) == 3
        assert not hasattr(given, "pca_")  # what was given is not changed

    def test_config_is_json(self, fitted):
        assert json.loads(json.dumps(fitted().config()))["scorer_parameters"]["k"] == 2


class FarFromMean:
    """A scorer by shape alone."""

    name = "far_from_mean"
    max_rows = 1000

    def __init__(self, power=1):
        self.power = power

    def fit(self, X, groups=None):
        assert len(X) <= self.max_rows
        self.mean_ = X.mean(axis=0)
        return self

    def score(self, X):
        return np.linalg.norm(X - self.mean_, axis=1).astype(np.float64) ** self.power

    def parameters(self):
        return {"power": self.power}

    def state(self):
        return {"mean": self.mean_}


@pytest.fixture
def model(fitted, tmp_path):
    """A saved detector on the built-in backbone."""
    return fitted().save(tmp_path / "model.safetensors")


def rewritten(path, change):
    """The model file with its arrays and manifest changed in place by `change(arrays, manifest)`."""
    arrays, manifest = model_file.load_file(path)
    arrays = {key: value.copy() for key, value in arrays.items()}
    change(arrays, manifest)
    return model_file.save_file(path, arrays, manifest)


class TestModelFile:
    def test_a_full_disk_leaves_the_old_file(self, fitted, model, good, monkeypatch):
        before = model.read_bytes()

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomic.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device; nothing was changed"):
            fitted("kmeans").save(model)
        assert model.read_bytes() == before
        assert os.listdir(model.parent) == [model.name]
        assert np.array_equal(Detector.load(model).score(good).scores, fitted().score(good).scores)

    def test_is_absent(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no model file"):
            Detector.load(tmp_path / "absent.safetensors")

    @pytest.mark.parametrize("include_backbone", [False, True])
    def test_brings_its_backbone_or_asks_for_it(self, fitted, good, include_backbone, tmp_path, monkeypatch):
        detector = fitted(backbone="resnet18")
        path = detector.save(tmp_path / "model.safetensors", include_backbone=include_backbone)
        offline(monkeypatch, tmp_path)
        if include_backbone:
            assert np.array_equal(Detector.load(path).score(good).scores, detector.score(good).scores)
            assert path.stat().st_size > 2_000_000
            return
        with pytest.raises(WeightsError, match=r"Offline: fetch https?://.*resnet18.*weights=PATH.*backbone='builtin'"):
            Detector.load(path)
        assert np.array_equal(Detector.load(path, weights="random").score(good).scores, detector.score(good).scores)

    def test_other_weights_are_refused(self, fitted, tmp_path):
        detector = fitted(backbone="resnet18")
        path = detector.save(tmp_path / "model.safetensors")
        state = {key: torch.zeros(shape) for key, shape in resnet18_shapes().items()}
        with pytest.raises(ModelFileError, match=r"fitted with other weights of resnet18.*same weights file, or fit"):
            Detector.load(path, weights=state)

    def test_a_detector_fitted_in_float32_stays_in_float32(self, fitted, tmp_path, monkeypatch):
        path = fitted(backbone="resnet18", dtype="float32").save(tmp_path / "model.safetensors")
        monkeypatch.setattr(hardware, "dtype_times", lambda device: {"float32": 9.0, "bfloat16": 1.0})
        assert Detector.load(path, weights="random").embedder.dtype == "float32"
        assert Detector.load(path, weights="random", dtype="bfloat16").embedder.dtype == "bfloat16"

    @pytest.mark.parametrize(("float32", "expected"), [(9.0, "bfloat16"), (1.0, "float32")])
    def test_what_was_fitted_in_bf16_follows_the_machine(self, fitted, tmp_path, monkeypatch, float32, expected):
        monkeypatch.setattr("anomalib_lite.embedding.embedder.pick_arithmetic", lambda embedder: "bfloat16")
        path = fitted(backbone="resnet18", dtype="auto").save(tmp_path / "model.safetensors")
        monkeypatch.setattr(hardware, "dtype_times", lambda device: {"float32": float32, "bfloat16": 3.0})
        assert Detector.load(path, weights="random").embedder.dtype == expected

    def test_wrong_arguments_are_not_blamed_on_the_file(self, model):
        with pytest.raises(ValueError, match="dtype='float16'") as error:
            Detector.load(model, dtype="float16")
        assert not isinstance(error.value, ModelFileError)

    @pytest.mark.parametrize(
        "key",
        [
            "parameters",
            "embedder",
            "scorer",
            "grid",
            "whole",
            "sight",
            "fixture",
            "top_share",
            "calibration",
            "history",
            "train_ids",
            "unreadable",
            "copies",
        ],
    )
    def test_a_missing_entry(self, model, key):
        rewritten(model, lambda arrays, manifest: manifest.pop(key))
        with pytest.raises(ModelFileError, match=rf"model\.safetensors is damaged: .*{key}"):
            Detector.load(model)

    def test_each_missing_choice(self, fitted, model):
        content = model.read_bytes()
        for key in fitted().fitted_.parameters:
            model.write_bytes(content)
            rewritten(model, lambda arrays, manifest, key=key: manifest["parameters"].pop(key))
            with pytest.raises(ModelFileError, match=key):
                Detector.load(model)

    def test_each_missing_array(self, model):
        content = model.read_bytes()
        for name in load_file(model):
            if name == "reduction.components":
                continue  # without them it reads as a standardisation, which does not fit either; see below
            model.write_bytes(content)
            rewritten(model, lambda arrays, manifest, name=name: arrays.pop(name))
            with pytest.raises(ModelFileError, match="is damaged"):
                Detector.load(model)

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            ("parameters", []),
            ("parameters", "builtin"),
            ("parameters.backbone", ["builtin"]),
            ("parameters.backbone", "os.system"),
            ("parameters.level", "pixel"),
            ("parameters.level", "global"),
            ("parameters.level", "both"),
            ("whole", {"usual": 1.0}),
            ("sight", {"brightest": 1.0}),
            ("sight", 3),
            ("fixture", {"turn": 1.0}),
            ("parameters.image_size", "large"),
            ("parameters.image_size", 64.5),
            ("parameters.image_size", 96),
            ("parameters.image_size", 4096),
            ("parameters.image_size", 0),
            ("parameters.scorer", "pickle"),
            ("parameters.scorer", {}),
            ("parameters.top_share", "all"),
            ("parameters.top_share", 0),
            ("parameters.false_alarm_rate", 2),
            ("parameters.random_state", "x"),
            ("parameters.unheard_of", 1),
            ("scorer.name", "pickle"),
            ("scorer.parameters", {"k": 2, "__reduce__": "os.system"}),
            ("scorer.parameters", {"k": "two"}),
            ("scorer.parameters", {"k": -1}),
            ("calibration", {}),
            ("calibration", {"false_alarm_rate": 2}),
            ("calibration.fixed", "high"),
            ("calibration.look_again", 1e300),
            ("calibration.withheld", 3),
            ("history", 3),
            ("history", [{"date": "today"}]),
            ("history", [[]]),
            ("parameters.variations", {"brightness": 40}),
            ("parameters.variations", "dark"),
            ("parameters.calibration", "none"),
            ("embedder", {}),
            ("copies", 0),
            ("copies", 10**30),
            ("unreadable", [[0, 1, 2]]),
            ("unreadable", 7),
            ("grid", 3),
            ("grid", [1, 2, 3]),
            ("grid", [0, 8]),
            ("grid", [8, 1]),
            ("grid", ["a", "b"]),
            ("train_ids", 5),
            ("train_ids", ["only one"]),
            ("train_ids", [[]] * 12),
        ],
    )
    def test_malformed_manifests(self, model, where, value):
        def change(arrays, manifest):
            *parents, key = where.split(".")
            target = manifest[parents[0]] if parents else manifest
            target[key] = value

        rewritten(model, change)
        with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged"):
            Detector.load(model)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("scorer.bank", lambda a: np.where(a == a[0, 0], np.nan, a)),
            ("scorer.bank", lambda a: a[:, :-1]),
            ("scorer.bank", lambda a: a[0]),
            ("scorer.bank", lambda a: a[:0]),
            ("scorer.bank", lambda a: a[:-1]),
            ("scorer.covering_radius", lambda a: a[:0]),
            ("reduction.mean", lambda a: a * np.inf),
            ("reduction.mean", lambda a: a[:-1]),
            ("reduction.components", lambda a: a[:, :-1]),
            ("train.scores", lambda a: np.full_like(a, np.nan)),
            ("train.scores", lambda a: a[:0]),
            ("train.scores", lambda a: a[:-1]),
            ("train.groups", lambda a: a[:-1]),
            ("train.groups", lambda a: a.astype(float)),
            ("calibration.scores", lambda a: a * np.nan),
            ("calibration.scores", lambda a: a[:-1]),
            ("calibration.groups", lambda a: a.astype(float)),
            ("calibration.groups", lambda a: a[:0]),
            ("train.calibrating", lambda a: a + 1_000),
            ("train.calibrating", lambda a: a - 1_000),
            ("train.calibrating", lambda a: a.astype(float)),
            ("scorer.bank", lambda a: a * 1e30),
            ("scorer.bank", lambda a: a * np.float32(1e12)),
            ("scorer.bank", lambda a: a.astype(complex).view(float)),
            ("reduction.components", lambda a: a * 0),
            ("reduction.components", lambda a: a * 1e20),
            ("reduction.scale", lambda a: -a),
            ("reduction.explained_variance", lambda a: -a),
            ("train.origins", lambda a: a + 10_000),
            ("train.origins", lambda a: a - 1_000),
            ("train.origins", lambda a: a.astype(float)),
            ("train.origins", lambda a: a[:, :1]),
            ("train.sizes", lambda a: a[:-1]),
        ],
    )
    def test_malformed_arrays(self, model, name, change):
        def apply(arrays, manifest):
            arrays[name] = np.ascontiguousarray(change(arrays[name]))

        rewritten(model, apply)
        with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged"):
            Detector.load(model)


def offline(monkeypatch, folder):
    """No cached weights, and no network."""

    def fail(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(Path(folder) / "hub"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)


def resnet18_shapes():
    from torchvision.models import resnet18

    with torch.device("meta"):
        return {key: value.shape for key, value in resnet18().state_dict().items()}
