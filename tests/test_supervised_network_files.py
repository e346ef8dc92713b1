"""Files of trained networks: what is wrong with one is said, and nothing is believed before it is checked."""

import urllib.error

import numpy as np
import pytest
import torch

from anomalib_lite import Classifier, Segmenter
from anomalib_lite.embedding.weights import WeightsError
from anomalib_lite.files.model_file import ModelFileError, load_file, save_file

LOADERS = {"classifier": Classifier.load, "segmenter": Segmenter.load}


@pytest.fixture(scope="module")
def saved(synthetic_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    Classifier("cnn", image_size=32, epochs=1).fit(synthetic_set).save(folder / "classifier.safetensors")
    Segmenter(depth=2, width=4, image_size=32, epochs=1).fit(synthetic_set).save(folder / "segmenter.safetensors")
    for model in ("linear", "bottleneck", "finetune"):
        classifier = Classifier(model, image_size=32, epochs=1).fit(synthetic_set)
        classifier.save(folder / f"classifier-{model}.safetensors")
    encoded = Segmenter(encoder="builtin", width=4, image_size=32, epochs=1).fit(synthetic_set)
    encoded.save(folder / "segmenter-encoded.safetensors")
    return folder


FILES = (
    *("classifier", "classifier-linear", "classifier-bottleneck", "classifier-finetune"),
    *("segmenter", "segmenter-encoded"),
)


@pytest.fixture
def tampered(saved, tmp_path):
    """A copy of the file of that name, with other settings or arrays, and a checksum that fits them."""

    def tamper(name, settings=None, arrays=None, manifest=None):
        path, kind = tmp_path / f"{name}.safetensors", name.split("-")[0]
        held, stored = load_file(saved / path.name, kind=kind)
        stored["config"] |= settings or {}
        return save_file(path, held if arrays is None else arrays(held), stored | (manifest or {}), kind=kind)

    return tamper


def load(path):
    return LOADERS[path.name.split(".")[0].split("-")[0]](path)


@pytest.mark.parametrize("name", FILES)
def test_an_untouched_copy_opens(tampered, name):
    assert load(tampered(name)).image_size == 32


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("classifier", "image_size", 2048),
        ("classifier", "image_size", 10**9),
        ("classifier", "image_size", 32.0),
        ("classifier", "dropout", 3),
        ("classifier", "dropout", "0.5"),
        ("classifier", "dropout", float("nan")),
        ("classifier", "rate_decay", float("nan")),
        ("classifier", "grey", [0] * 1000),
        ("classifier", "model", 1),
        ("classifier", "augmentation", {"rotation": "far"}),
        ("classifier-linear", "model", "bottleneck"),
        ("classifier-linear", "model", "cnn"),
        ("classifier-finetune", "backbone", {"backbone": "vit_h_14", "layers": ["add"] * 1_000_000}),
        ("segmenter", "image_size", 10**8),
        ("segmenter", "image_size", True),
        ("segmenter", "width", 10**6),
        ("segmenter", "width", 10**300),
        ("segmenter", "width", 4.0),
        ("segmenter", "depth", 11),
        ("segmenter", "depth", 10**10),
        ("segmenter", "depth", 10**30),
        ("segmenter", "encoder", 3),
        ("segmenter", "encoder", {"backbone": "resnet18", "layers": []}),
        ("segmenter", "augmentation", 4),
        ("segmenter-encoded", "width", 10**7),
        ("segmenter-encoded", "encoder", None),
    ],
)
def test_settings_that_do_not_fit_fill_no_memory(tampered, name, key, value, little_memory):
    path = tampered(name, {key: value})
    with little_memory, pytest.raises(ModelFileError, match=rf"{name}\.safetensors is damaged") as caught:
        load(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["classifier", "classifier-linear", "classifier-bottleneck", "classifier-finetune"])
@pytest.mark.parametrize("classes", [["a"], ["a"] * 1_000_000, [1, 2, 3, 4, 5], "abcde", {"a": 1}, [], None])
def test_classes_that_do_not_fit_fill_no_memory(tampered, name, classes, little_memory):
    path = tampered(name, manifest={"classes": classes})
    with little_memory, pytest.raises(ModelFileError, match=rf"{name}\.safetensors is damaged"):
        load(path)


def test_vectors_of_no_length_fill_no_memory(tampered, little_memory):
    """Rows without columns take no bytes in a file, however many they are."""
    path = tampered("classifier-linear", arrays=lambda arrays: {**arrays, "mean": np.zeros((100_000, 0), np.float32)})
    with (
        little_memory,
        pytest.raises(ModelFileError, match=r"linear\.safetensors is .* damaged \(mean is .*, of shape"),
    ):
        load(path)


@pytest.mark.parametrize("size", [1024, 2048])
def test_an_encoder_sees_no_image_while_it_is_opened(tampered, size, little_memory):
    with little_memory:
        assert load(tampered("segmenter-encoded", {"image_size": size})).image_size == size


def test_a_map_that_would_fill_the_memory_is_refused_before_and_after():
    with pytest.raises(ValueError, match=r"image_size=2048, width=256: one map of an image would take 4\.3 GB; give"):
        Segmenter(image_size=2048, width=256)


ODD = [None, True, -1, 0, 7, 1.5, 2**31, 10**30, float("nan"), float("inf"), "", "0.5", "x" * 10_000, [], [[]], {}]


@pytest.mark.parametrize("name", FILES)
def test_any_odd_value_anywhere(saved, tmp_path, name, little_memory):
    """It opens, or is said to be damaged; and takes no memory."""
    path, kind = tmp_path / f"{name}.safetensors", name.split("-")[0]
    held, stored = load_file(saved / path.name, kind=kind)
    config = stored["config"]
    backbone = config.get("backbone") or config.get("encoder") or {}
    places = [*((stored, key) for key in ("config", "classes") if key in stored), *((config, key) for key in config)]
    places += [(backbone, key) for key in backbone] + [
        (config["augmentation"] or {}, key) for key in ("rotation", "zoom")
    ]
    refused = 0
    with little_memory:
        for i, (place, key) in enumerate(places):
            before = place.get(key)
            for value in ODD[i % 5 :: 5]:
                place[key] = value
                try:
                    load(save_file(path, held, stored, kind=kind))
                except ModelFileError as error:
                    refused += 1
                    assert len(str(error)) < 2000, (key, value)  # noqa: PT017
            place[key] = before
    assert refused > len(places) * len(ODD) / 5 / 2


class TestDownload:
    """A model from a stranger does not make this machine reach for the network."""

    @pytest.fixture
    def path(self, synthetic_set, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        network = {"backbone": "squeezenet1_1", "weights": "random"}
        return (
            Classifier("linear", **network, image_size=64, epochs=1).fit(synthetic_set).save(tmp_path / "c.safetensors")
        )

    def test_unless_told_to(self, path, monkeypatch):
        asked = []

        def refuse(request, *_args, **_kwargs):
            asked.append(request.full_url)
            raise urllib.error.URLError("offline")

        monkeypatch.setattr(torch.hub, "urlopen", refuse)
        with pytest.raises(WeightsError, match=r"squeezenet1_1 could not be downloaded \(opening .* download=True\)"):
            Classifier.load(path)
        assert asked == []
        with pytest.raises(WeightsError, match=r"squeezenet1_1 could not be downloaded \(.*offline"):
            Classifier.load(path, download=True)
        assert len(asked) == 1

    def test_weights_that_are_given_are_enough(self, path):
        assert Classifier.load(path, weights="random").embedder.backbone == "squeezenet1_1"


def _without_the_first(arrays):
    return dict(list(arrays.items())[1:])


def _of_another_shape(arrays):
    name = next(iter(arrays))
    return {**arrays, name: np.zeros((*arrays[name].shape, 2), np.float32)}


def _with_a_stranger(arrays):
    return {**arrays, "stranger": np.zeros(3, np.float32)}


def _not_a_number(arrays):
    name = next(name for name, value in arrays.items() if value.size > 1)
    return {**arrays, name: np.full_like(arrays[name], np.nan)}


@pytest.mark.parametrize("change", [_without_the_first, _of_another_shape, _with_a_stranger, _not_a_number])
@pytest.mark.parametrize("kind", FILES)
def test_parameters_that_do_not_fit(tampered, kind, change):
    with pytest.raises(ModelFileError, match=rf"{kind}\.safetensors is damaged"):
        load(tampered(kind, arrays=change))


def test_a_setting_that_no_file_has_is_not_obeyed(tampered, tmp_path):
    path = tampered("classifier", {"checkpoint": str(tmp_path / "elsewhere"), "epochs": 10**9})
    assert Classifier.load(path).options.checkpoint is None


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_what_the_caller_asks_wrongly_is_not_the_files_fault(saved, kind):
    with pytest.raises(ValueError, match="dtype='int8'") as caught:
        LOADERS[kind](saved / f"{kind}.safetensors", dtype="int8")
    assert not isinstance(caught.value, ModelFileError)


def test_kinds_are_not_mistaken_for_each_other(saved):
    with pytest.raises(ModelFileError, match=r"holds a classifier, not a segmenter; open it with Classifier\.load"):
        Segmenter.load(saved / "classifier.safetensors")
    with pytest.raises(ModelFileError, match=r"holds a segmenter, not a classifier; open it with Segmenter\.load"):
        Classifier.load(saved / "segmenter.safetensors")
