"""Pictures that arrive in a folder: each judged once, whatever happens, and what shows nothing is never good."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from anomalib_lite import Detector, Judge
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.serving.journal import Journal
from anomalib_lite.serving.watching import Watch


def part(seed, defect=None):
    return render_part(np.random.default_rng(seed), 64, defect)[0]


def put(folder, name, seed, defect=None, age=10.0):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(part(seed, defect)).save(path)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture(scope="module")
def detector():
    good = [part(i) for i in range(20)]
    return Detector(image_size=64, workers=0, false_alarm_rate=0.1).fit(good, groups="each")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def watched(detector, folder, tmp_path):
    """Makes a watch of the folder, as after a start."""
    journals = []

    def make(**options):
        for journal in journals:
            journal.close()
        journals[:] = [Journal(tmp_path / "verdicts.jsonl")]
        return Watch(folder, Judge(detector), journals[0], **options)

    yield make
    for journal in journals:
        journal.close()


def entries(tmp_path):
    return [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]


class TestOnce:
    def test_every_picture_once(self, watched, folder, tmp_path, detector):
        for i in range(4):
            put(folder, f"{i}.png", 100 + i, "color" if i == 2 else None, age=10 - i)
        told = []
        watch = watched(tell=told.append)
        assert watch.look() == 0
        assert watch.look() == 0
        found = entries(tmp_path)
        assert [entry["id"] for entry in found] == [f"{i}.png" for i in range(4)]
        assert told == found
        scores = detector.score([folder / f"{i}.png" for i in range(4)])
        assert [entry["verdict"] for entry in found] == scores.verdicts
        assert [entry["score"] for entry in found] == scores.scores.tolist()
        assert {entry["model"] for entry in found} == {detector.digest}
        assert watch.counts.total() == 4

    def test_not_again_after_a_restart(self, watched, folder, tmp_path):
        for i in range(3):
            put(folder, f"{i}.png", 100 + i)
        watched().look()
        put(folder, "new.png", 200)
        watched().look()
        assert [entry["id"] for entry in entries(tmp_path)] == ["0.png", "1.png", "2.png", "new.png"]

    def test_another_picture_of_the_same_name_is_judged(self, watched, folder, tmp_path):
        put(folder, "a.png", 100)
        watch = watched()
        watch.look()
        put(folder, "a.png", 101, age=5)
        watch.look()
        assert [entry["id"] for entry in entries(tmp_path)] == ["a.png", "a.png"]

    def test_what_is_hidden_or_no_picture_is_passed_over(self, watched, folder, tmp_path):
        put(folder, ".hidden.png", 100)
        put(folder, ".folder/a.png", 101)
        put(folder, "deeper/in/b.png", 102)
        (folder / "notes.txt").write_text("nothing")
        watched().look()
        assert [entry["id"] for entry in entries(tmp_path)] == ["deeper/in/b.png"]

    def test_a_pipe_does_not_stop_it(self, watched, folder, tmp_path):
        os.mkfifo(folder / "pipe.png")
        put(folder, "a.png", 100)
        said = []
        watch = watched(complain=said.append)
        watch.look()
        watch.look()
        assert [entry["id"] for entry in entries(tmp_path)] == ["a.png"]
        assert len(said) == 1
        assert "pipe.png is no file" in said[0]


class TestNotWholeYet:
    def test_is_waited_for(self, watched, folder, tmp_path):
        whole = put(tmp_path, "whole.png", 100).read_bytes()
        watch = watched(settle=0.05)
        (folder / "a.png").write_bytes(whole[:500])
        assert watch.look() == 1
        time.sleep(0.1)
        assert watch.look() == 1  # settled, but cannot be read
        (folder / "a.png").write_bytes(whole)
        watch.look()
        time.sleep(0.1)
        assert watch.look() == 0
        (entry,) = entries(tmp_path)
        assert entry["verdict"] != "no verdict"

    def test_gets_no_verdict_when_patience_ends(self, watched, folder, tmp_path):
        (folder / "a.png").write_bytes(put(tmp_path, "whole.png", 100).read_bytes()[:500])
        watch = watched(settle=0.0, patience=0.2)
        assert watch.look() == 1
        time.sleep(0.3)
        assert watch.look() == 0
        (entry,) = entries(tmp_path)
        assert entry["verdict"] == "no verdict"
        assert watch.counts == {"no verdict": 1}

    def test_what_goes_before_it_was_read_is_nobodys(self, watched, folder, tmp_path):
        (folder / "a.png").write_bytes(b"half")
        watch = watched(settle=0.0)
        assert watch.look() == 1
        (folder / "a.png").unlink()
        assert watch.look() == 0
        assert entries(tmp_path) == []


class TestFailSafe:
    @pytest.mark.parametrize(
        "pixels", [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8), part(1)[:40]]
    )
    def test_what_shows_nothing_has_no_verdict(self, watched, folder, tmp_path, pixels):
        Image.fromarray(pixels).save(folder / "a.png")
        os.utime(folder / "a.png", (1e9, 1e9))
        watched().look()
        assert [entry["verdict"] for entry in entries(tmp_path)] == ["no verdict"]

    def test_a_frozen_camera_also_over_a_restart(self, watched, folder, tmp_path):
        put(folder, "0.png", 100, age=20)
        put(folder, "1.png", 100, age=19)
        watched().look()
        put(folder, "2.png", 100, age=18)
        watched().look()
        assert [entry["verdict"] == "no verdict" for entry in entries(tmp_path)] == [False, True, True]

    def test_silence(self, watched, folder, tmp_path):
        watch = watched(silence=0.1)
        time.sleep(0.15)
        watch.look()
        watch.look()
        (entry,) = entries(tmp_path)
        assert entry["verdict"] == "no verdict"
        assert "no picture came for 0.1 seconds" in entry["reason"]

    def test_a_full_disk_stops_nothing_for_good(self, watched, folder, tmp_path, monkeypatch):
        put(folder, "a.png", 100)
        said = []
        watch = watched(complain=said.append, move_to=tmp_path / "out")
        append = watch.journal.append

        def full(entry):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(watch.journal, "append", full)
        assert watch.look() == 1
        assert watch.look() == 1
        assert (folder / "a.png").exists()  # nothing was acknowledged
        assert len(said) == 1
        assert "cannot be written down" in said[0]
        monkeypatch.setattr(watch.journal, "append", append)
        time.sleep(1.1)
        assert watch.look() == 0
        assert [entry["verdict"] != "no verdict" for entry in entries(tmp_path)] == [True]


class TestMoving:
    def test_by_verdict_and_over_nothing(self, watched, folder, tmp_path):
        out = tmp_path / "out"
        put(folder, "deep/a.png", 100, age=30)
        (folder / "b.png").write_bytes(b"broken")
        os.utime(folder / "b.png", (1e9, 1e9))
        watch = watched(move_to=out, patience=0.0)
        watch.look()
        verdict = entries(tmp_path)[1]["verdict"].replace(" ", "-")
        assert (out / verdict / "deep" / "a.png").is_file()
        assert (out / "no-verdict" / "b.png").read_bytes() == b"broken"
        (folder / "b.png").write_bytes(b"broken too")
        os.utime(folder / "b.png", (1e9, 1e9))
        watch.look()
        assert (out / "no-verdict" / "b.png").read_bytes() == b"broken"
        assert (out / "no-verdict" / "b (2).png").read_bytes() == b"broken too"
        assert not list(folder.rglob("*.png"))

    def test_what_was_judged_before_a_crash_is_moved_after_it(self, watched, folder, tmp_path):
        put(folder, "a.png", 100)
        watched().look()
        assert (folder / "a.png").exists()
        watched(move_to=tmp_path / "out").look()
        assert not (folder / "a.png").exists()
        assert len(entries(tmp_path)) == 1

    def test_into_itself(self, watched, folder):
        for inside in (folder, folder / "done"):
            with pytest.raises(ValueError, match="would be judged again"):
                watched(move_to=inside)

    @pytest.mark.parametrize("options", [{"settle": -1}, {"patience": -1}, {"silence": 0}])
    def test_times_that_are_none(self, watched, options):
        with pytest.raises(ValueError, match="seconds"):
            watched(**options)

    def test_no_folder(self, detector, tmp_path):
        with Journal(tmp_path / "j") as journal, pytest.raises(ValueError, match="no folder"):
            Watch(tmp_path / "none", Judge(detector), journal)


class TestRunning:
    @pytest.mark.parametrize("with_watchfiles", [True, False])
    def test_judges_what_arrives(self, watched, folder, tmp_path, with_watchfiles, monkeypatch):
        if with_watchfiles:
            pytest.importorskip("watchfiles", reason="watchfiles, the extra [serve], is not installed")
        else:
            monkeypatch.setitem(sys.modules, "watchfiles", None)
        stop, watch = threading.Event(), watched(settle=0.05)
        thread = threading.Thread(target=watch.run, args=(stop,))
        thread.start()
        for i in range(3):
            put(folder, f"{i}.png", 100 + i, age=0)
            deadline = time.monotonic() + 10
            while len(entries(tmp_path)) <= i and time.monotonic() < deadline:
                time.sleep(0.02)
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        assert [entry["id"] for entry in entries(tmp_path)] == ["0.png", "1.png", "2.png"]


class TestCommand:
    @pytest.fixture(scope="class")
    def model(self, detector, tmp_path_factory):
        return detector.save(tmp_path_factory.mktemp("model") / "model.safetensors")

    def start(self, folder, model, *options, **popen):
        command = [sys.executable, "-m", "anomalib_lite.cli", "watch", str(folder), "-m", str(model), *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)

    def test_killed_again_and_again_judges_each_once(self, folder, model, tmp_path):
        out, journal = tmp_path / "out", tmp_path / "in.verdicts.jsonl"
        for i in range(30):
            put(folder, f"{i:02d}.png", 300 + i, age=100 - i)
        told = []
        for kill_after in (3, 9):
            process = self.start(folder, model, "--move-to", str(out))
            told += [json.loads(process.stdout.readline())["id"] for _ in range(kill_after)]
            process.send_signal(signal.SIGKILL)
            told += [json.loads(line)["id"] for line in process.stdout.read().splitlines() if line.endswith("}")]
            process.wait()
        process = self.start(folder, model, "--move-to", str(out), "--once")
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        assert [line["id"] for line in lines] == [f"{i:02d}.png" for i in range(30)]
        assert [line["seq"] for line in lines] == list(range(1, 31))
        assert set(told) <= {line["id"] for line in lines}
        assert not list(folder.iterdir())
        assert len(list(out.rglob("*.png"))) == 30

    def test_exit_codes_and_a_clean_end(self, folder, model):
        alarm = put(folder, "a.png", 101)
        Image.fromarray(255 - part(101)).save(alarm)
        os.utime(alarm, (1e9, 1e9))
        assert self.start(folder, model, "--once", "--fail-on-alarm").wait(60) == 3
        (folder / "b.png").write_bytes(b"")
        os.utime(folder / "b.png", (1e9, 1e9))
        assert self.start(folder, model, "--once", "--patience", "0").wait(60) == 4
        process = self.start(folder, model)
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "0 verdicts" in errors
