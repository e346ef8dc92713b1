import csv
import importlib.metadata
import json
import re
import shutil

import pytest

from anomalib_lite import Detector, cli, demo

# The decoding threads and the batch are left at their defaults: the command line has to work as it comes.
# At 64 pixels two of the drawn nuts look so alike that rounding decides whether they are two shots of one.
FAST = ("--image-size", "96")


@pytest.fixture
def with_broken(data, tmp_path):
    """A folder with two readable images and an empty one."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(2):
        shutil.copy(data.test.root / "color" / f"{i:03d}.png", folder)
    (folder / "broken.png").write_bytes(b"")
    return folder


class TestFitAndScore:
    def test_fit_writes_a_model_and_says_what_it_guarantees(self, run, data, tmp_path):
        path = tmp_path / "model.safetensors"
        code, out, _ = run("fit", data.train.root, "-o", path, *FAST)
        assert code == 0
        assert f"fitted on 16 images, saved to {path}" in out
        assert "takes at least 99 good images to guarantee, and there are 16" in out
        assert Detector.load(path).n_train_ == 16

    def test_score_prints_a_line_per_image(self, run, model, data):
        code, out, _ = run("score", model, data.test.root)
        expected = Detector.load(model).score(data.test)
        lines = out.splitlines()
        assert code == 0
        assert len(lines) == len(expected) + 2
        for i, (line, alarm) in enumerate(zip(lines[:-2], expected.alarms, strict=True)):
            assert line.startswith("ALARM" if alarm else "good ")
            assert f"p {expected.p_text(i)}  " in line
        assert lines[-2] == "p ≤ 0.0588: the smallest that 16 good images allow"
        assert any("p ≤ 0.0588" in line for line in lines[:-2])
        for line, image_id, value in zip(lines, expected.ids, expected.scores, strict=False):
            assert f"{value:.4f}" in line
            assert line.endswith(image_id)
        assert lines[-1].startswith(f"{expected.alarms.sum()} of 18 images alarm")
        assert "which is not promised" in lines[-1]

    def test_score_at_another_rate_or_threshold(self, run, model, data):
        _, out, _ = run("score", model, data.test.root, "--false-alarm-rate", "0.2", "--look-again", "0.9")
        expected = Detector.load(model).at_rate(0.2, look_again=0.9).score(data.test)
        assert out.count("ALARM") == expected.verdicts.count("alarm")
        assert out.count("look again  score") == expected.verdicts.count("look again")
        assert f"{expected.verdicts.count('look again')} are to be looked at again" in out
        _, out, _ = run("score", model, data.test.root, "--threshold", "0.001")
        assert "18 of 18 images alarm (threshold 0.0010, false-alarm rate 1)" in out
        code, _, err = run("score", model, data.test.root, "--threshold", "1", "--false-alarm-rate", "0.1")
        assert (code, "give one of them" in err) == (2, True)
        code, _, err = run("score", model, data.test.root, "--threshold", "1", "--look-again", "2")
        assert (code, "look_again=2 is above the alarm threshold" in err) == (2, True)

    def test_fit_takes_groups_variations_and_split_calibration(self, run, data, tmp_path):
        path = tmp_path / "model.safetensors"
        given = ("--groups", "^(..)", "--vary", "brightness=0.2,draws=1", "--calibration", "split")
        code, _, err = run("fit", data.train.root, "-o", path, *FAST, *given)
        assert code == 0, err
        fitted = Detector.load(path).fitted_
        assert fitted.train.copies == 2
        assert len(set(fitted.train.groups.tolist())) == 2  # 000 to 009, and 010 to 015
        assert fitted.calibration.exact
        for flag, value, message in (
            ("--groups", "part(.)", "finds nothing in '000.png'"),
            ("--vary", "brigthness=0.2", "did you mean brightness?"),
            ("--vary", "brightness=0", "varies nothing"),
            ("--vary", "brightness=20", "brightness=20 is too much"),
            ("--calibration", "folds", "choose 'cross' or 'split'"),
        ):
            code, _, err = run("fit", data.train.root, "-o", path, *FAST, flag, value)
            assert code == 2
            assert message in err

    def test_recalibrate_writes_a_model_with_another_threshold(self, run, model, data, tmp_path):
        path = tmp_path / "today.safetensors"
        good = data.test.root / "good"
        code, out, _ = run("recalibrate", model, good, "-o", path, "--groups", "each", "--false-alarm-rate", "0.2")
        before, after = (Detector.load(name).fitted_ for name in (model, path))
        assert code == 0
        assert f"threshold {before.calibration.threshold:.6g} → {after.calibration.threshold:.6g}, saved to" in out
        assert (after.calibration.n, after.calibration.false_alarm_rate) == (6, 0.2)
        assert [record.how for record in after.history] == ["fit", "replace", "rate"]
        code, _, err = run("recalibrate", model, data.root, "-o", path)
        assert code == 2
        assert "train/good" in err

    def test_add_learns_more_and_leaves_the_threshold_if_asked(self, run, model, data, tmp_path):
        path = tmp_path / "more.safetensors"
        good = data.test.root / "good"
        code, out, _ = run("add", model, good, "-o", path, "--groups", "each", "--no-calibrating")
        before, after = Detector.load(model), Detector.load(path)
        assert code == 0
        assert f"6 more images learnt from, {before.n_train_ + 6} in all" in out
        assert after.n_train_ == before.n_train_ + 6
        assert after.fitted_.calibration.threshold == before.fitted_.calibration.threshold
        code, out, _ = run("add", model, good, "-o", path, "--groups", "each")
        assert code == 0
        assert Detector.load(path).fitted_.calibration.n == before.fitted_.calibration.n + 6
        code, _, err = run("add", model, tmp_path / "none", "-o", path)
        assert code == 2
        assert "none" in err

    def test_score_prints_one_json_object(self, run, model, data, tmp_path):
        code, out, _ = run("score", model, data.test.root / "color", "--json")
        result = json.loads(out)
        assert code == 0
        assert [entry["id"] for entry in result["images"]] == ["000.png", "001.png", "002.png"]
        expected = Detector.load(model).score(data.test.root / "color").to_dict()
        assert result == json.loads(json.dumps({**expected, "time": result["time"]}))
        assert result["model"] == Detector.load(model).digest

    def test_score_writes_csv_and_overlays(self, run, model, data, tmp_path):
        table, maps = tmp_path / "scores.csv", tmp_path / "maps"
        code, _, _ = run("score", model, data.test.root / "color", "--csv", table, "--overlays", maps)
        assert code == 0
        with table.open(newline="") as file:
            assert [row["id"] for row in csv.DictReader(file)] == ["000.png", "001.png", "002.png"]
        assert sorted(path.name for path in maps.glob("*.png")) == ["000.png.png", "001.png.png", "002.png.png"]

    def test_score_writes_csv_for_spreadsheets_that_write_a_comma(self, run, model, data, tmp_path):
        files = [tmp_path / name for name in ("scores.csv", "regions.csv")]
        given = ("--csv", files[0], "--regions", files[1], "--decimal-comma")
        assert run("score", model, data.test.root / "color", *given)[0] == 0
        for file in files:
            assert file.read_bytes().startswith(b"\xef\xbb\xbfid;")
        assert re.search(r"^000\.png;\d+,\d+;", files[0].read_text(encoding="utf-8"), re.MULTILINE)

    def test_score_takes_several_files_and_folders(self, run, model, data, tmp_path):
        files = [data.test.root / "good" / "000.png", data.test.root / "color"]
        code, out, _ = run("score", model, *files, "--json", "--overlays", tmp_path)
        assert code == 0
        assert len(json.loads(out)["images"]) == 4
        assert len(list(tmp_path.glob("*.png"))) == 4

    def test_flags_reach_the_detector(self, run, data, tmp_path):
        path = tmp_path / "model.safetensors"
        flags = "--scorer kmeans --n-clusters 7 --components 0.9 --no-whiten --false-alarm-rate 0.2 --random-state 3"
        code, _, _ = run("fit", data.train.root, "-o", path, *FAST, *flags.split())
        assert code == 0
        config = Detector.load(path).config()
        assert config["scorer_parameters"] == {"n_clusters": 7, "max_iter": 20, "random_state": 3}
        assert (config["n_components"], config["whiten"]) == (0.9, False)
        assert (config["false_alarm_rate"], config["random_state"]) == (0.2, 3)


class TestEvaluate:
    def test_json_is_all_there_is_on_stdout(self, run, data):
        code, out, _ = run("evaluate", data.root, "--json", *FAST)
        result = json.loads(out)
        assert code == 0
        assert out.count("\n") == 1
        assert (result["n_train"], result["n_test"]) == (16, 18)
        assert result["config"]["image_size"] == 96

    def test_reads_as_text(self, run, data):
        code, out, _ = run("evaluate", data.root, "--scorer", "subspace", "--level", "global", *FAST)
        assert code == 0
        assert out.startswith("at 1 % asked, which is not promised: recall ")
        assert "\nimage AUROC" in out
        assert "level='global' has no anomaly maps" in out


class TestDemo:
    def test_needs_nothing_and_leaves_the_pictures(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "_SET", {"n_train": 12, "n_good": 3, "n_defect": 2, "size": 64})
        folder = tmp_path / "out"
        for again in (False, True):
            code, out, _ = run("demo", "-o", folder, *FAST)
            assert code == 0
            assert "12 good synthetic parts learnt, 11 new ones scored" in out
            assert "image AUROC" in out
            assert "nan" not in out
            for name in (
                "worst.png",
                "borderline.png",
                "scores.csv",
                "model.safetensors",
                "metal_nut/train/good/000.png",
            ):
                assert (folder / name).stat().st_size > 0, (name, again)
        with (folder / "scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 11
        assert len(list((folder / "overlays").glob("*.png"))) == sum(row["alarm"] == "1" for row in rows)
        assert len(Detector.load(folder / "model.safetensors").score(folder / "metal_nut" / "test")) == 11

    def test_at_the_global_level_has_no_pictures(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "_SET", {"n_train": 12, "n_good": 3, "n_defect": 2, "size": 64})
        code, out, _ = run("demo", "-o", tmp_path, "--level", "global", *FAST)
        assert code == 0
        assert not (tmp_path / "worst.png").exists()
        assert "worst.png" not in out


class TestExitCodes:
    @pytest.mark.parametrize("command", ["score", "fit", "evaluate"])
    @pytest.mark.parametrize("strict", [False, True])
    def test_unreadable_images_are_told_and_matter_when_strict(
        self, run, command, strict, model, data, with_broken, tmp_path
    ):
        if command == "score":
            arguments = ["score", model, with_broken]
        elif command == "fit":
            arguments = ["fit", with_broken, "-o", tmp_path / "new.safetensors", *FAST]
        else:
            root = shutil.copytree(data.root, tmp_path / "set")
            (root / "test" / "color" / "broken.png").write_bytes(b"")
            arguments = ["evaluate", root, "--json", *FAST]
        code, out, err = run(*arguments, *(["--strict"] if strict else []))
        assert code == int(strict)
        assert "broken.png: empty (0 bytes)" in err
        assert out
        if command == "fit":
            assert (tmp_path / "new.safetensors").is_file()

    def test_nothing_unreadable_is_no_failure_when_strict(self, run, model, data):
        assert run("score", model, data.test.root / "color", "--strict")[0] == 0

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--level pixel", "level='pixel'; choose 'patch' or 'global'"),
            ("--scorer svm", "scorer='svm'; choose one of knn, kmeans, dbscan, subspace"),
            ("--backbone resnet19", "no backbone 'resnet19'"),
            ("--backbone resnet18 --layers layer9 --weights random", "resnet18 has no layer 'layer9'; valid: layer1"),
            ("--backbone resnet18 --weights absent.pth", "no weights file absent.pth"),
            ("--components many", "--components many: give a number, a share of variance such as 0.95, or none"),
            ("--components 1.5", "n_components=1.5"),
            ("--components 500", "n_components=500 is more than"),
            ("--scorer kmeans --n-clusters some", "n_clusters='some'"),
            ("--scorer dbscan --eps elbow", "eps='elbow'"),
            ("--scorer dbscan --eps 1e-9", "makes no row a core sample"),
            ("--false-alarm-rate 1.5", "false_alarm_rate=1.5"),
            ("--k 0", "k=0"),
            ("--k 20000", "k=20000 neighbours wanted from a bank of 10000"),
            ("--trim 2", "trim=2.0"),
            ("--dtype float16", "dtype='float16'"),
            ("--batch-size 0", "batch_size=0"),
            ("--random-state -1", "random_state=-1"),
            ("--image-size 8", "image_size=8"),
        ],
    )
    def test_wrong_values_are_one_line(self, run, data, flags, message, tmp_path):
        path = tmp_path / "model.safetensors"
        code, out, err = run("fit", data.train.root, "-o", path, *FAST, *flags.split())
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
        assert not path.exists()

    @pytest.mark.parametrize("flags", [["--image-size", "large"], ["--no-such-flag"], ["--k", "1.5"]])
    def test_wrong_usage(self, run, data, flags):
        code, out, err = run("fit", data.train.root, *flags)
        assert (code, out) == (2, "")
        assert flags[0] in err
        assert "Traceback" not in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["fit", "absent"], "absent: no such file or folder; check the path"),
            (["fit", "."], "no images; looked in all its folders"),
            (["score", "absent.safetensors", "."], "no model file absent.safetensors"),
            (["score", "notes.txt", "."], "notes.txt is not a model file or is damaged"),
            (["evaluate", "."], "no train/good in it"),
            (["download", "car"], "'car' is no category of MVTec AD"),
        ],
    )
    def test_wrong_input(self, run, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "notes.txt").write_text("no model")
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert message in err
        assert "Traceback" not in err

    def test_score_without_images(self, run, model):
        code, out, err = run("score", model)
        assert (code, out) == (2, "")
        assert "images" in err.lower()

    def test_the_licence_has_to_be_accepted(self, run, tmp_path):
        code, out, err = run("download", "metal_nut", "-o", tmp_path)
        assert (code, out) == (2, "")
        assert "CC BY-NC-SA 4.0" in err
        assert "--accept-license" in err or "accept_license=True" in err
        assert list(tmp_path.iterdir()) == []

    def test_interrupted(self, run, data, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(Detector, "fit", interrupt)
        code, out, err = run("fit", data.train.root)
        assert (code, out) == (130, "")
        assert "Traceback" not in err


class TestDiagnoseAndReport:
    def test_diagnose_prints_advice_and_writes_figures(self, run, data, tmp_path):
        code, out, err = run("diagnose", data.train.root, "-o", tmp_path / "figures", *FAST)
        assert code == 0
        assert "16 images examined" in out
        assert f"7 figures in {tmp_path / 'figures'}" in err

    def test_diagnose_prints_one_json_object(self, run, data):
        code, out, _ = run("diagnose", data.train.root, "--json", *FAST)
        found = json.loads(out)
        assert code == 0
        assert len(found["suspicious"]) == 16
        assert {"near_duplicates", "elbow_k", "silhouette_k", "eps"} <= set(found)

    def test_report_writes_a_page(self, run, data, model, with_broken, tmp_path):
        page = tmp_path / "page.html"
        code, out, err = run("report", model, with_broken, "--good", data.train.root, "-o", page, "--strict")
        assert code == 1
        assert "2 images" in out
        assert "broken.png" in err
        assert "broken.png" in page.read_text()


class TestDefaults:
    def test_are_those_of_the_library(self, run, data, monkeypatch):
        """A flag that is not given is not passed on."""
        given = []

        class Spy(Detector):
            def __init__(self, **parameters):
                given.append(parameters)
                super().__init__(**parameters)

        monkeypatch.setattr("anomalib_lite.detector.Detector", Spy)
        code, _, _ = run("fit", data.test.root / "color", "-o", data.root.parent / "model.safetensors")
        assert (code, given) == (0, [{}])


def test_names_that_are_no_text_are_shown(run, model, data, tmp_path):
    name = b"part_\xff.png".decode(errors="surrogateescape")
    try:
        shutil.copy(data.test.root / "color" / "000.png", tmp_path / name)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    code, out, err = run("score", model, tmp_path)
    assert code == 0, err
    assert r"part_\udcff.png" in out


def test_is_installed_as_a_command():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="anomalib-lite")
    assert [script.load() for script in scripts] == [cli.main]
