import csv
import json
import subprocess
import sys
from datetime import datetime
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


COPIES = ("images/decoding.py", "images/reading.py", "locating/regions.py")


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_the_librarys(name):
    library = (ROOT / "anomalib_lite" / name).read_text(encoding="utf-8")
    own = (ROOT / "anomalib_lite_runtime" / Path(name).name).read_text(encoding="utf-8")
    assert own == library.replace("anomalib_lite.images.", "anomalib_lite_runtime."), f"copy {name} again"


def flattened(told, at=""):
    """What a JSON object holds: by path, numbers apart from the rest."""
    inside = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list | tuple) else None
    if inside is None:
        return {at: told}
    return {path: value for key, part in inside for path, value in flattened(part, f"{at}/{key}").items()}


def assert_same_json(found, expected):
    found, expected = (flattened(json.loads(json.dumps(told))) for told in (found, expected))
    if "/time" in expected:  # of two runs
        assert datetime.fromisoformat(found.pop("/time")) >= datetime.fromisoformat(expected.pop("/time"))
    assert list(found) == list(expected)
    numbers = [path for path, value in expected.items() if type(value) is float]
    assert {path: found[path] for path in found if path not in numbers} == {
        path: expected[path] for path in expected if path not in numbers
    }
    np.testing.assert_allclose([found[p] for p in numbers], [expected[p] for p in numbers], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"roi": (0.1, 0.1, 0.9, 0.9), "pixel_size": 0.2}], ids=str)
def test_json_has_the_regions_of_the_library(synthetic_set, tmp_path, settings):
    from anomalib_lite_runtime.__main__ import listed

    detector = Detector(image_size=128, bank_size=2000, dtype="float32", device="cpu", false_alarm_rate=0.1, **settings)
    detector.fit(synthetic_set / "train" / "good")
    export(detector, tmp_path / "model.onnx")
    expected = detector.score(synthetic_set / "test").to_dict()
    model = runtime.load(tmp_path / "model.onnx")
    found = model.to_dict(model.score_all(listed([synthetic_set / "test"])))
    assert sum(len(image["regions"]) for image in expected["images"]) > 3
    assert_same_json(found, expected)


def test_regions_of_large_pictures_are_found_in_smaller_maps(exported, monkeypatch):
    from anomalib_lite import results
    from anomalib_lite_runtime import model as module

    detector, path = exported
    picture = parts(1, 300)[0]
    picture[40:100, 160:220] = 255 - picture[40:100, 160:220]
    for room in (results, module):
        monkeypatch.setattr(room, "_MAP_PIXELS", 90 * 90)
    scores = detector.score([picture])
    model = runtime.load(path)
    for result in (model.score(picture), model.score(picture, anomaly_map=True)):
        assert_same_json([region.to_dict() for region in result.regions], [r.to_dict() for r in scores.regions(0)])
        assert result.regions
    assert result.anomaly_map.shape == (300, 300)
    assert model.score(picture, regions=False).regions is None


def test_rows_are_those_of_the_library(exported, pictures, tmp_path):
    from anomalib_lite_runtime.__main__ import listed, write_csv

    detector, path = exported
    scores = detector.score(pictures)
    model = runtime.load(path)
    results = model.score_all(listed([pictures]))
    found = model.to_dict(results)
    assert_same_json(found, scores.to_dict())
    assert len(found["unreadable"]) == 2
    scores.to_csv(tmp_path / "library.csv")
    write_csv(tmp_path / "own.csv", model, results)
    rows = [list(csv.reader((tmp_path / name).open())) for name in ("library.csv", "own.csv")]
    assert [[row[0], *row[2:-1]] for row in rows[0]] == [[row[0], *row[2:-1]] for row in rows[1]]


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
