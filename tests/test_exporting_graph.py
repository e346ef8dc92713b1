import json

import numpy as np
import pytest

from anomalib_lite import Detector
from anomalib_lite.exporting import integers, network, searching, writing
from anomalib_lite.exporting.building import build
from anomalib_lite.exporting.checking import ExportMismatchError, compare, drawn_images
from anomalib_lite.exporting.graph import Graph, UnsupportedOpsetError, i64
from anomalib_lite.exporting.resizing import resized
from anomalib_lite.exporting.writing import by_onnxruntime, export
from anomalib_lite.images.framing import resize
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.machine.integers import onednn_fault
from anomalib_lite.scoring import KNNScorer

onnx = pytest.importorskip("onnx", reason="the extra [export] is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
SMALL = {"image_size": 64, "bank_size": 300, "dtype": "float32", "device": "cpu"}


def parts(n, size=96):
    return [render_part(np.random.default_rng(i), size)[0] for i in range(n)]


@pytest.fixture(scope="module")
def detector():
    return Detector(**SMALL, false_alarm_rate=0.2).fit(parts(10))


def session(g, inputs, outputs):
    """What runs a graph, given examples of its inputs (of any size) and the types of its outputs."""
    helper = onnx.helper
    graph = helper.make_graph(
        g.nodes,
        "tried",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(given.dtype), [None] * given.ndim)
            for name, given in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        initializer=[onnx.numpy_helper.from_array(values, name) for name, values in g.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString())


def run_graph(g, inputs, outputs):
    return session(g, inputs, outputs).run(None, inputs)


def resizing(target):
    g = Graph(18)
    shape = g("Shape", "image")
    size = tuple(g("Gather", shape, i64(axis), axis=0) for axis in (0, 1))
    places = [g.constant(i64(np.arange(side))) for side in target]
    found = resized(g, "image", size, tuple(g.constant(i64(side)) for side in target), places)
    return session(g, {"image": np.zeros((1, 1, 3), np.uint8)}, {found: onnx.TensorProto.FLOAT})


class TestResizing:
    @pytest.mark.parametrize("target", [(48, 32), (20, 60)])
    def test_is_pils_to_the_last_bit(self, target):
        session, rng = resizing(target), np.random.default_rng(0)
        sizes = [target, (96, 64), (47, 33), (300, 40), (40, 300), (3, 5), (48, 70), (70, 32), (201, 99)]
        for size in sizes:
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            np.testing.assert_array_equal(session.run(None, {"image": pixels})[0], resize(pixels, target), str(size))


class TestSearching:
    @pytest.mark.parametrize("spread", [1.0, 0.03], ids=["far apart", "nearly tied"])
    def test_a_short_list_of_integers_loses_no_neighbour(self, spread):
        """Rows in clusters: where their members are nearly tied, integers leave a doubt about every query."""
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(40, 24))
        bank, queries = (
            (centres[rng.integers(0, 40, n)] + spread * rng.normal(size=(n, 24))).astype(np.float32)
            for n in (1500, 200)
        )
        queries[0] = bank[7]
        g = Graph(18)
        halves = (bank.astype(np.float64) ** 2).sum(axis=1) / 2
        distances, which = searching._nearest_by_integers(g, "queries", bank, halves.astype(np.float32), 3)
        kinds = {distances: onnx.TensorProto.FLOAT, which: onnx.TensorProto.INT64}
        found = run_graph(g, {"queries": queries}, kinds)
        apart = np.linalg.norm(queries[:, None].astype(np.float64) - bank, axis=2)
        np.testing.assert_allclose(found[0], np.sort(apart, axis=1)[:, :3], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(apart, found[1], axis=1), found[0], rtol=1e-5, atol=1e-6)


class TestTheGraph:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"scorer": "kmeans", "n_clusters": 20},
            {"scorer": "dbscan"},
            {"scorer": "subspace"},
            {"level": "global", "scorer": "knn", "k": 1},
            {"level": "both", "context": 1.5, "image_size": (72, 64)},
            {"tiles": (2, 2), "image_size": 48},
            {"roi": (0.1, 0.2, 0.9, 0.8)},
            {"dtype": "int8", "engine": "reference", "context": 1.0},
            {"n_components": None},
        ],
        ids=str,
    )
    def test_says_what_the_library_says(self, settings):
        fitted = Detector(**{**SMALL, **settings}).fit(parts(8))
        model = build(fitted.fitted_, fitted.embedder, digest=fitted.digest)
        run = by_onnxruntime(model.SerializeToString())
        check = compare(run, fitted.fitted_, fitted.embedder, drawn_images(fitted.embedder.frame))
        assert check.score < 1e-5
        assert check.anomaly_map < 1e-4
        assert check.images >= 4

    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("settings", [{}, {"backbone": "resnet18", "weights": "random", "level": "both"}], ids=str)
    def test_integers_are_computed_as_such(self, monkeypatch, settings, exact):
        """By signed weights and, where their sums are not exact, by unsigned ones."""
        fitted = Detector(**{**SMALL, "dtype": "int8", "engine": "reference"} | settings).fit(parts(6))
        monkeypatch.setattr(network, "sums_are_exact", lambda g, pixels: g.constant(np.asarray(exact)))
        model = build(fitted.fitted_, fitted.embedder, digest="")
        (choice,) = [node for node in model.graph.node if node.op_type == "If" and len(node.output) < 3][-1:]
        inside = [node.op_type for branch in choice.attribute for node in branch.g.node]
        assert inside.count("MatMulInteger") > 10
        run = by_onnxruntime(model.SerializeToString())
        assert compare(run, fitted.fitted_, fitted.embedder, drawn_images(fitted.embedder.frame)).score < 1e-5

    def test_sums_of_integers_are_exact_here(self):
        g = Graph(18)
        exact = integers.sums_are_exact(g, "pixels")
        found = run_graph(g, {"pixels": np.zeros((4, 5, 3), np.uint8)}, {exact: onnx.TensorProto.BOOL})
        assert found[0] == (not onednn_fault())

    def test_windows_are_seen_one_after_another(self):
        from dataclasses import replace

        from anomalib_lite.images.framing import Frame

        fitted = Detector(**{**SMALL, "image_size": 96}).fit(parts(6))
        frame = Frame((96, 96), count=(2, 2), window=(64, 64))
        embedder = fitted.embedder.framed(frame)
        core = replace(fitted.fitted_, frame=frame)
        run = by_onnxruntime(build(core, embedder, digest="").SerializeToString())
        assert compare(run, core, embedder, drawn_images(frame)).score < 1e-5

    @pytest.mark.parametrize("name", ["resnet18", "vgg16", "inception_v3"])
    def test_networks_of_torchvision(self, name):
        fitted = Detector(**{**SMALL, "image_size": 96}, backbone=name, weights="random").fit(parts(4, 64))
        run = by_onnxruntime(build(fitted.fitted_, fitted.embedder, digest="").SerializeToString())
        some = list(drawn_images(fitted.embedder.frame))[:3]
        assert compare(run, fitted.fitted_, fitted.embedder, some).score < 1e-4

    def test_a_picture_of_other_proportions_than_a_region_gets_no_verdict(self):
        fitted = Detector(**SMALL, roi=(0.1, 0.2, 0.9, 0.8)).fit(parts(5))
        run = by_onnxruntime(build(fitted.fitted_, fitted.embedder, digest="").SerializeToString())
        found = run(np.zeros((64, 128, 3), np.uint8))
        assert found["verdict"] == -1
        assert np.isnan(found["score"])

    def test_look_again(self, detector):
        between = detector.at_threshold(3.0, look_again=1.0)
        run = by_onnxruntime(build(between.fitted_, between.embedder, digest="").SerializeToString())
        images = [pixels for _, pixels in drawn_images(between.embedder.frame)]
        expected = between.score(images).verdicts
        assert [["good", "look again", "alarm"][int(run(pixels)["verdict"])] for pixels in images] == expected
        assert len(set(expected)) > 1


class TestExport:
    def test_writes_what_it_has_checked(self, detector, tmp_path):
        check = export(detector, tmp_path / "model.onnx", check=parts(3, 120))
        assert check.images == 3
        assert check.verdicts == 0
        told = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
        assert json.loads(told["model"]) == detector.digest
        assert json.loads(told["threshold"]) == detector.fitted_.calibration.threshold
        assert json.loads(told["false_alarm_rate"]) == 0.2
        assert json.loads(told["parameters"])["bank_size"] == 300

    def test_openvino(self, detector, tmp_path):
        pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
        check = export(detector, tmp_path / "model.xml")
        assert check.score < 1e-3
        assert {path.name for path in tmp_path.iterdir()} == {"model.xml", "model.bin"}
        assert detector.digest in (tmp_path / "model.xml").read_text()

    @pytest.mark.parametrize("changed", ["score", "anomaly_map"])
    def test_an_export_that_differs_is_refused(self, detector, tmp_path, monkeypatch, changed):
        def wrong(content, **_):
            run = by_onnxruntime(content)
            return lambda pixels: {**(found := run(pixels)), changed: found[changed] * 1.02 + 0.001}

        monkeypatch.setattr(writing, "by_onnxruntime", wrong)
        with pytest.raises(ExportMismatchError, match="refused, and nothing was written"):
            export(detector, tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())

    def test_errors_come_before_the_work(self, detector, tmp_path):
        with pytest.raises(ValueError, match="choose one of these suffixes"):
            export(detector, tmp_path / "model.pb")
        with pytest.raises(OSError, match="cannot save"):
            export(detector, tmp_path / "nowhere" / "model.onnx")
        with pytest.raises(ValueError, match="opset=16 lacks ReduceMean"):
            export(detector, tmp_path / "model.onnx", opset=16)

    def test_an_operator_that_the_opset_lacks(self):
        with pytest.raises(UnsupportedOpsetError, match="opset 9 has no operator Range"):
            Graph(9)("Range", i64(0), i64(3), i64(1))

    def test_a_scorer_of_the_users_own(self, tmp_path):
        class Mine(KNNScorer):
            pass

        fitted = Detector(**SMALL, scorer=Mine(bank_size=50)).fit(parts(4))
        with pytest.raises(ValueError, match="a Mine cannot be"):
            export(fitted, tmp_path / "model.onnx")

    def test_a_missing_package_is_named(self, detector, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
        with pytest.raises(ImportError, match=r"anomalib_lite\[export\]"):
            export(detector, tmp_path / "model.onnx")

    def test_the_command(self, detector, tmp_path, run):
        model = detector.save(tmp_path / "model.safetensors")
        code, out, err = run("export", model, "-o", tmp_path / "model.onnx")
        assert (code, err) == (0, "")
        assert "scores differ by" in out
        assert (tmp_path / "model.onnx").is_file()
