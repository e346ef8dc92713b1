"""Checkpoints come back, belong to one run, and hold no surprises."""

import os
import pickle
import zipfile

import pytest
import torch

from anomalib_lite.files.checkpoints import CheckpointError, load_checkpoint, save_checkpoint

RUN = {"lr": 0.1, "seed": 3, "ids": ["a", "b"], "network": {"weight": [2, 3]}}
STATE = {"step": 7, "network": {"weight": torch.arange(6.0).reshape(2, 3)}, "history": {"loss": [0.5, 0.25]}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.checkpoint"


def identical(state):
    return state


def test_the_state_comes_back(path):
    assert load_checkpoint(None, RUN, identical) is None
    assert load_checkpoint(path, RUN, identical) is None
    save_checkpoint(path, STATE, RUN)
    state = load_checkpoint(path, RUN, identical)
    assert torch.equal(state["network"].pop("weight"), STATE["network"]["weight"])
    assert {**state, "network": {}} == {**STATE, "network": {}}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("lr", 0.2, "lr was 0.1, is 0.2"),
        ("ids", ["a"] * 100, r"ids was \['a', 'b'\], is \['a', 'a', .*\.\.\.\]"),
        ("network", {"weight": [2, 4]}, r"network was \{'weight': \[2, 3\]\}, is \{'weight': \[2, 4\]\}"),
        ("optimizer", "muon", "optimizer was None, is 'muon'"),
    ],
)
def test_of_another_run(path, key, value, text):
    save_checkpoint(path, STATE, RUN)
    with pytest.raises(CheckpointError, match=rf"run\.checkpoint belongs to another training: {text}; delete it"):
        load_checkpoint(path, {**RUN, key: value}, identical)


def test_a_state_that_does_not_fit(path):
    save_checkpoint(path, STATE, RUN)
    layer = torch.nn.Linear(4, 2)
    with pytest.raises(CheckpointError, match=r"run\.checkpoint cannot be read as a checkpoint: it is damaged"):
        load_checkpoint(path, RUN, lambda state: layer.load_state_dict(state["network"]))


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def holding_itself():
    loop = []
    loop.append(loop)
    return loop


def sharing(depth=60):
    """2^60 leaves in a few bytes."""
    value = (1, 2)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "content",
    [
        3,
        [1, 2],
        torch.zeros(3),
        {},
        {"run": RUN},
        {"state": STATE},
        {"run": 3, "state": STATE},
        {"run": [1], "state": STATE},
        {"run": {**RUN, "lr": torch.zeros(2)}, "state": STATE},
        {"run": RUN, "state": holding_itself()},
        {"run": RUN, "state": {"step": torch.zeros(10**10, device="meta")}},
        {"run": RUN, "state": {"step": [{"exp_avg": torch.zeros(1).half().expand(10**5, 10**5)}]}},
        {"run": RUN, "state": {"step": Malicious("trap")}},
        {"run": RUN, "state": None},
        {"run": RUN, "state": {"step": "seven"}},
        {"run": RUN, "state": {"step": sharing()}},
        {"run": {**RUN, "lr": sharing()}, "state": STATE},
    ],
    ids=range(17),
)
def test_strange_content(path, content, little_memory, monkeypatch):
    monkeypatch.chdir(path.parent)
    torch.save(content, path)
    with little_memory, pytest.raises(CheckpointError, match=r"run\.checkpoint (cannot be read|belongs to another)"):
        load_checkpoint(path, RUN, lambda state: int(state["step"]))
    assert os.listdir() == [path.name]


@pytest.mark.parametrize("how", ["pickle", "empty", "text", "folder in a zip"])
def test_other_files(path, how):
    if how == "folder in a zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/", "")
    else:
        path.write_bytes({"pickle": pickle.dumps(Malicious(path)), "empty": b"", "text": b"not this" * 9}[how])
    with pytest.raises(CheckpointError, match=r"run\.checkpoint cannot be read as a checkpoint: .*; delete it"):
        load_checkpoint(path, RUN, identical)


def test_any_cut_and_any_noise(path):
    """A damaged file is one error, or was damaged where nothing is."""
    save_checkpoint(path, STATE, RUN)
    whole = path.read_bytes()
    damaged = [whole[:at] for at in range(0, len(whole), 97)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(0, len(whole), 13)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            load_checkpoint(path, RUN, lambda state: int(state["step"]))
        except CheckpointError:
            refused += 1
    assert refused > len(damaged) / 3


def test_one_that_unpacks_to_more_than_it_is(path, little_memory):
    save_checkpoint(path, {"step": torch.zeros(1_000_000)}, RUN)
    packed = path.with_name("packed.checkpoint")
    with zipfile.ZipFile(path) as read, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as write:
        for entry in read.infolist():
            write.writestr(entry.filename, read.read(entry))
    assert packed.stat().st_size < 100_000
    with little_memory, pytest.raises(CheckpointError, match=r"packed\.checkpoint cannot be read"):
        load_checkpoint(packed, RUN, identical)
