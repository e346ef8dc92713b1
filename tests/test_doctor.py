"""What the machine computes with, told on the command line."""

import json

import pytest

from anomalib_lite import doctor
from anomalib_lite.doctor import examine
from anomalib_lite.machine import measuring
from anomalib_lite.machine.integers import onednn_fault


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALIB_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(measuring, "_known", {})
    monkeypatch.setattr(doctor, "_BANKS", (1024,))


def test_tells_the_machine_and_what_auto_takes():
    found = examine(backbones=["builtin"], sizes=[64], device="cpu")
    assert [choice.what for choice in found.choices] == [
        "builtin, 4 pictures of 64 px",
        "search of 1024 in 1024 × 128",
        "training, two convolutions",
    ]
    for choice in found.choices:
        assert min(choice.milliseconds.values()) > 0
        # Never slower than the best by more than a tenth.
        assert choice.milliseconds[choice.picked] <= 1.1 * min(choice.milliseconds.values())
    assert ("int8" in found.choices[0].milliseconds) is not bool(onednn_fault())
    text = found.explain()
    assert all(choice.what in text for choice in found.choices)
    assert found.machine["processor"] in text


def test_measures_once_and_again_when_told(monkeypatch):
    first = examine(backbones=["builtin"], sizes=[64], device="cpu")
    assert examine(backbones=["builtin"], sizes=[64], device="cpu") == first
    monkeypatch.setattr(measuring, "_measure", lambda trials: dict.fromkeys(trials, 1.0))
    assert examine(backbones=["builtin"], sizes=[64], device="cpu") == first
    assert examine(backbones=["builtin"], sizes=[64], device="cpu", again=True) != first


def test_says_why_integers_are_not_quick(monkeypatch):
    monkeypatch.setattr(doctor, "onednn_fault", lambda: "no VNNI")
    assert "not quick here: no VNNI" in examine(backbones=[], device="cpu").explain()


def test_command_line(run):
    code, out, _ = run("doctor", "--backbone", "builtin", "--image-size", "64", "--device", "cpu", "--json")
    assert code == 0
    found = json.loads(out)
    assert {choice["picked"] for choice in found["choices"]} <= {"int8", "float32", "bfloat16", "faiss"}
    code, out, _ = run("doctor", "--backbone", "builtin", "--image-size", "64", "--device", "cpu")
    assert code == 0
    assert "auto takes" in out
    assert run("doctor", "--backbone", "resnet19")[0] == 2
    assert run("doctor", "--image-size", "large")[0] == 2
