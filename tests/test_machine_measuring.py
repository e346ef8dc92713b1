"""What is quickest here: measured once, kept for the machine it was measured on, and measured again when it is lost."""

import json
import os
import time

import pytest

from anomalib_lite.machine import measuring
from anomalib_lite.machine.measuring import cache_file, forget, measured, quickest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALIB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "_known", {})


def another_process(monkeypatch):
    monkeypatch.setattr(measuring, "_known", {})


def slow_and_quick(asked):
    def trials():
        asked.append(1)
        return {"slow": lambda: time.sleep(0.004), "quick": lambda: None}

    return trials


class TestMeasured:
    def test_once_for_all_processes(self, monkeypatch):
        asked = []
        times = measured("a question", slow_and_quick(asked), among="quick")
        assert times["slow"] > times["quick"]
        another_process(monkeypatch)
        assert measured("a question", slow_and_quick(asked), among="quick") == times
        assert len(asked) == 1
        measured("another question", slow_and_quick(asked), among="quick")
        assert len(asked) == 2

    def test_again_on_another_machine_which_keeps_both(self, monkeypatch):
        asked = []
        first = measured("a question", slow_and_quick(asked), among="quick")
        another_process(monkeypatch)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(measuring, "describe_machine", lambda: {"processor": "another"})
            measured("a question", slow_and_quick(asked), among="quick")
        assert len(asked) == 2
        another_process(monkeypatch)
        assert measured("a question", slow_and_quick(asked), among="quick") == first
        assert len(asked) == 2

    def test_again_when_it_is_told_to_forget(self, monkeypatch):
        asked = []
        measured("a question", slow_and_quick(asked), among="quick")
        forget()
        assert not cache_file().exists()
        measured("a question", slow_and_quick(asked), among="quick")
        assert len(asked) == 2
        forget()
        forget()  # nothing to forget is no error

    def test_what_does_not_work_is_left_out(self):
        def broken():
            raise RuntimeError("no such instruction")

        assert list(measured("a question", lambda: {"broken": broken, "quick": lambda: None}, among="quick")) == [
            "quick"
        ]
        with pytest.raises(RuntimeError, match="none of broken works on this machine"):
            measured("another", lambda: {"broken": broken}, among="quick")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x00\xff\x80",
            b"{",
            b"[]",
            b'"text"',
            b"[" * 100_000,
            b" " * (2 << 20),
            "OWN: 5",
            'OWN: {"a question": []}',
            'OWN: {"a question": {"slow": "fast"}}',
            'OWN: {"a question": {"slow": -1}}',
            'OWN: {"a question": {"slow": NaN}}',
            'OWN: {"a question": {}}',
        ],
        ids=range(13),
    )
    def test_a_damaged_file_is_said_and_replaced(self, content, monkeypatch):
        if isinstance(content, str):
            content = f"{{{json.dumps(measuring._machine_key())}: {content.removeprefix('OWN: ')}}}".encode()
        cache_file().parent.mkdir()
        cache_file().write_bytes(content)
        asked = []
        with pytest.warns(UserWarning, match=r"measured\.json cannot be read .* is measured again"):
            times = measured("a question", slow_and_quick(asked), among="quick")
        another_process(monkeypatch)
        assert measured("a question", slow_and_quick(asked), among="quick") == times
        assert len(asked) == 1

    def test_an_answer_to_another_question_is_measured_again(self):
        """Nothing to choose from would be chosen from it."""
        own = {"a question": {"something else": 1.0}}
        cache_file().parent.mkdir()
        cache_file().write_text(json.dumps({measuring._machine_key(): own}))
        assert "quick" in measured("a question", slow_and_quick([]), among="quick")
        assert "quick" in json.loads(cache_file().read_text())[measuring._machine_key()]["a question"]

    def test_a_folder_that_cannot_be_written_is_no_error(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("ANOMALIB_LITE_CACHE", str(tmp_path / "file" / "below"))
        asked = []
        with pytest.warns(UserWarning, match="cannot be read"):
            measured("a question", slow_and_quick(asked), among="quick")
        measured("a question", slow_and_quick(asked), among="quick")
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"a": 1.0, "b": 1.0}, "a"),
        ({"a": 1.09, "b": 1.0}, "a"),
        ({"a": 1.2, "b": 1.0}, "b"),
        ({"b": 1.2, "c": 1.0}, "c"),
        ({"a": 5.0, "b": 1.05, "c": 1.0}, "b"),
    ],
)
def test_the_first_in_the_order_is_taken_unless_another_is_clearly_quicker(times, expected):
    assert quickest(times, ("a", "b", "c")) == expected


def test_the_folder_is_the_systems(monkeypatch, tmp_path):
    monkeypatch.delenv("ANOMALIB_LITE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert cache_file() == tmp_path / "anomalib_lite" / "measured.json"
