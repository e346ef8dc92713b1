"""A detector in 8-bit integers: calibrated by its fit, kept with the model, and the same wherever it is opened."""

import json
import warnings

import numpy as np
import pytest

from anomalib_lite import Detector
from anomalib_lite.embedding import streaming
from anomalib_lite.files import model_file
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.machine import hardware
from anomalib_lite.machine.integers import onednn_fault

ENGINES = ["reference", pytest.param("onednn", marks=pytest.mark.skipif(bool(onednn_fault()), reason=onednn_fault()))]


def draw(n, *, start=0, defect=None, size=64):
    return [render_part(np.random.default_rng(start + i), size, defect)[0] for i in range(n)]


@pytest.fixture(scope="module")
def good():
    return draw(14)


@pytest.fixture(scope="module")
def bad():
    return draw(6, start=100, defect="scratch")


@pytest.fixture(scope="module")
def fitted(good):
    return Detector(image_size=64, dtype="int8", engine="reference", false_alarm_rate=0.1).fit(good)


class TestFit:
    def test_learns_the_ranges_from_the_good_images(self, fitted, good, bad):
        assert fitted.embedder.dtype == "int8"
        assert set(fitted.fitted_.embedder["ranges"]) == set(fitted.embedder.ranges)
        others = Detector(image_size=64, dtype="int8", engine="reference").fit([*draw(6), *draw(8, defect="color")])
        assert others.embedder.ranges != fitted.embedder.ranges
        assert fitted.score(bad).scores.mean() > fitted.score(draw(6, start=50)).scores.mean()

    def test_scores_are_near_those_in_float32(self, fitted, good, bad):
        floats = Detector(image_size=64, dtype="float32", false_alarm_rate=0.1).fit(good)
        expected, found = floats.score([*good, *bad]).scores, fitted.score([*good, *bad]).scores
        assert np.corrcoef(expected, found)[0, 1] > 0.97
        assert not np.array_equal(expected, found)

    def test_images_are_read_once(self, good, monkeypatch):
        monkeypatch.setattr(streaming, "_CALIBRATING", 5)
        reads = []

        class Counting:
            ids = tuple(map(str, range(14)))

            def __len__(self):
                return 14

            def read(self, i):
                reads.append(i)
                return good[i]

        detector = Detector(image_size=64, dtype="int8", engine="reference").fit(Counting())
        assert sorted(reads) == [0, *range(14)]  # the first tells the proportions
        assert detector.n_train_ == 14

    def test_what_cannot_be_read_is_left_out(self, good, monkeypatch):
        monkeypatch.setattr(streaming, "_CALIBRATING", 5)
        detector = Detector(image_size=64, dtype="int8", engine="reference").fit([b"broken", *good, b"broken"])
        assert (detector.n_train_, len(detector.unreadable_)) == (14, 2)

    def test_another_fit_learns_others_and_the_first_core_keeps_its_own(self, good):
        detector = Detector(image_size=64, dtype="int8", engine="reference").fit(good[:8])
        first, ranges = detector._learnt, detector.embedder.ranges
        before = detector.score(good).scores
        detector.fit(good[6:])
        assert detector.embedder.ranges != ranges
        detector._learnt = first
        assert np.array_equal(detector.score(good).scores, before)

    @pytest.mark.parametrize("level", ["patch", "global"])
    @pytest.mark.parametrize("scorer", ["knn", "kmeans", "dbscan", "subspace"])
    def test_with_every_scorer(self, good, bad, scorer, level):
        detector = Detector(image_size=64, dtype="int8", scorer=scorer, level=level, n_clusters=4).fit(good)
        scores = detector.score([*draw(6, start=50), *bad]).scores
        assert np.isfinite(scores).all()
        assert len(set(scores.tolist())) == 12


class TestModelFile:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_scores_alike_on_any_engine(self, fitted, good, bad, tmp_path, engine):
        images = [*good, *bad]
        expected = fitted.score(images)
        loaded = Detector.load(fitted.save(tmp_path / "m.safetensors"), engine=engine)
        assert (loaded.embedder.dtype, loaded.embedder.engine) == ("int8", engine)
        found = loaded.score(images)
        assert found.scores == pytest.approx(expected.scores, rel=1e-3)
        near = np.abs(expected.scores - expected.threshold) < 1e-3 * expected.threshold
        assert np.array_equal(found.alarms[~near], expected.alarms[~near])

    def test_of_auto_stays_what_it_was_fitted_in(self, good, tmp_path, monkeypatch):
        for dtype, quickest in (("int8", "float32"), ("float32", "int8")):
            monkeypatch.setattr("anomalib_lite.embedding.embedder.pick_arithmetic", lambda _, d=dtype: d)
            detector = Detector(image_size=64).fit(good)
            path = detector.save(tmp_path / "m.safetensors")
            monkeypatch.setattr("anomalib_lite.embedding.embedder.pick_arithmetic", lambda _, d=quickest: d)
            loaded = Detector.load(path)
            assert loaded.embedder.dtype == dtype
            assert np.array_equal(loaded.score(good).scores, detector.score(good).scores)

    def test_an_engine_that_this_machine_lacks_is_replaced_and_said(self, good, tmp_path, monkeypatch):
        if onednn_fault():
            pytest.skip(onednn_fault())
        detector = Detector(image_size=64, dtype="int8", engine="onednn").fit(good)
        path = detector.save(tmp_path / "m.safetensors")
        for module in ("machine.integers", "embedding.embedder"):
            monkeypatch.setattr(f"anomalib_lite.{module}.onednn_fault", lambda: "no VNNI")
        with pytest.warns(UserWarning, match="in float32 here, with the same scores but no quicker: no VNNI"):
            loaded = Detector.load(path)
        assert loaded.score(good).scores == pytest.approx(detector.score(good).scores, rel=1e-3)
        with pytest.raises(ValueError, match="engine='onednn' does not work here: no VNNI"):
            Detector.load(path, engine="onednn")

    @pytest.mark.parametrize(("fitted_in", "asked"), [("float32", "int8"), ("int8", "float32"), ("int8", "bfloat16")])
    def test_cannot_be_computed_otherwise(self, good, tmp_path, fitted_in, asked):
        path = Detector(image_size=64, dtype=fitted_in).fit(good).save(tmp_path / "m.safetensors")
        with pytest.raises(ValueError, match=f"fitted in {fitted_in} and cannot be computed in {asked}; fit") as error:
            Detector.load(path, dtype=asked)
        assert not isinstance(error.value, ModelFileError)
        assert Detector.load(path, dtype="auto").embedder.dtype == fitted_in

    @pytest.mark.parametrize(
        "change",
        [
            lambda ranges: {},
            lambda ranges: None,
            lambda ranges: "text",
            lambda ranges: ranges | {"elsewhere": [0.0, 1.0]},
            lambda ranges: {name: values[:-1] for name, values in ranges.items()},
            lambda ranges: {name: [*values[:2], *["mean"] * (len(values) - 2)] for name, values in ranges.items()},
            lambda ranges: {
                name: [*values[:2], *[float("nan")] * (len(values) - 2)] for name, values in ranges.items()
            },
            lambda ranges: {key: [0.0] for key in ranges},
            lambda ranges: {key: [1.0, 0.0] for key in ranges},
            lambda ranges: {key: ["low", "high"] for key in ranges},
            lambda ranges: {key: [0.0, 1e300] for key in ranges},
        ],
        ids=range(11),
    )
    def test_damaged_ranges_are_refused(self, fitted, tmp_path, change):
        arrays, values = model_file.load_file(fitted.save(tmp_path / "m.safetensors"))
        values["embedder"]["ranges"] = change(values["embedder"]["ranges"])
        model_file.save_file(tmp_path / "other.safetensors", arrays, values)
        with pytest.raises(ModelFileError, match="damaged"):
            Detector.load(tmp_path / "other.safetensors")

    @pytest.mark.parametrize("dtype", ["int8", "float32"])
    def test_opening_one_measures_nothing(self, good, tmp_path, monkeypatch, dtype):
        path = Detector(image_size=64, dtype=dtype, bank_size=200).fit(good).save(tmp_path / "m.safetensors")
        monkeypatch.setattr(hardware, "dtype_times", lambda device: pytest.fail("measured"))
        assert Detector.load(path).embedder.dtype == dtype

    def test_json_holds_the_ranges(self, fitted, tmp_path):
        _, values = model_file.load_file(fitted.save(tmp_path / "m.safetensors"))
        assert json.loads(json.dumps(values["embedder"]["ranges"])).keys() == fitted.embedder.ranges.keys()


class TestWarmUp:
    def test_changes_nothing(self, fitted, good):
        expected = fitted.score(good).scores
        assert fitted.warm_up() is fitted
        assert np.array_equal(fitted.score(good).scores, expected)

    def test_needs_a_fit(self):
        with pytest.raises(RuntimeError, match="not fitted yet"):
            Detector(image_size=64).warm_up()

    def test_leaves_nothing_to_lay_out(self, good, monkeypatch):
        if onednn_fault():
            pytest.skip(onednn_fault())
        detector = Detector(image_size=64, dtype="int8", engine="onednn").fit(good[:5]).warm_up()
        import torch

        def fail(*_, **__):
            pytest.fail("weights were laid out again")

        monkeypatch.setattr(torch.ops.onednn, "qconv_prepack", fail)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for count in (1, 3, detector.embedder.batch_size):
                assert len(detector.score((good * 2)[:count])) == count
