"""Files of trained networks: what is wrong with one is said, and nothing is believed before it is checked."""

import numpy as np
import pytest

from anomalib_lite import Classifier, Segmenter
from anomalib_lite.files.model_file import ModelFileError, load_file, save_file

LOADERS = {"classifier": Classifier.load, "segmenter": Segmenter.load}


@pytest.fixture(scope="module")
def saved(synthetic_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    Classifier("cnn", image_size=32, epochs=1).fit(synthetic_set).save(folder / "classifier.safetensors")
    Segmenter(depth=2, width=4, image_size=32, epochs=1).fit(synthetic_set).save(folder / "segmenter.safetensors")
    return folder


@pytest.fixture
def tampered(saved, tmp_path):
    """A copy of the file of that kind, with other settings or arrays."""

    def tamper(kind, settings=None, arrays=None, manifest=None):
        path = tmp_path / f"{kind}.safetensors"
        held, stored = load_file(saved / path.name, kind=kind)
        stored["config"] |= settings or {}
        return save_file(path, held if arrays is None else arrays(held), stored | (manifest or {}), kind=kind)

    return tamper


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_an_untouched_copy_opens(tampered, kind):
    assert LOADERS[kind](tampered(kind)).image_size == 32


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("classifier", "image_size", 4096),
        ("classifier", "image_size", 10**9),
        ("classifier", "image_size", 32.0),
        ("classifier", "dropout", 3),
        ("classifier", "model", 1),
        ("classifier", "augmentation", {"rotation": "far"}),
        ("segmenter", "image_size", 10**8),
        ("segmenter", "width", 10**6),
        ("segmenter", "depth", 11),
        ("segmenter", "encoder", 3),
        ("segmenter", "augmentation", 4),
    ],
)
def test_settings_that_do_not_fit_fill_no_memory(tampered, kind, key, value):
    with pytest.raises(ModelFileError, match=rf"{kind}\.safetensors is damaged"):
        LOADERS[kind](tampered(kind, {key: value}))


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
@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_parameters_that_do_not_fit(tampered, kind, change):
    with pytest.raises(ModelFileError, match=rf"{kind}\.safetensors is damaged"):
        LOADERS[kind](tampered(kind, arrays=change))


def test_a_setting_that_no_file_has_is_not_obeyed(tampered, tmp_path):
    path = tampered("classifier", {"checkpoint": str(tmp_path / "elsewhere"), "epochs": 10**9})
    assert Classifier.load(path).options.checkpoint is None


def test_more_classes_than_outputs(tampered):
    with pytest.raises(ModelFileError, match="is damaged"):
        Classifier.load(tampered("classifier", manifest={"classes": ["a", "b"]}))


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
