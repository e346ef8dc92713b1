"""Scores into Parquet: a row for every image, each once, whatever is killed when."""

import json
import os
import signal
import subprocess
import sys
import time

import joblib
import numpy as np
import pytest

from anomalib_lite import Detector
from anomalib_lite.images.sources import open_source
from anomalib_lite.images.synthetic import make_metal_nut
from anomalib_lite.scaling import parquet
from anomalib_lite.scaling.parquet import score_to_parquet

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
SMALL = {"image_size": 64, "bank_size": 200, "false_alarm_rate": 0.1, "dtype": "float32"}


@pytest.fixture(scope="module")
def nuts(tmp_path_factory):
    folder = make_metal_nut(tmp_path_factory.mktemp("parquet") / "nut", n_train=20, n_good=8, n_defect=4, size=64)
    (folder / "test" / "good" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def detector(nuts):
    return Detector(**SMALL).fit(nuts / "train" / "good")


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    return detector.save(tmp_path_factory.mktemp("model") / "model.safetensors")


def rows(folder):
    return pq.read_table(folder).sort_by("number").to_pylist()


class TestRows:
    def test_as_score_tells(self, nuts, detector, tmp_path):
        written = score_to_parquet(detector, nuts / "test", tmp_path / "out", chunk=5)
        scores, found = detector.score(nuts / "test"), rows(tmp_path / "out")
        source = open_source(nuts / "test")
        assert written.rows == len(found) == len(source) > 10
        assert [row["id"] for row in found] == source.ids
        judged = [row for row in found if row["verdict"] != "no verdict"]
        np.testing.assert_allclose([row["score"] for row in judged], scores.scores, rtol=1e-5)
        np.testing.assert_allclose([row["p_value"] for row in judged], scores.p_values, rtol=1e-5)
        assert [row["verdict"] for row in judged] == scores.verdicts
        assert [(row["height"], row["width"]) for row in judged] == scores.image_sizes
        assert {row["model"] for row in found} == {detector.digest}
        assert {row["threshold"] for row in found} == {scores.threshold}
        regions = [len(scores.regions(i)) for i in range(len(scores))]
        assert [len(row["regions"]) for row in judged] == regions
        assert sum(regions) > 0

    def test_what_cannot_be_judged_is_a_row(self, nuts, detector, tmp_path):
        written = score_to_parquet(detector, nuts / "test", tmp_path / "out", chunk=5)
        (lost,) = (row for row in rows(tmp_path / "out") if row["verdict"] == "no verdict")
        assert lost["id"] == "good/broken.png"
        assert lost["score"] is None
        assert lost["reason"].startswith("good/broken.png: not an image")
        assert written.reasons == {"good/broken.png": lost["reason"]}
        assert written.verdicts["no verdict"] == 1

    def test_a_file_is_a_chunk_and_a_row_group(self, nuts, detector, tmp_path):
        score_to_parquet(detector, nuts / "test" / "good", tmp_path / "out", chunk=4)
        files = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert files == ["_manifest.json", *(f"part-{i:06d}.parquet" for i in range(3))]
        assert pq.read_metadata(tmp_path / "out" / "part-000000.parquet").num_row_groups == 1

    def test_global_level(self, nuts, tmp_path):
        detector = Detector(**SMALL, level="global").fit(nuts / "train" / "good")
        score_to_parquet(detector, nuts / "test", tmp_path / "out")
        assert {len(row["regions"]) for row in rows(tmp_path / "out")} == {0}

    def test_a_poisonous_image(self, nuts, detector, tmp_path, monkeypatch):
        original = Detector.score

        def score(self, images, **kwargs):
            if any(name.endswith("003.png") for name in images.ids):
                raise RuntimeError("poison")
            return original(self, images, **kwargs)

        monkeypatch.setattr(Detector, "score", score)
        score_to_parquet(detector, nuts / "test" / "good", tmp_path / "out", chunk=4)
        lost = [row for row in rows(tmp_path / "out") if row["verdict"] == "no verdict"]
        assert [row["id"] for row in lost] == ["003.png", "broken.png"]
        assert "poison" in lost[0]["reason"]

    def test_names_that_are_no_text(self, detector, tmp_path):
        name = os.fsdecode(b"\xff.png")
        folder = tmp_path / "images"
        folder.mkdir()
        try:
            (folder / name).write_bytes(b"no image")
        except OSError:
            pytest.skip("the file system takes text alone")
        score_to_parquet(detector, folder, tmp_path / "out")
        assert rows(tmp_path / "out")[0]["id"] == "\\udcff.png"

    def test_other_processes(self, nuts, detector, tmp_path):
        score_to_parquet(detector, nuts / "test", tmp_path / "alone", chunk=3)
        with joblib.parallel_config(backend="loky", n_jobs=2):
            written = score_to_parquet(detector, nuts / "test", tmp_path / "two", chunk=3)
        alone, two = rows(tmp_path / "alone"), rows(tmp_path / "two")
        assert written.rows == len(two)
        assert [row["id"] for row in two] == [row["id"] for row in alone]
        assert [row["verdict"] for row in two] == [row["verdict"] for row in alone]


class TestGoingOn:
    def test_only_what_is_missing_is_scored(self, nuts, detector, tmp_path, monkeypatch):
        out = tmp_path / "out"
        score_to_parquet(detector, nuts / "test", out, chunk=3)
        before = rows(out)
        (out / "part-000001.parquet").unlink()
        (out / "part-000002.parquet").write_bytes(b"half")
        asked = []
        original = Detector.score
        monkeypatch.setattr(Detector, "score", lambda self, images: asked.extend(images.ids) or original(self, images))
        with pytest.warns(UserWarning, match=r"part-000002\.parquet is damaged"):
            written = score_to_parquet(detector, nuts / "test", out, chunk=99)
        assert asked == [row["id"] for row in before[3:9]]
        assert written.resumed == len(before) - 6
        assert rows(out) == before

    def test_other_images_or_models_are_refused(self, nuts, detector, tmp_path):
        out = tmp_path / "out"
        score_to_parquet(detector, nuts / "test" / "good", out)
        with pytest.raises(ValueError, match=r"scores of 9 images, and other ones than these"):
            score_to_parquet(detector, nuts / "test", out)
        with pytest.raises(ValueError, match="another model"):
            score_to_parquet(detector.at_rate(0.3), nuts / "test" / "good", out)
        (out / parquet.MANIFEST).write_text("{")
        with pytest.raises(ValueError, match="is damaged"):
            score_to_parquet(detector, nuts / "test" / "good", out)

    def test_what_is_there_is_not_written_over(self, nuts, detector, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(ValueError, match="give another folder"):
            score_to_parquet(detector, nuts / "test", tmp_path)
        with pytest.raises(ValueError, match="chunk=0"):
            score_to_parquet(detector, nuts / "test", tmp_path / "out", chunk=0)

    @pytest.mark.slow
    def test_killed_again_and_again(self, nuts, model, tmp_path):
        out = tmp_path / "out"
        code = (
            "import sys, time; from anomalib_lite import Detector; from anomalib_lite.scaling import parquet\n"
            "write = parquet.write_atomically\n"
            "def slowly(*given):\n    time.sleep(0.2)\n    return write(*given)\n"
            "parquet.write_atomically = slowly\n"
            "parquet.score_to_parquet(Detector.load(sys.argv[1]), sys.argv[2], sys.argv[3], chunk=2)"
        )
        command = [sys.executable, "-c", code, str(model), str(nuts / "test"), str(out)]
        for parts in (1, 3, 5):
            process = subprocess.Popen(command)
            while process.poll() is None and len(list(out.glob("part-*"))) < parts:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True)
        source = open_source(nuts / "test")
        assert [row["id"] for row in rows(out)] == source.ids
        assert not [path for path in out.iterdir() if path.name.startswith(".")]


class TestWithout:
    def test_pyarrow(self, nuts, detector, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ImportError, match=r"pip install 'anomalib_lite\[parquet\]'"):
            score_to_parquet(detector, nuts / "test", tmp_path / "out")


class TestCommand:
    def test_score(self, run, nuts, model, tmp_path):
        code, out, err = run("score", model, nuts / "test", "--parquet", tmp_path / "out", "--chunk", 5)
        assert code == 0
        assert out.startswith(f"{len(open_source(nuts / 'test'))} images: ")
        assert "1 no verdict" in out
        assert "unreadable: good/broken.png" in err
        code, out, _ = run("score", model, nuts / "test", "--parquet", tmp_path / "out", "--json", "--strict")
        assert code == 1
        assert json.loads(out)["rows"] == len(open_source(nuts / "test"))

    def test_nothing_else_is_written_beside(self, run, nuts, model, tmp_path):
        code, _, err = run("score", model, nuts / "test", "--parquet", tmp_path / "out", "--csv", tmp_path / "a.csv")
        assert code == 2
        assert "--csv" in err

    def test_a_url(self, run, nuts, model, tmp_path):
        pytest.importorskip("fsspec")
        code, out, _ = run("score", model, f"file://{nuts / 'test' / 'good'}", "--parquet", tmp_path / "out")
        assert code == 0
        assert out.startswith("9 images")
