"""Stored runs: they come back whole, and what is damaged or was made by somebody else is recognised."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.comparison.runs import Run
from anomalib_lite.comparison.store import RunStore
from anomalib_lite.evaluation.pixel_metrics import PixelMetrics

IDS = ["good/0.png", "dent/1.png", "dent/2.png"]
MORE = [f"dent/{i}.png" for i in range(3, 13)]
IDENTITY = {"ids": IDS}


@pytest.fixture
def result():
    return Run(
        ids=IDS,
        scores=np.array([0.1, 0.7, 1e-300]),
        alarms=np.array([False, True, False]),
        confidence=np.array([0.1, 0.7, 0.0]),
        train_seconds=1.5,
        ms_per_image=2.5,
        pixels=PixelMetrics(0.9, None, 0.8, 3, 2, "no reason"),
        iou=0.4,
        curves={"train_loss": [1.0, 0.5], "train_accuracy": [0.5, 1.0]},
        maps={"dent/1.png": np.arange(64, dtype=np.uint8).reshape(8, 8)},
        promised_rate=0.05,
    )


def png(width, height, mode=0):
    """A PNG that says it is of that size, and holds next to nothing."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    packed = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + packed).decode()


def of_format(name):
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, name)
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_run_comes_back_whole(tmp_path, result):
    RunStore(tmp_path, IDENTITY).put("a", result)
    back = RunStore(tmp_path, IDENTITY).get("a", IDS)
    for name, value in vars(result).items():
        np.testing.assert_equal(getattr(back, name), value)
        assert type(getattr(back, name)) is type(value)
    assert back.maps["dent/1.png"].dtype == np.uint8


def test_without_a_folder_it_is_kept_in_memory(result):
    store = RunStore(None, IDENTITY)
    assert store.get("a", IDS) is None
    store.put("a", result)
    assert store.get("a", IDS) is result


def test_the_state_of_its_training_is_dropped(tmp_path, result):
    store = RunStore(tmp_path, IDENTITY)
    store.training("a").write_bytes(b"state")
    store.put("a", result)
    assert not store.training("a").exists()


def test_another_comparison_in_the_folder_is_refused(tmp_path):
    RunStore(tmp_path, IDENTITY)
    RunStore(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match="holds the checkpoints of another comparison"):
        RunStore(tmp_path, {"ids": ["other.png"]})
    (tmp_path / "comparison.json").write_bytes(b"\xff\xfe damaged")
    with pytest.raises(ValueError, match="holds the checkpoints of another comparison"):
        RunStore(tmp_path, IDENTITY)


CHANGED = {
    "NaN": {"scores": [0.1, float("nan"), 0.2]},
    "infinite": {"confidence": [0.1, float("inf"), 0.2]},
    "one too few": {"scores": [0.1, 0.2]},
    "nested": {"scores": [[0.1], [0.2], [0.3]]},
    "ragged": {"scores": [[0.1], 0.2, 0.3]},
    "texts": {"scores": ["0.1", "0.2", "0.3"]},
    "numbers for alarms": {"alarms": [0, 1, 2]},
    "no numbers": {"scores": {"a": 1}},
    "no images": {"ids": [], "scores": [], "alarms": [], "confidence": []},
    "other images": {"ids": ["good/0.png", "dent/1.png", "other.png"]},
    "an image twice": {"ids": ["good/0.png", "good/0.png", "dent/1.png"]},
    "ids that are no texts": {"ids": [1, 2, 3]},
    "ids that are lists": {"ids": [["good/0.png"], ["dent/1.png"], ["dent/2.png"]]},
    "no time": {"train_seconds": None},
    "time as text": {"ms_per_image": "2"},
    "NaN for a metric": {"iou": float("nan")},
    "a text for a rate": {"promised_rate": "0.05"},
    "pixels as list": {"pixels": [1, 2]},
    "pixels of another kind": {"pixels": {"auroc": 1.0}},
    "a text for a metric": {"pixels": dict(vars(PixelMetrics(0.9, None, 0.8, 3, 2)), aupro="high")},
    "an unknown curve": {"curves": {"bad$": [1.0]}},
    "a curve of texts": {"curves": {"train_loss": ["high"]}},
    "a curve that is none": {"curves": {"train_loss": "high"}},
    "an endless curve": {"curves": {"train_loss": [10.0**308 * 10]}},
    "a map of another image": {"maps": {"other.png": of_format("PNG")}},
    "a map that is no text": {"maps": {"dent/1.png": 7}},
    "a map that is no image": {"maps": {"dent/1.png": "AAAA"}},
    "a truncated map": {"maps": {"dent/1.png": of_format("PNG")[:40]}},
    "a map in colour": {"maps": {"dent/1.png": png(8, 8, mode=2)}},
    "a bomb": {"maps": {"dent/1.png": png(60_000, 60_000)}},
    "a smaller bomb": {"maps": {"dent/1.png": png(9_000, 9_000)}},
    "maps as list": {"maps": ["dent/1.png"]},
    "maps of too many": {"maps": {image_id: of_format("PNG") for image_id in (*IDS, *MORE)}},
    "PostScript": {"maps": {"dent/1.png": of_format("EPS")}},
    "another format": {"maps": {"dent/1.png": of_format("BMP")}},
    "a field more": {"more": 1},
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_an_unsound_run_is_made_anew(tmp_path, result, change):
    RunStore(tmp_path, IDENTITY).put("a", result)
    stored = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**stored, **change}))
    store = RunStore(tmp_path, IDENTITY)
    with pytest.warns(UserWarning, match=r"a\.json holds no sound run .*; it is made anew"):
        assert store.get("a", IDS + MORE) is None
    store.put("a", result)
    assert RunStore(tmp_path, IDENTITY).get("a", IDS).ids == IDS


def test_so_is_one_that_does_not_say_what_it_promises(tmp_path, result):
    RunStore(tmp_path, IDENTITY).put("a", result)
    stored = json.loads((tmp_path / "a.json").read_text())
    del stored["promised_rate"]
    (tmp_path / "a.json").write_text(json.dumps(stored))
    with pytest.warns(UserWarning, match=r"a\.json holds no sound run .*promised_rate.*; it is made anew"):
        assert RunStore(tmp_path, IDENTITY).get("a", IDS) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"ids": 1}', b"7", b'{"scores": 1e999}']
)
def test_so_is_what_is_no_run_at_all(tmp_path, content):
    store = RunStore(tmp_path, IDENTITY)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.warns(UserWarning, match="holds no sound run"):
        assert store.get("a", IDS) is None


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path):
    store = RunStore(tmp_path, IDENTITY)
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)  # sparse: takes no room
    with pytest.warns(UserWarning, match="larger than 268435456 bytes"):
        assert store.get("a", IDS) is None


def test_no_pixel_of_a_bomb_is_decoded(tmp_path, result, monkeypatch):
    RunStore(tmp_path, IDENTITY).put("a", result)
    stored = json.loads((tmp_path / "a.json").read_text())
    stored["maps"] = {"dent/1.png": png(9_000, 9_000)}
    (tmp_path / "a.json").write_text(json.dumps(stored))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.warns(UserWarning, match="a map of"):
        assert RunStore(tmp_path, IDENTITY).get("a", IDS) is None


def test_a_run_checks_itself(result):
    with pytest.raises(ValueError, match="alarms of 3 images: need one finite value for each of them"):
        Run(IDS, result.scores, np.array([True]), result.confidence, 1.0, 1.0)
