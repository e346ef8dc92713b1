"""Bars on stderr: named stages, numbered over a whole command, silent where nobody looks."""

import contextlib
import io
import os
import subprocess
import sys
import types

import pytest

from anomalib_lite.machine import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal():
    """What is written to stderr; `with terminal:` makes it that, which pytest would undo before the test."""

    class Shown(contextlib.redirect_stderr):
        def getvalue(self):
            return self._new_target.getvalue()

    return Shown(Terminal())


def fit_like():
    with progress.work(None, "embedding", "calibrating"):
        list(progress.over("embedding", range(3), 3))
        with progress.stage("calibrating", 2) as step:
            step()
            step()


class TestWork:
    def test_numbers_its_stages_and_says_of_what_the_time_is(self, terminal):
        with terminal:
            fit_like()
        told = terminal.getvalue()
        assert "1/2 embedding: 100%" in told
        assert "2/2 calibrating: 100%" in told
        assert "3/3 images [" in told
        assert "left in this stage]" in told

    def test_takes_in_the_work_within(self, terminal):
        with terminal, progress.work(None, "scoring"):
            fit_like()
            list(progress.over("scoring", range(2), 2))
        told = terminal.getvalue()
        assert all(name in told for name in ("1/3 embedding", "2/3 calibrating", "3/3 scoring"))

    def test_may_come_twice(self, terminal):
        with terminal, progress.work(None, "embedding", "calibrating", "embedding", "calibrating"):
            fit_like()
            fit_like()
        assert all(f"{i}/4" in terminal.getvalue() for i in range(1, 5))

    def test_of_one_stage_that_is_over_at_once_shows_nothing(self, terminal):
        with terminal, progress.work(None, "scoring"):
            assert list(progress.over("scoring", range(2), 2)) == [0, 1]
        assert terminal.getvalue() == ""

    def test_is_over_when_it_fails(self, terminal):
        with terminal:
            with pytest.raises(KeyError), progress.work(True, "a", "b"):
                raise KeyError
            list(progress.over("a", range(2), 2))
        assert terminal.getvalue() == ""


class TestIsSilent:
    def test_where_it_was_switched_off_outside(self, terminal):
        with terminal, progress.work(False, "scoring"):
            fit_like()
        assert terminal.getvalue() == ""

    def test_in_a_file_or_a_pipe(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", piped := io.StringIO())
        fit_like()
        assert piped.getvalue() == ""
        assert progress.is_wanted(True)

    def test_without_a_place_to_write(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        assert not progress.is_wanted(None)

    def test_without_a_stage(self, terminal):
        with terminal, progress.work(None, "a", "b"):
            assert list(progress.over(None, range(2), 2)) == [0, 1]
        assert terminal.getvalue() == ""


def test_a_notebook_is_looked_at(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert progress.is_wanted(None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not progress.is_wanted(None)


@pytest.mark.parametrize(("told", "shown"), [({}, True), ({"TQDM_DISABLE": "1"}, False)], ids=str)
def test_the_environment_can_switch_bars_off(told, shown):
    code = (
        "from anomalib_lite.machine import progress\n"
        "with progress.work(True, 'a', 'b'):\n    list(progress.over('a', range(3), 3))"
    )
    left = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    done = subprocess.run([sys.executable, "-c", code], env=left | told, capture_output=True, text=True, check=True)
    assert ("1/2 a" in done.stderr) is shown
