"""What one expects of any command line: exit codes, places looked at before the work, help that tells all."""

import re
import shutil

import pytest
import typer

import anomalib_lite
from anomalib_lite import Detector, cli

COMMANDS = typer.main.get_command(cli.app).commands


@pytest.fixture
def dead(tmp_path):
    """What a dead camera writes: a folder with an empty file."""
    folder = tmp_path / "dead"
    folder.mkdir()
    (folder / "x.png").touch()
    return folder


class TestVerdictsAsExitCodes:
    def test_an_alarm_has_its_own_if_asked_for(self, run, model, data):
        bad = data.test.root / "color"
        assert run("score", model, bad, "--threshold", "0")[0] == 0
        assert run("score", model, bad, "--threshold", "0", "--fail-on-alarm")[0] == 3
        assert run("score", model, bad, "--threshold", "1e9", "--fail-on-alarm")[0] == 0

    def test_of_a_report_too(self, run, model, data, tmp_path):
        given = ("report", model, data.test.root, "-o", tmp_path / "page.html")
        assert Detector.load(model).score(data.test.root).alarms.any()
        assert run(*given, "--fail-on-alarm")[0] == 3
        assert (tmp_path / "page.html").is_file()

    def test_an_unreadable_one_comes_before_an_alarm_when_strict(self, run, model, data, dead):
        shutil.copy(data.test.root / "color" / "000.png", dead)
        given = ("score", model, dead, "--threshold", "0", "--fail-on-alarm")
        assert run(*given)[0] == 3
        assert run(*given, "--strict")[0] == 1

    @pytest.mark.parametrize("given", [["score"], ["score", "--json"], ["report", "-o", "page.html"]])
    def test_nothing_to_judge_is_no_pass(self, run, model, dead, tmp_path, monkeypatch, given):
        monkeypatch.chdir(tmp_path)
        code, out, err = run(given[0], model, dead, *given[1:])
        assert code == 4
        assert "error: none of 1 images can be read: no verdict" in err
        assert "x.png: empty (0 bytes)" in err
        assert "alarm" not in out.replace("false_alarm_rate", "")
        assert not (tmp_path / "page.html").exists()

    def test_into_parquet_too(self, run, model, data, dead, tmp_path):
        pytest.importorskip("pyarrow")
        assert run("score", model, dead, "--parquet", tmp_path / "p")[0] == 4
        given = ("score", model, data.test.root / "color", "--parquet", tmp_path / "q", "--fail-on-alarm")
        assert run(*given, "--threshold", "0")[0] == 3


class TestPlacesAreLookedAtFirst:
    @pytest.mark.parametrize(
        "given",
        [
            "fit GOOD -o no/m.safetensors",
            "score MODEL GOOD --csv no/s.csv",
            "score MODEL GOOD --regions no/s.csv",
            "score MODEL GOOD --coco no/s.json",
            "score MODEL GOOD --overlays file/x",
            "score MODEL GOOD --masks file",
            "score MODEL GOOD --maps file",
            "score MODEL GOOD --parquet file/x",
            "recalibrate MODEL GOOD -o no/m.safetensors",
            "add MODEL GOOD -o no/m.safetensors",
            "diagnose GOOD -o file/x",
            "capability MODEL GOOD -o no/c.png",
            "report MODEL GOOD -o no/r.html",
            "export MODEL -o no/m.onnx",
            "compare ROOT -o file/x",
            "compare ROOT --checkpoints file/x",
            "demo -o file/x",
            "watch GOOD -m MODEL --once --move-to file/x",
            "watch GOOD -m MODEL --once --journal no/j.jsonl",
            "download metal_nut -o file/x --accept-license",
        ],
    )
    def test_before_the_work(self, run, model, data, tmp_path, monkeypatch, given):
        def worked(*_, **__):
            raise AssertionError("it was begun")

        for name in ("fit", "score", "recalibrate", "add"):
            monkeypatch.setattr(Detector, name, worked)
        (tmp_path / "file").touch()
        places = {"GOOD": data.train.root, "MODEL": model, "ROOT": data.root}
        words = [tmp_path / word if re.match("no/|file", word) else places.get(word, word) for word in given.split()]
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert "error: cannot save " in err
        assert "nothing was changed, choose another place" in err
        assert "[Errno" not in err


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_tells_every_default(self, run, name, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        code, out, _ = run(name, "--help")
        told = "".join(out.split())  # lines are broken anywhere
        assert code == 0
        for parameter in COMMANDS[name].params:
            assert "".join((parameter.help or "").split()) in told, parameter.name
            if isinstance(parameter.default, (str, int, float)) and not isinstance(parameter.default, bool):
                assert f"[default:{parameter.default}]" in told, parameter.name

    def test_of_the_image_size_too(self):
        for name in ("fit", "evaluate", "diagnose", "demo"):
            (size,) = [one for one in COMMANDS[name].params if one.name == "image_size"]
            assert "[default: as many as the camera gave, 384 at most" in size.help

    def test_every_command_is_told_in_a_whole_sentence(self, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        code, out, _ = run("--help")
        assert code == 0
        assert "..." not in out.replace("[ARGS]...", "")
        assert max(map(len, out.splitlines())) <= 80

    def test_the_version(self, run):
        code, out, _ = run("--version")
        assert (code, out) == (0, f"anomalib-lite {anomalib_lite.__version__}\n")


def test_completes_in_a_shell(run, monkeypatch):
    for word, expected in (("rep", ["report"]), ("score --th", ["--threshold"])):
        monkeypatch.setenv("_ANOMALIB_LITE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"anomalib-lite {word}")
        monkeypatch.setenv("COMP_CWORD", str(len(word.split())))
        assert run()[1].split() == expected


def test_a_wrong_backbone_is_answered_by_a_few(run, data, tmp_path):
    code, _, err = run("fit", data.train.root, "-o", tmp_path / "m.safetensors", "--backbone", "resnet81")
    assert code == 2
    assert "no backbone 'resnet81'; did you mean resnet18" in err
    assert len(err) < 200
