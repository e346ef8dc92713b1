"""The fitted core: immutable, whole from the start for any number of threads, and everything that was chosen."""

import copy
import dataclasses
import inspect
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from anomalib_lite import Detector, KNNScorer, Variations
from anomalib_lite.embedding.streaming import EmbeddedImage
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.core import Fitted, TrainingImages
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.machine.integers import onednn_fault
from anomalib_lite.scoring import neighbors
from anomalib_lite.scoring.base import ExplainsByNeighbors
from anomalib_lite.scoring.reduction import Standardizer

ROUNDS = int(os.environ.get("ANOMALIB_LITE_THREAD_ROUNDS", "40"))


@pytest.fixture(scope="module")
def parts():
    return [render_part(np.random.default_rng(i), 64)[0] for i in range(12)]


def a_core(rng, scorer=None):
    """A core on rows drawn at random: 30 images of 4 × 5 patches."""
    X = rng.normal(size=(600, 16)).astype(np.float32)
    groups = np.repeat(np.arange(30), 20)
    reduction = Standardizer().fit(X)
    scorer = (scorer or KNNScorer(bank_size=300)).fit(reduction.transform(X), groups)
    train = TrainingImages(
        ids=tuple(str(i) for i in range(30)),
        sizes=np.full((30, 2), 64),
        unreadable=(),
        calibrating=np.arange(30),
        scores=np.arange(1.0, 31.0),
        groups=np.arange(30),
    )
    origins = np.stack([groups, np.tile(np.arange(20), 30)], axis=1)[scorer.bank_rows_]
    return Fitted(reduction, scorer, Calibration(train.scores, 0.05), (4, 5), 0.1, origins, train)


class TestThreads:
    @pytest.mark.parametrize("product", ["faiss", "float32", "bfloat16", "int8"])
    def test_sixteen_at_once_on_a_fresh_core_score_as_one_does(self, product, monkeypatch):
        """An index built by the first search was seen half built by the second."""
        if product == "int8" and onednn_fault():
            pytest.skip(onednn_fault())
        monkeypatch.setattr(neighbors, "_quickest", lambda bank, device: product)
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(16, 4, 5, 16)).astype(np.float32)
        images = [EmbeddedImage(i, str(i), grid, grid[0, 0], (64, 64)) for i, grid in enumerate(rows)]
        expected = [a_core(np.random.default_rng(1)).score(image) for image in images]
        with ThreadPoolExecutor(16) as pool:
            for _ in range(ROUNDS):
                fresh = a_core(np.random.default_rng(1))
                for one, there in zip(pool.map(fresh.score, images), expected, strict=True):
                    assert one.score == there.score
                    assert one.nearest == there.nearest
                    assert np.array_equal(one.patch_scores, there.patch_scores)

    def test_a_detector_scores_in_threads_as_it_does_in_one(self, parts):
        detector = Detector(image_size=64, workers=0).fit(parts)
        expected = [detector.score([part]).scores[0] for part in parts]
        loaded_anew = Detector(image_size=64, workers=0).fit(parts)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda part: loaded_anew.score([part]).scores[0], parts))
        assert found == expected


class TestImmutable:
    def test_nothing_in_it_can_be_set(self):
        core = a_core(np.random.default_rng(0))
        with pytest.raises(dataclasses.FrozenInstanceError):
            core.top_share = 1.0
        for array in (core.origins, core.train.sizes, core.train.scores, core.scorer.bank_, core.calibration.scores):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
        with pytest.raises(TypeError):
            core.parameters["k"] = 3

    def test_a_second_fit_leaves_the_first_core_as_it_was(self, parts):
        detector = Detector(image_size=64).fit(parts[:8])
        core, learnt, before = detector.fitted_, detector._learnt, detector.score(parts[8:]).scores
        detector.fit(parts[4:])
        assert detector.fitted_ is not core
        other = Detector(image_size=64)
        other._learnt = learnt
        assert np.array_equal(other.score(parts[8:]).scores, before)

    def test_can_be_copied_and_sent_to_another_process(self, parts):
        detector = Detector(image_size=64).fit(parts)
        expected = detector.score(parts).scores
        for again in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
            assert np.array_equal(again.score(parts).scores, expected)
            assert again.fitted_.parameters == detector.fitted_.parameters
            with pytest.raises(TypeError):
                again.fitted_.parameters["k"] = 3

    def test_the_scorer_given_is_a_template_and_stays_unfitted(self, parts):
        given = KNNScorer(bank_size=50)
        detector = Detector(scorer=given, image_size=64).fit(parts)
        assert not hasattr(given, "bank_")
        assert len(detector.fitted_.scorer.bank_) == 50


class TestDevice:
    def test_reaches_the_search(self, monkeypatch):
        """It was asked for and ignored: the search took CUDA wherever there was one."""
        asked = []
        pick = neighbors.pick_device
        monkeypatch.setattr(neighbors, "pick_device", lambda device: asked.append(device) or pick("cpu"))
        for scorer in ("knn", "kmeans", "dbscan"):
            asked.clear()
            detector = Detector(scorer=scorer, device="cpu", n_clusters=4, image_size=64)
            detector.scorer.fit(np.random.default_rng(0).normal(size=(50, 3)))
            assert asked
            assert set(asked) <= {"cpu"}, scorer

    def test_one_that_this_machine_lacks_gives_way_when_a_model_is_loaded(self, parts, tmp_path):
        detector = Detector(image_size=64, device="cpu").fit(parts)
        parameters = {**detector.fitted_.parameters, "device": "cuda:7"}
        detector._learnt = dataclasses.replace(detector.fitted_, parameters=parameters), detector.embedder
        path = detector.save(tmp_path / "model.safetensors")
        assert Detector.load(path).embedder.device.type in ("cpu", "cuda")
        with pytest.raises(ValueError, match="cuda:7"):
            Detector.load(path, device="cuda:7")


# Every parameter of the constructor, set to something else than its default.
CHOSEN = {
    "backbone": "resnet18",
    "layers": "layer2",
    "weights": "random",
    "level": "patch",
    "image_size": 64,
    "quality": "best",
    "context": 0.7,
    "tiles": (1, 2),
    "tile_overlap": 0.4,
    "fixture": 10.0,
    "roi": [0.1, 0.1, 0.9, 1],
    "ignore": [[0.3, 0.3, 0.4, 0.4]],
    "pixel_size": 0.25,
    "scorer": "knn",
    "bank_size": 77,
    "selection": "random",
    "k": 3,
    "trim": 0.03,
    "n_clusters": 5,
    "eps": 2.5,
    "min_samples": 4,
    "n_components": 9,
    "whiten": True,
    "variations": Variations(brightness=0.1, draws=1),
    "top_share": 0.2,
    "false_alarm_rate": 0.2,
    "calibration": "split",
    "calibration_images": 6,
    "value_range": (0, 1000),
    "bits": None,
    "max_pixels": 10_000,
    "device": "cpu",
    "dtype": "float32",
    "engine": "reference",
    "batch_size": 3,
    "workers": 0,
    "random_state": 4,
    "progress": None,
}


class TestChoices:
    def test_each_survives_a_save(self, parts, tmp_path):
        names = set(inspect.signature(Detector).parameters)
        assert names == set(CHOSEN), "give every parameter of Detector another value here than its default"
        detector = Detector(**CHOSEN).fit(parts)
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"), weights="random")
        assert loaded.parameters() == detector.parameters() == CHOSEN
        for name in names - {"progress", "level", "weights", "bits"}:
            default = inspect.signature(Detector).parameters[name].default
            assert default != loaded.parameters()[name] or name == "scorer", name
        assert np.array_equal(loaded.score(parts[:3]).scores, detector.score(parts[:3]).scores)
        assert loaded.fitted_.train_scores == detector.fitted_.train_scores
        assert loaded.fitted_.train.ids == detector.fitted_.train.ids
        assert json.dumps(loaded.config()) == json.dumps(detector.config())

    def test_of_a_scorer_instance_too(self, parts, tmp_path):
        detector = Detector(scorer=KNNScorer(k=4, bank_size=90), image_size=64).fit(parts)
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert loaded.parameters()["scorer"].parameters() == detector.parameters()["scorer"].parameters()
        assert loaded.config() == detector.config()

    def test_what_could_not_be_read_is_kept_too(self, parts, tmp_path):
        detector = Detector(image_size=64).fit([*parts, b"no image"])
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert [entry.id for entry in loaded.unreadable_] == ["image_0012"]
        assert loaded.unreadable_ == detector.unreadable_


class Nearest:
    """A user's own scorer that names neighbours; no relation of KNNScorer."""

    name = "own"
    max_rows = 5000
    least_images = 4

    def fit(self, X, groups=None):
        self.bank_, self.groups_, self.bank_rows_ = X, groups, np.arange(len(X))
        return self

    def score(self, X):
        return self.score_and_nearest(X)[0]

    def score_and_nearest(self, X):
        squared = ((X[:, None] - self.bank_[None]) ** 2).sum(axis=2)
        return squared.min(axis=1), squared.argmin(axis=1), np.sqrt(squared.min(axis=1))

    def parameters(self):
        return {}


class TestAScorerOfOnesOwn:
    def test_gets_what_it_can_do(self, parts):
        assert isinstance(Nearest(), ExplainsByNeighbors)
        detector = Detector(scorer=Nearest(), image_size=64).fit(parts)
        scores = detector.score(parts[:2])
        assert [found.train_id for found in scores.nearest] == ["image_0000", "image_0001"]
        with pytest.raises(ValueError, match="4 good images are the least"):
            Detector(scorer=Nearest(), image_size=64).fit(parts[:3])
