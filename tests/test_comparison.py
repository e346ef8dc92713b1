"""The comparison: names, rows, both studies, resuming, the command line, and what stops it before it begins."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18
from typer.testing import CliRunner

from anomalib_lite import compare, make_metal_nut
from anomalib_lite.cli import app
from anomalib_lite.comparison import comparing
from anomalib_lite.comparison.methods import Method, Settings, read_method
from anomalib_lite.comparison.runs import run
from anomalib_lite.embedding import backbones
from anomalib_lite.embedding.weights import WeightsError
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.classifier import Classifier
from anomalib_lite.supervised.labelled import LabelledDataError, open_labelled
from anomalib_lite.supervised.splitting import split

ROW = {"name", "kind", "image_auroc_mean", "image_auroc_std", "accuracy_mean", "train_seconds", "ms_per_image"}


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """Backbones see 64 pixels instead of 256."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "default_input_size", lambda name: 64)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_metal_nut(tmp_path_factory.mktemp("compared") / "nuts", n_train=10, n_good=6, n_defect=4, size=64)


@pytest.fixture(scope="module")
def compared(folder):
    return compare(
        folder, models=["cnn", "linear", "unet", "knn"], seeds=2, epochs=2, image_size=32, few_labels=[2, 4, 500]
    )


@pytest.fixture(scope="module")
def grey_pair(tmp_path_factory):
    """A set in colour, and the same whose files are grey."""
    root = tmp_path_factory.mktemp("grey")
    colour = make_metal_nut(root / "colour", n_train=4, n_good=2, n_defect=2, size=64)
    grey = shutil.copytree(colour, root / "grey")
    for path in grey.glob("t*/*/*.png"):
        Image.open(path).convert("L").save(path)
    return open_labelled(colour), open_labelled(grey)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("cnn", Method("cnn", "supervised", "cnn")),
            ("linear", Method("linear", "supervised", "linear", "global", "builtin")),
            ("unet", Method("unet", "supervised", "unet")),
            ("unet@builtin", Method("unet@builtin", "supervised", "unet", backbone="builtin")),
            ("knn", Method("knn", "unsupervised", "knn", "patch", "builtin")),
            ("kmeans-global", Method("kmeans-global", "unsupervised", "kmeans", "global", "builtin")),
            (
                "finetune@resnet18:layer1+layer2",
                Method(
                    "finetune@resnet18:layer1+layer2", "supervised", "finetune", "global", "resnet18", "layer1,layer2"
                ),
            ),
        ],
    )
    def test_are_made_out(self, name, expected):
        assert read_method(name) == expected

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("svm", "no model 'svm' to compare; supervised: cnn, "),
            ("knn-image", "no model 'knn-image'"),
            ("cnn@resnet18", "cnn is trained from nothing and takes no backbone"),
            ("linear@", "name the backbone behind @"),
        ],
    )
    def test_that_mean_nothing_are_refused(self, name, message):
        with pytest.raises(ValueError, match=message):
            read_method(name)


class TestRows:
    def test_one_for_each_model(self, compared):
        assert [(row.name, row.kind) for row in compared.rows] == [
            ("cnn", "supervised"),
            ("linear", "supervised"),
            ("unet", "supervised"),
            ("knn", "unsupervised"),
        ]
        for row in compared.rows:
            assert 0 <= row.image_auroc_mean <= 1
            assert 0 <= row.accuracy_mean <= 1
            assert row.train_seconds > 0
            assert row.ms_per_image > 0
            assert row.seeds == 2
        located = {row.name for row in compared.rows if row.pixel_auroc_mean is not None}
        assert located == {"unet", "knn"}
        assert len({row.image_auroc_mean for row in compared.rows}) > 1

    def test_every_method_is_tested_on_the_same_half(self, compared):
        assert compared.counts == {"learn_good": 13, "learn_defective": 8, "test_good": 3, "test_defective": 8}

    def test_recall_stands_beside_the_false_alarms(self, compared):
        for row in compared.rows:
            assert 0 <= row.recall_mean <= 1
            assert row.n_test_good == 2 * 3  # of both seeds
            false_rate = row.false_alarms / row.n_test_good
            assert row.balanced_accuracy_mean == pytest.approx((row.recall_mean + 1 - false_rate) / 2)
            assert row.promised_rate is None  # 13 images promise no 1 %, and supervised models nothing ever

    def test_a_rate_that_is_promised_is_named(self, folder):
        options = {"seeds": 1, "epochs": 1, "few_labels": [], "leave_one_out": False}
        found = compare(folder, models=["linear", "knn"], false_alarm_rate=0.1, **options)
        assert [row.promised_rate for row in found.rows] == [None, 0.1]
        assert "| knn | unsupervised | 10 % | " in found.to_markdown()
        assert "| linear | supervised | none | " in found.to_markdown()

    @pytest.mark.parametrize("name", ["OK", "Normal"])
    def test_the_folder_of_good_images_has_several_names(self, folder, compared, tmp_path, name):
        shutil.copytree(folder, tmp_path / "set")
        for part in ("train", "test"):
            (tmp_path / "set" / part / "good").rename(tmp_path / "set" / part / name)
        found = compare(tmp_path / "set", models=["knn"], seeds=2, few_labels=[], leave_one_out=False)
        assert found.counts == compared.counts
        assert found.rows[0].n_test_good == 6

    def test_the_detector_needs_no_labels(self, compared):
        for row in compared.left_out:
            if row.name == "knn":
                assert row.seen_auroc == row.unseen_auroc
        assert len({row.seen_auroc for row in compared.left_out if row.name == "knn"}) > 1

    def test_each_kind_is_left_out_in_turn(self, compared):
        assert {(row.defect, row.name) for row in compared.left_out} == {
            (defect, name) for defect in ("bent", "color", "flip", "scratch") for name in ("cnn", "linear", "knn")
        }

    def test_models_of_the_studies_can_be_named(self, folder):
        options = {"seeds": 1, "epochs": 1, "few_labels": [2], "models": ["cnn", "linear", "knn"]}
        found = compare(folder, study_models=["linear"], **options)
        assert {row.name for row in [*found.left_out, *found.few_labels]} == {"linear"}
        with pytest.raises(ValueError, match="study_models: svm is not among the models compared, cnn, linear, knn"):
            compare(folder, study_models=["svm"], **options)

    def test_few_labels_are_those_there_are(self, compared):
        assert sorted({row.labels for row in compared.few_labels}) == [2, 4]

    def test_mistakes_are_listed(self, compared):
        row = next(row for row in compared.rows if row.name == "cnn")
        assert set(compared.misclassified) == {"cnn", "linear", "unet", "knn"}
        assert 0 < len(compared.misclassified["cnn"]) <= 11
        assert row.accuracy_mean < 1

    def test_is_json(self, compared):
        stored = json.loads(compared.to_json())
        assert all(set(row) >= ROW for row in stored["rows"])

    def test_markdown_has_all_tables(self, compared):
        text = compared.to_markdown()
        assert text.count("| --- |") >= 3
        assert all(f"| {name} |" in text for name in ("cnn", "linear", "unet", "knn"))

    def test_a_few_predicted_masks_are_kept(self, compared):
        assert set(compared.maps) == {"unet"}
        kinds = [image_id.split("/")[1] for image_id in compared.maps["unet"]]
        assert set(kinds) == {"good", "bent", "color", "flip", "scratch"}
        assert all(pixels.dtype == np.uint8 and pixels.shape == (32, 32) for pixels in compared.maps["unet"].values())
        assert "maps" not in compared.to_dict()

    def test_files_and_figures(self, compared, folder, tmp_path):
        # One of each kind of figure is enough.
        shown = replace(
            compared, misclassified={"cnn": compared.misclassified["cnn"]}, curves={"cnn": compared.curves["cnn"]}
        )
        written = shown.save(tmp_path / "out", open_labelled(folder))
        names = {path.name for path in written}
        assert {"comparison.md", "comparison.json", "comparison.png", "left_out.png", "few_labels.png"} <= names
        assert {"training_cnn.png", "misclassified_cnn.png", "masks_unet.png"} <= names
        for path in written:
            if path.suffix == ".png":
                with Image.open(path) as image:
                    assert image.width <= 130 * 7


class TestClassFolders:
    def test_work_without_masks(self, folder, tmp_path):
        for kind in ("good", "color"):
            shutil.copytree(folder / "test" / kind, tmp_path / "set" / ("ok" if kind == "good" else kind))
        found = compare(tmp_path / "set", models=["linear", "knn"], seeds=1, epochs=2)
        assert len(found.rows) == 2
        assert found.left_out == []  # one kind of defect: nothing to leave out
        assert found.rows[1].pixel_auroc_mean is None

    def test_the_default_models_leave_the_unet_out_without_masks(self, folder, tmp_path):
        from anomalib_lite.comparison.comparing import _methods

        shutil.copytree(folder / "test", tmp_path / "set")
        names = [c.name for c in _methods(None, open_labelled(tmp_path / "set"), "builtin")]
        assert "unet" not in names
        assert {"cnn", "linear", "finetune", "knn", "subspace-global"} <= set(names)
        assert "unet" in [c.name for c in _methods(None, open_labelled(folder), "builtin")]


class TestGrey:
    @pytest.mark.parametrize("name", ["cnn", "linear", "finetune", "unet", "knn", "subspace-global"])
    def test_is_as_if_the_files_were_grey(self, grey_pair, name):
        colour, grey = grey_pair
        parts, scores = split(colour), []
        for images, take_away in ((grey, False), (colour, True), (colour, False)):
            settings = Settings(epochs=1, image_size=32, grey=take_away)
            result = run(read_method(name), images, parts, CachedImages(images), settings, random_state=0)
            scores.append(result.scores)
        np.testing.assert_array_equal(scores[0], scores[1])
        assert not np.array_equal(scores[0], scores[2])


class TestResuming:
    def test_a_run_comes_back_whole(self, folder, tmp_path):
        options = {"models": ["unet"], "seeds": 1, "epochs": 1, "image_size": 32, "leave_one_out": False}
        first = compare(folder, checkpoints=tmp_path, few_labels=[], **options)
        again = compare(folder, checkpoints=tmp_path, few_labels=[], **options)
        assert again.to_dict() == first.to_dict()
        assert list(again.maps["unet"]) == list(first.maps["unet"])
        for image_id, pixels in first.maps["unet"].items():
            np.testing.assert_array_equal(again.maps["unet"][image_id], pixels)

    def test_what_is_done_is_not_done_again(self, folder, tmp_path, monkeypatch):
        options = {"models": ["cnn", "linear"], "seeds": 2, "epochs": 1, "few_labels": [2], "image_size": 32}
        options |= {"checkpoints": tmp_path / "c"}
        runs: list[str] = []

        class Killed(BaseException):
            pass

        def dying(method, *arguments, **keywords):
            runs.append(method.name)
            if len(runs) == 3:
                raise Killed
            return run(method, *arguments, **keywords)

        monkeypatch.setattr(comparing, "run", dying)
        with pytest.raises(Killed):
            compare(folder, **options)
        monkeypatch.setattr(comparing, "run", lambda one, *a, **k: runs.append(one.name) or run(one, *a, **k))
        runs.clear()
        resumed = compare(folder, **options)
        assert len(runs) == 2 + 2 * 4 + 2  # the rest of the rows, both studies
        monkeypatch.setattr(comparing, "run", run)
        whole = compare(folder, **{**options, "checkpoints": None})
        for one, other in zip(resumed.rows, whole.rows, strict=True):
            assert one.image_auroc_mean == other.image_auroc_mean
            assert one.accuracy_mean == other.accuracy_mean
        assert not list((tmp_path / "c").glob("*.checkpoint"))
        with pytest.raises(ValueError, match="holds the checkpoints of another comparison"):
            compare(folder, **{**options, "test": 0.4})

    def test_other_settings_or_weights_are_trained_anew(self, folder, tmp_path, monkeypatch):
        runs: list[str] = []
        monkeypatch.setattr(comparing, "run", lambda one, *a, **k: runs.append(one.name) or run(one, *a, **k))
        torch.manual_seed(1)
        others = {"resnet18": resnet18().state_dict()}
        options = {"models": ["linear@resnet18"], "seeds": 1, "few_labels": [], "leave_one_out": False}
        options |= {"checkpoints": tmp_path}
        kept = {}
        for epochs, weights in ((2, {"resnet18": "random"}), (3, {"resnet18": "random"}), (2, others)):
            found = compare(folder, epochs=epochs, weights=weights, **options)
            kept[epochs, len(weights["resnet18"])] = found.rows[0].image_auroc_mean
        assert len(runs) == 3
        again = compare(folder, epochs=2, weights=others, **options)
        assert len(runs) == 3
        assert again.rows[0].image_auroc_mean == kept[2, len(others["resnet18"])]


class TestFailures:
    def test_one_model_that_fails_does_not_stop_the_others(self, folder, monkeypatch):
        from anomalib_lite.supervised.training import TrainingError

        def failing(method, *arguments, **keywords):
            if method.model == "cnn":
                raise TrainingError("cnn: the loss became nan in epoch 1")
            return run(method, *arguments, **keywords)

        monkeypatch.setattr(comparing, "run", failing)
        found = compare(folder, models=["cnn", "knn"], seeds=1, epochs=1, few_labels=[2])
        assert found.rows[0].error == "cnn: the loss became nan in epoch 1"
        assert found.rows[0].image_auroc_mean is None
        assert found.rows[1].image_auroc_mean > 0.5
        assert "cnn failed: cnn: the loss became nan" in found.to_markdown()

    def test_a_detector_whose_parameters_do_not_fit_is_a_row(self, tmp_path):
        folder = make_metal_nut(tmp_path / "few", n_train=1, n_good=2, n_defect=2, size=64)
        result = compare(folder, models=["dbscan", "knn", "linear"], seeds=2, epochs=1, few_labels=[2])
        errors = {row.name: row.error for row in result.rows}
        assert errors["dbscan"].startswith("2 readable image(s) among 2 to learn from; 3 good images are the least")
        assert errors["knn"] is errors["linear"] is None
        assert [row.seeds for row in result.rows] == [0, 2, 2]
        assert result.to_markdown().count("- dbscan failed: 2 readable image(s)") == 1

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (RuntimeError("mat1 and mat2"), "RuntimeError: mat1 and mat2"),
            (MemoryError(), "MemoryError: "),
            (np.linalg.LinAlgError("Singular matrix"), "Singular matrix"),
            (UnreadableImageError("a.png: truncated"), "a.png: truncated"),
            (KeyError("a"), "KeyError: 'a'"),
            (ValueError(), "ValueError: "),
        ],
    )
    def test_whatever_ails_one_model_the_others_stand(self, folder, monkeypatch, error, text):
        tried = []

        def failing(method, *arguments, **keywords):
            if method.model == "subspace":
                tried.append(method.name)
                raise error
            return run(method, *arguments, **keywords)

        monkeypatch.setattr(comparing, "run", failing)
        result = compare(folder, models=["subspace-global", "linear"], seeds=1, epochs=1, few_labels=[2])
        assert [row.error for row in result.rows] == [text, None]
        assert {row.error for row in (*result.left_out, *result.few_labels)} == {text, None}
        assert len(tried) == 1  # neither study tries again

    def test_an_interrupt_ends_it(self, folder, monkeypatch):
        def interrupted(*arguments, **keywords):
            raise KeyboardInterrupt

        monkeypatch.setattr(comparing, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(folder, models=["knn", "linear"], seeds=1)

    def test_a_failure_in_a_study_alone_is_told(self, folder, monkeypatch):
        def failing(method, images, parts, *arguments, **keywords):
            if not any(images.kinds[i] == "flip" for i in parts.learning):
                raise RuntimeError("no flip")
            return run(method, images, parts, *arguments, **keywords)

        monkeypatch.setattr(comparing, "run", failing)
        result = compare(folder, models=["linear"], seeds=1, epochs=1, few_labels=[])
        assert result.rows[0].error is None
        assert {row.defect: row.error for row in result.left_out}["flip"] == "RuntimeError: no flip"
        assert "- linear failed: RuntimeError: no flip" in result.to_markdown()

    @pytest.mark.parametrize("unsound", [np.nan, np.inf])
    def test_scores_that_are_no_numbers_are_a_failure(self, folder, monkeypatch, unsound):
        predict = Classifier.predict

        def unsoundly(self, images):
            predictions = predict(self, images)
            predictions.probabilities[0, 1] = unsound
            return predictions

        monkeypatch.setattr(Classifier, "predict", unsoundly)
        result = compare(folder, models=["linear", "knn"], seeds=1, epochs=1, few_labels=[], leave_one_out=False)
        text = "scores of 11 images: need one finite value for each of them"
        assert [row.error for row in result.rows] == [text, None]

    def test_if_all_fail_it_is_an_error(self, folder, monkeypatch):
        from anomalib_lite.supervised.training import TrainingError

        def failing(self, *arguments, **keywords):
            raise TrainingError("the loss became nan in epoch 1")

        monkeypatch.setattr(comparing, "run", failing)
        with pytest.raises(TrainingError, match="every model failed, the first with: the loss became nan"):
            compare(folder, models=["cnn", "knn"], seeds=1, epochs=1)

    @pytest.mark.parametrize("name", ["knn@resnet18:layer9", "linear@no_such_network"])
    def test_so_does_a_model_that_cannot_be_built(self, folder, monkeypatch, name):
        monkeypatch.setattr(comparing, "run", lambda *a, **k: pytest.fail("trained"))
        with pytest.raises(ValueError, match=r"has no layer 'layer9'|no backbone 'no_such_network'"):
            compare(folder, models=["cnn", name], weights={"resnet18": "random"})

    def test_weights_that_cannot_be_had_stop_it_before_training(self, folder, monkeypatch, tmp_path):
        monkeypatch.setattr(comparing, "run", lambda *a, **k: pytest.fail("trained"))
        with pytest.raises(WeightsError, match=r"no weights file .*none\.pth"):
            compare(folder, models=["cnn", "linear@resnet18"], weights={"resnet18": tmp_path / "none.pth"})

    def test_masks_matter_only_to_the_unet(self, folder, tmp_path):
        broken = shutil.copytree(folder, tmp_path / "nuts")
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(broken / "ground_truth" / "flip" / "stray_mask.png")
        with pytest.raises(LabelledDataError, match=r"stray_mask\.png: no image .*take the mask away"):
            compare(broken, models=["unet"], seeds=1)
        found = compare(broken, models=["linear"], seeds=1, epochs=1, leave_one_out=False, few_labels=[])
        assert any("stray_mask.png" in problem for problem in found.problems)

    def test_unreadable_images_are_listed_and_left_out(self, folder, tmp_path):
        broken = shutil.copytree(folder, tmp_path / "nuts")
        (broken / "test" / "flip" / "bad.png").write_bytes(b"no picture")
        found = compare(broken, models=["linear"], seeds=1, epochs=1, leave_one_out=False, few_labels=[])
        assert [one.id for one in found.unreadable] == ["test/flip/bad.png"]


class TestCommand:
    def test_prints_one_json_object(self, folder, tmp_path):
        out = tmp_path / "out"
        command = f"compare {folder} --models linear,knn --seeds 1 --epochs 2 --few-labels none --json -o {out}"
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)["rows"]
        assert [row["name"] for row in rows] == ["linear", "knn"]
        assert all(set(row) >= ROW for row in rows)
        assert (out / "comparison.png").exists()

    def test_prints_markdown(self, folder):
        result = CliRunner().invoke(
            app, f"compare {folder} --models linear --seeds 1 --epochs 1 --no-leave-one-out --few-labels 2".split()
        )
        assert result.stdout.startswith("| name | kind | rate promised | recall | false alarms | image AUROC |")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--models svm", "no model 'svm' to compare"),
            ("--few-labels many", "--few-labels many: give numbers separated by commas"),
            ("--weights-dir nowhere", "nowhere: no such folder of weights"),
            ("--good fine", "good='fine' is none of the classes"),
            ("--seeds 0", "seeds=0"),
            ("--models ,", "no model named"),
        ],
    )
    def test_wrong_input(self, folder, arguments, message, monkeypatch, capsys):
        from anomalib_lite.cli import main

        monkeypatch.setattr("sys.argv", ["anomalib-lite", "compare", str(folder), *arguments.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    def test_one_class_only(self, tmp_path, monkeypatch, capsys):
        from anomalib_lite.cli import main

        (tmp_path / "good").mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "good" / "a.png")
        monkeypatch.setattr("sys.argv", ["anomalib-lite", "compare", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "only the class good is there" in capsys.readouterr().err
