"""What is kept of labelled images: embedded once per network and pooling, whatever changes a vector kept apart."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_lite import Detector, compare, make_metal_nut
from anomalib_lite.embedding import backbones
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.pooling import Features
from anomalib_lite.embedding.streaming import EmbeddedSource
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.supervised import cached
from anomalib_lite.supervised.cached import CachedImages, CachedSource
from anomalib_lite.supervised.classifier import Classifier
from anomalib_lite.supervised.labelled import open_labelled
from anomalib_lite.supervised.splitting import Split, split, survey

DETECTORS = ["knn", "kmeans", "dbscan", "knn-global"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached") / "nuts"
    return open_labelled(make_metal_nut(folder, n_train=4, n_good=4, n_defect=2, size=64))


@pytest.fixture
def passes(monkeypatch):
    """Images that go through a network from here on, by level."""
    counted = {"patch": 0, "global": 0}
    embed = Embedder.features

    def counting(self, batch):
        counted[self.level] += len(batch)
        return embed(self, batch)

    monkeypatch.setattr(Embedder, "features", counting)
    return counted


@pytest.fixture
def small_networks(monkeypatch):
    """Backbones see 64 pixels instead of 256."""
    monkeypatch.setattr(backbones, "default_input_size", lambda name: 64)


def embedder(level="global", **options):
    return Embedder(level=level, image_size=64, **{"dtype": "float32", **options})


@pytest.mark.usefixtures("small_networks")
class TestPasses:
    def test_every_image_once_for_all_detectors_and_seeds(self, images, passes):
        compare(images, models=DETECTORS, seeds=2, leave_one_out=False, few_labels=[])
        assert len(images) == 16
        assert passes == {"patch": 16, "global": 16}

    def test_heads_on_frozen_vectors_share_them(self, images, passes):
        compare(images, models=["linear", "bottleneck", "knn-global"], seeds=2, epochs=1, few_labels=[2])
        assert passes == {"patch": 0, "global": 16}

    def test_without_colour_they_are_others(self, images, passes):
        compare(
            images, models=["linear", "knn-global"], seeds=1, epochs=1, leave_one_out=False, few_labels=[], grey=True
        )
        assert passes == {"patch": 0, "global": 32}  # in colour to find near-duplicates


class TestScores:
    @pytest.mark.parametrize(("level", "scorer"), [("patch", "knn"), ("patch", "kmeans"), ("global", "subspace")])
    @pytest.mark.parametrize("limit", [cached._IN_MEMORY, 0])
    def test_are_those_without_a_cache(self, images, level, scorer, limit, monkeypatch, passes):
        monkeypatch.setattr(cached, "_IN_MEMORY", limit)
        options = {"level": level, "scorer": scorer, "image_size": 64, "n_clusters": 8}
        parts = split(images, survey(images))
        good = parts.learning[~images.defective[parts.learning]]
        options["dtype"] = "float32"
        plain = Detector(**options).fit(images.some(good)).score(images.some(parts.test))
        cache = CachedImages(images)
        before = dict(passes)
        ours = Detector(**options).fit(CachedSource(cache, good)).score(CachedSource(cache, parts.test))
        assert passes[level] == before[level] + len(images)
        # A cache keeps patches; without one the reduction is folded into their pooling.
        np.testing.assert_allclose(ours.scores, plain.scores, rtol=1e-4 if level == "patch" else 0)
        np.testing.assert_array_equal(ours.p_values, plain.p_values)
        assert ours.ids == plain.ids
        assert ours.image_sizes == plain.image_sizes
        assert len(set(ours.scores.tolist())) > 3

    def test_a_classifier_predicts_the_same(self, images):
        parts, cache = split(images), CachedImages(images)
        classifier = Classifier("linear", image_size=64, epochs=2).fit(images, parts, cache=cache)
        plain = classifier.predict(images.some(parts.test))
        np.testing.assert_array_equal(
            classifier.predict(CachedSource(cache, parts.test)).probabilities, plain.probabilities
        )


class TestKey:
    """Whatever changes a vector keeps it apart."""

    @pytest.mark.parametrize(
        ("options", "grey"),
        [({"dtype": "bfloat16"}, False), ({"level": "patch"}, False), ({"image_size": 96}, False), ({}, True)],
    )
    def test_tells_apart(self, images, options, grey):
        first = embedder()
        other = Embedder(**{"level": "global", "image_size": 64, "dtype": "float32", **options})
        cache = CachedImages(images)
        vectors = cache.embeddings(first).values
        others = cache.embeddings(other, grey=grey).values
        assert vectors.shape != others.shape or not np.array_equal(vectors, others)
        np.testing.assert_array_equal(others, CachedImages(images).embeddings(other, grey=grey).values)

    def test_of_a_device_too(self, images):
        cache, elsewhere = CachedImages(images), embedder()
        elsewhere.device = SimpleNamespace(type="xpu")
        elsewhere.features = lambda batch: Features([torch.ones(len(batch), 5)], 64)
        assert cache.embeddings(embedder()) is cache.embeddings(embedder())
        assert cache.embeddings(elsewhere).values.shape == (16, 5)


class TestMemory:
    def test_what_is_too_much_lies_in_a_file(self, images, monkeypatch):
        size = 16 * 64 * 64 * 3
        monkeypatch.setattr(cached, "_IN_MEMORY", size + 10)
        cache = CachedImages(images)
        first, second = cache.pixels(64).values, cache.pixels(72).values
        assert not isinstance(first, np.memmap)
        assert isinstance(second, np.memmap)
        assert isinstance(cache.embeddings(embedder("patch")).values, np.memmap)
        np.testing.assert_array_equal(second, CachedImages(images).pixels(72).values)

    def test_a_full_disk_is_an_error_not_the_end(self, images, monkeypatch):
        monkeypatch.setattr(cached, "_IN_MEMORY", 0)
        monkeypatch.setattr(cached.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"has no room for 0\.0 GB of images; name another folder with TMPDIR"):
            CachedImages(images).pixels(64)


class TestUnreadable:
    @pytest.fixture
    def broken(self, tmp_path):
        for kind in ("good", "dent"):
            (tmp_path / kind).mkdir()
            for i in range(3):
                Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(tmp_path / kind / f"{i}.png")
        (tmp_path / "good" / "1.png").write_bytes(b"no picture")
        return open_labelled(tmp_path)

    def test_are_listed_once_and_not_asked_for_again(self, broken):
        cache = CachedImages(broken)
        surveyed = survey(broken, cache)
        assert [one.id for one in surveyed.unreadable] == ["good/1.png"]
        assert surveyed.readable.tolist() == [0, 1, 2, 3, 5]
        assert cache.pixels(32).values[5].any()
        assert [one.id for one in cache.unreadable] == ["good/1.png"]

    def test_one_that_is_to_be_learnt_from_is_named(self, broken):
        parts = Split(np.array([0, 1, 3, 4]), np.array([], int), np.array([2, 5]))
        for model in ("linear", "cnn"):
            with pytest.raises(UnreadableImageError, match=r"good/1\.png"):
                Classifier(model, image_size=32, epochs=1).fit(broken, parts)


def test_a_source_is_one_by_shape(images):
    source = CachedSource(CachedImages(images), np.array([3, 1]))
    assert isinstance(source, ImageSource)
    assert isinstance(source, EmbeddedSource)
    assert source.ids == [images.ids[3], images.ids[1]]
    np.testing.assert_array_equal(source.read(1), images.source.read(1))
