import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="the extra [export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")

from anomalib_lite import Detector
from anomalib_lite.exporting.writing import export
from anomalib_lite.images.synthetic import render_part

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
runtime = pytest.importorskip("anomalib_lite_runtime")


def parts(n, size=96):
    return [render_part(np.random.default_rng(i), size)[0] for i in range(n)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    detector = Detector(image_size=64, bank_size=300, dtype="float32", device="cpu").fit(parts(8))
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(detector, path)
    return detector, path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One picture of every kind that is read in a way of its own, and some that are not."""
    folder = tmp_path_factory.mktemp("pictures")
    part = Image.fromarray(parts(1, 200)[0])
    part.save(folder / "colour.png")
    part.convert("L").save(folder / "grey.png")
    part.save(folder / "photo.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    part.resize((150, 260)).save(folder / "turned.jpg", exif=exif)
    part.resize((1200, 1200)).save(folder / "large.jpg")
    Image.fromarray(np.asarray(part.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    alpha = part.copy()
    alpha.putalpha(part.convert("L"))
    alpha.save(folder / "alpha.png")
    part.resize((300, 100)).save(folder / "wide.bmp")
    (folder / "broken.png").write_bytes((folder / "colour.png").read_bytes()[:3000])
    (folder / "=empty.png").write_bytes(b"")
    return folder


def test_reading_is_the_librarys():
    for name in ("decoding", "reading"):
        library = (ROOT / "anomalib_lite" / "images" / f"{name}.py").read_text(encoding="utf-8")
        own = (ROOT / "anomalib_lite_runtime" / f"{name}.py").read_text(encoding="utf-8")
        assert own == library.replace("anomalib_lite.images.", "anomalib_lite_runtime."), f"copy {name}.py again"


def test_rows_are_those_of_the_library(exported, pictures, tmp_path):
    from anomalib_lite_runtime.__main__ import listed, write_csv

    detector, path = exported
    scores = detector.score(pictures)
    model = runtime.load(path)
    results = model.score_all(listed([pictures]))
    expected = scores.to_dict()
    found = model.to_dict(results)
    for entry in expected["images"]:
        entry.pop("regions")
    numbers = [
        [(one.pop("score"), one["nearest"].pop("distance")) for one in told["images"]] for told in (expected, found)
    ]
    np.testing.assert_allclose(*numbers, rtol=1e-4)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(expected))
    assert len(found["unreadable"]) == 2
    scores.to_csv(tmp_path / "library.csv")
    write_csv(tmp_path / "own.csv", results)
    rows = [list(csv.reader((tmp_path / name).open())) for name in ("library.csv", "own.csv")]
    assert [[row[0], *row[2:]] for row in rows[0]] == [[row[0], *row[2:]] for row in rows[1]]


def test_maps_have_the_pictures_own_size(exported, pictures):
    detector, path = exported
    model = runtime.load(path)
    for name in ("large.jpg", "wide.bmp", "turned.jpg"):
        expected = detector.score(pictures / name).anomaly_map(0)
        found = model.score(pictures / name, anomaly_map=True).anomaly_map
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-2 * expected.max())


def test_limits(exported):
    result = runtime.load(exported[1], max_pixels=100).score(np.asarray(parts(1)[0]).tobytes()[:10])
    assert result.verdict == "no verdict"
    picture = Image.fromarray(parts(1)[0])
    assert "only 0.0001 million are allowed" in runtime.load(exported[1], max_pixels=100).score(picture).reason


def test_what_is_no_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        runtime.load(tmp_path / "none.onnx")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(runtime.ModelError, match="no ONNX model"):
        runtime.load(tmp_path / "model.onnx")


def test_it_loads_neither_torch_nor_the_library(exported, pictures):
    code = (
        "import sys; from anomalib_lite_runtime import load\n"
        f"print(load({str(exported[1])!r}).score({str(pictures / 'colour.png')!r}).verdict)\n"
        "print([name for name in ('torch', 'anomalib_lite', 'scipy', 'sklearn') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.split("\n")[1] == "[]"


def test_the_command(exported, pictures):
    command = [sys.executable, "-m", "anomalib_lite_runtime", str(exported[1]), str(pictures), "--json", "--strict"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["images"]) == 8
