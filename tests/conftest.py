"""Images and weights that several tests share."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import launched

from anomalib_lite import Detector
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.synthetic import make_metal_nut
from anomalib_lite.machine.memory import peak_rss_mb

SECONDS_FOR_SLOW = 900


def pytest_collection_modifyitems(items):
    """More time for slow tests than `timeout` in pyproject.toml gives, unless they say how much."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS_FOR_SLOW))


@pytest.fixture(scope="session", autouse=True)
def _own_measurements(tmp_path_factory):
    """What is measured of this machine stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALIB_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory):
    """A small set of drawn metal nuts in the layout of MVTec AD."""
    folder = tmp_path_factory.mktemp("synthetic") / "metal_nut"
    return make_metal_nut(folder, n_train=16, n_good=6, n_defect=3, size=128)


@pytest.fixture(scope="session")
def data(synthetic_set):
    """The drawn metal nuts, opened."""
    return open_mvtec(synthetic_set)


@pytest.fixture(scope="session")
def model(data, tmp_path_factory):
    """The file of a detector that was fitted on them."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return Detector(image_size=64).fit(data.train).save(path)


@pytest.fixture(scope="session")
def real_data():
    """The folder that holds copies of real categories; they are never part of the checkout."""
    return _beside_the_checkout("data", "ANOMALIB_LITE_DATA")


@pytest.fixture(scope="session")
def real_weights():
    """The folder that holds weights of torchvision's networks."""
    return _beside_the_checkout("weights", "ANOMALIB_LITE_WEIGHTS")


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the command line; returns exit code, stdout and stderr."""

    def call(*arguments):
        from anomalib_lite import cli

        monkeypatch.setattr(sys, "argv", ["anomalib-lite", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capfd.readouterr()
        return exit_.value.code or 0, out, err

    return call


@pytest.fixture
def little_memory():
    """A context that must not take 500 MB more, however quickly they are given back."""

    @contextmanager
    def bounded():
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            yield
            return
        before = peak_rss_mb()
        yield
        assert peak_rss_mb() - before < 500

    return bounded()


def _beside_the_checkout(name, variable):
    default = Path(__file__).parent.parent.parent / "shared" / name
    folder = Path(os.environ.get(variable) or default)
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; set {variable} to run this test")
    return folder
