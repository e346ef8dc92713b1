"""A journal of verdicts: whole lines or none, one writer, and what was told stays told."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest

from anomalib_lite.serving import journal as module
from anomalib_lite.serving.journal import Journal, JournalError


class TestJournal:
    def test_numbers_go_on_after_it_was_closed(self, tmp_path):
        with Journal(tmp_path / "j") as journal:
            assert [journal.append({"a": i})["seq"] for i in range(3)] == [1, 2, 3]
            assert journal.end == (tmp_path / "j").stat().st_size
        with Journal(tmp_path / "j") as journal:
            assert journal.last == {"seq": 3, "a": 2}
            assert journal.append({"a": "ä\udcff"})["seq"] == 4
            assert [entry["seq"] for entry in journal.lines()] == [1, 2, 3, 4]

    def test_a_half_written_line_is_taken_off(self, tmp_path):
        with Journal(tmp_path / "j") as journal:
            journal.append({"a": 1})
        whole = (tmp_path / "j").read_bytes()
        for half in (b"{", b'{"seq": 2, "a": 2}', b"x" * 3_000_000):
            (tmp_path / "j").write_bytes(whole + half)
            with pytest.warns(UserWarning, match="not written to its end"), Journal(tmp_path / "j") as journal:
                assert journal.count == 1
            assert (tmp_path / "j").read_bytes() == whole

    def test_two_at_once(self, tmp_path):
        with Journal(tmp_path / "j"), pytest.raises(JournalError, match="in use by another process"):
            Journal(tmp_path / "j")
        Journal(tmp_path / "j").close()  # the first has let go of it

    @pytest.mark.parametrize("content", [b"no json\n", b"[1]\n", b"\x00\xff\n", b'"text"\n', b"x" * 2_000_000])
    def test_what_is_no_journal_is_left_alone(self, tmp_path, content):
        (tmp_path / "j").write_bytes(content)
        with pytest.raises(JournalError, match="no journal of verdicts"):
            Journal(tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == content

    def test_in_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(OSError, match="No such file"):
            Journal(tmp_path / "none" / "j")

    @pytest.mark.parametrize("part", [0, 5])
    def test_a_full_disk_leaves_nothing_of_a_line(self, tmp_path, monkeypatch, part):
        with Journal(tmp_path / "j") as journal:
            journal.append({"a": 1})
            write = os.write

            def full(file, line):
                if part:
                    return write(file, line[:part])
                raise OSError(errno.ENOSPC, "no space left")

            monkeypatch.setattr(module.os, "write", full)
            with pytest.raises(OSError, match=r"[Nn]o space left"):
                journal.append({"a": 2})
            monkeypatch.undo()
            assert journal.append({"a": 3})["seq"] == 2
        with Journal(tmp_path / "j") as journal:
            assert [entry["a"] for entry in journal.lines()] == [1, 3]

    def test_kill_minus_nine_loses_no_line_that_was_told(self, tmp_path):
        code = textwrap.dedent("""
            import sys
            from anomalib_lite.serving.journal import Journal
            with Journal(sys.argv[1]) as journal:
                while True:
                    print(journal.append({"text": "x" * 300})["seq"], flush=True)
        """)
        told = 0
        for round_ in range(5):
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True
            )
            for _ in range(20 + 7 * round_):
                told = int(process.stdout.readline())
            process.kill()
            rest = process.stdout.read().split()
            told = int(rest[-1]) if rest else told
            process.wait()
            lines = (tmp_path / "j").read_bytes().split(b"\n")[:-1]
            assert len(lines) >= told
            assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
