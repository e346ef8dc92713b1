"""The device and the number format: chosen at run time, refused in words."""

import pytest
import torch

from anomalib_lite.machine import hardware
from anomalib_lite.machine.hardware import dtype_times, pick_device, pick_dtype

CPU = torch.device("cpu")


def test_auto_takes_cuda_when_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"


def test_cuda_asked_for_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device here; use device='cpu'"):
        pick_device("cuda:0")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x"])
def test_an_unknown_device_is_refused_with_the_valid_ones(name):
    with pytest.raises(ValueError, match="is not a device; choose 'auto'"):
        pick_device(name)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"float32": 3.0, "bfloat16": 1.0}, torch.bfloat16),
        ({"float32": 1.0, "bfloat16": 3.0}, torch.float32),
        ({"float32": 1.0, "bfloat16": 0.95}, torch.float32),  # not worth other scores
    ],
)
def test_the_format_follows_the_measurement(monkeypatch, times, expected):
    monkeypatch.setattr(hardware, "dtype_times", lambda device: times)
    assert pick_dtype("auto", CPU) is expected
    assert pick_dtype("bfloat16", CPU) is torch.bfloat16


def test_both_formats_are_measured():
    times = dtype_times(CPU)
    assert set(times) == {"float32", "bfloat16"}
    assert min(times.values()) > 0


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="choose 'auto', 'float32' or 'bfloat16'"):
        pick_dtype("float16")
