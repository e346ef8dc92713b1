import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_lite import Calibration, Detector, evaluate
from anomalib_lite.evaluation.measuring import measure
from anomalib_lite.evaluation.metrics import binomial_interval
from anomalib_lite.evaluation.result import AtRate
from anomalib_lite.fitted.coverage import binomial_band, direction_of
from anomalib_lite.images.mvtec import open_mvtec

SMALL = {"image_size": 64, "batch_size": 4}

# What `evaluate --json` promises at least; DESIGN.md.
PROMISED = [
    "image_auroc",
    "image_auroc_ci",
    "image_ap",
    "f1_max",
    "fpr_at_full_recall",
    "pixel_auroc",
    "pixel_ap",
    "aupro",
    "n_train",
    "n_test",
    "n_unreadable",
    "fit_seconds",
    "seconds_per_image",
    "peak_rss_mb",
    "threshold",
    "false_alarm_rate_target",
    "false_alarm_rate_observed",
    "recall_at_threshold",
    "guarantee_met",
    "per_defect",
    "config",
]


@pytest.fixture(scope="module")
def evaluation(synthetic_set):
    return evaluate(synthetic_set, false_alarm_rate=0.1, **SMALL)


@pytest.fixture(scope="module")
def scored(synthetic_set):
    """The data set, a detector like that of `evaluation`, and its scores."""
    data = open_mvtec(synthetic_set)
    detector = Detector(false_alarm_rate=0.1, **SMALL).fit(data.train)
    return data, detector, detector.score(data.test)


@pytest.fixture
def copied(synthetic_set, tmp_path):
    return shutil.copytree(synthetic_set, tmp_path / "metal_nut")


class TestEvaluate:
    def test_has_every_key_that_is_promised(self, evaluation):
        result = json.loads(evaluation.to_json())
        assert set(PROMISED) <= set(result)
        assert all(result[key] is not None for key in PROMISED)
        assert (result["n_train"], result["n_test"], result["n_unreadable"]) == (16, 18, 0)
        assert (result["n_test_good"], result["n_masks"]) == (6, 12)
        assert result["config"]["backbone"] == "builtin"
        assert result["config"]["image_size"] == 64
        assert result["fit_seconds"] > 0
        assert result["seconds_per_image"] > 0
        assert 0.01 < result["model_mb"] < 10 < result["peak_rss_mb"]
        assert result["reasons"] == result["pairing_problems"] == []

    def test_agrees_with_scikit_learn(self, evaluation, scored):
        data, _, scores = scored
        assert evaluation.image_auroc == pytest.approx(roc_auc_score(data.labels, scores.scores), abs=1e-9)
        assert evaluation.image_ap == pytest.approx(average_precision_score(data.labels, scores.scores), abs=1e-9)
        low, high = evaluation.image_auroc_ci
        assert low <= evaluation.image_auroc <= high
        kinds = np.array(data.kinds)
        assert list(evaluation.per_defect) == ["bent", "color", "flip", "scratch"]
        for kind, value in evaluation.per_defect.items():
            chosen = (kinds == "good") | (kinds == kind)
            expected = roc_auc_score(data.labels[chosen], scores.scores[chosen])
            assert value == pytest.approx(expected, abs=1e-9), kind

    def test_pixel_metrics_agree_with_scikit_learn(self, evaluation, scored):
        data, _, scores = scored
        masks = np.concatenate([data.read_mask(i).ravel() for i in range(len(data.test))])
        maps = np.concatenate([scores.anomaly_map(i).ravel() for i in range(len(data.test))])
        assert evaluation.pixel_auroc == pytest.approx(roc_auc_score(masks, maps), abs=1e-3)
        assert evaluation.pixel_ap == pytest.approx(average_precision_score(masks, maps), abs=2e-3)
        assert 0 < evaluation.aupro < 1

    def test_measures_at_each_rate(self, evaluation, scored):
        data, detector, scores = scored
        assert [at.false_alarm_rate_target for at in evaluation.at_rates] == [0.01, 0.05, 0.1]
        assert [at.guarantee_met for at in evaluation.at_rates] == [False, False, True]  # 16 images
        thresholds = [at.threshold for at in evaluation.at_rates]
        assert thresholds == sorted(thresholds, reverse=True)
        assert thresholds[2] == detector.fitted_.calibration.threshold
        for at in evaluation.at_rates:
            assert (
                at.threshold == Calibration(detector.fitted_.calibration.scores, at.false_alarm_rate_target).threshold
            )
            alarms = scores.scores > at.threshold
            false_alarms = int(alarms[~data.labels].sum())
            assert at.false_alarm_rate_observed == pytest.approx(false_alarms / 6)
            assert at.recall_at_threshold == pytest.approx(alarms[data.labels].mean())
            assert at.false_alarm_rate_interval == binomial_interval(false_alarms, 6)
            low, high = binomial_band(at.false_alarm_rate_target, 6)
            assert at.false_alarm_rate_within_band == (low <= false_alarms <= high)
            assert at.coverage == ("below" if false_alarms < low else "above" if false_alarms > high else "within")
            assert at.recall_interval == binomial_interval(int(alarms[data.labels].sum()), 12)
        own = evaluation.at_rates[2]
        for name in ("threshold", "false_alarm_rate_observed", "recall_at_threshold", "guarantee_met"):
            assert getattr(evaluation, name) == getattr(own, name)
        assert evaluation.false_alarm_rate_target == 0.1

    def test_says_what_it_is_in_a_line(self, evaluation):
        told = repr(evaluation)
        assert told.startswith("Evaluation(6 good and 12 defective images: recall ")
        assert f"at 10 % promised, image AUROC {evaluation.image_auroc:.4f}, pixel AUROC " in told

    def test_reads_as_text(self, evaluation):
        text = evaluation.to_text()
        lines = text.splitlines()
        assert [line.split(":")[0] for line in lines[:3]] == [
            "at 1 % asked, which is not promised",
            "at 5 % asked, which is not promised",
            "at 10 % promised",
        ]
        assert f"recall {evaluation.recall_at_threshold:.3f} (95 % interval " in lines[2]
        assert "of 6 good images)" in lines[2]
        assert lines[3].startswith(f"image AUROC   {evaluation.image_auroc:.4f}")
        assert "nan" not in text.lower()
        assert "scratch" in text

    @pytest.mark.parametrize(
        ("false_alarms", "promised", "told"),
        [
            (5, True, "(5 of 100 good images)"),
            (0, True, "; fewer than promised: the threshold is stricter than asked and gives away recall"),
            (11, True, "; more than promised: outside the band of chance"),
            (11, False, "; more than asked: outside the band of chance"),
        ],
    )
    def test_says_of_false_alarms_when_they_are_too_many_or_too_few(self, false_alarms, promised, told):
        side = direction_of(false_alarms, binomial_band(0.05, 100))
        at = AtRate(0.05, 1.0, promised, false_alarms / 100, (0, 1), side == "within", 0.9, (0.8, 0.95), side)
        assert at.to_text(100).endswith(told)
        assert "recall 0.900 (95 % interval 0.800 to 0.950), false alarms 0." in at.to_text(100)

    @pytest.mark.parametrize("name", ["good", "OK", "Ok", "Normal", "NORMAL", "ok"])
    def test_the_folder_of_good_images_has_several_names(self, copied, evaluation, name):
        for part in ("train", "test"):
            (copied / part / "good").rename(copied / part / name)
        result = evaluate(copied, false_alarm_rate=0.1, **SMALL)
        assert result.image_auroc == evaluation.image_auroc
        assert result.at_rates == evaluation.at_rates
        assert result.per_defect == evaluation.per_defect
        assert (result.n_train, result.n_test_good, result.pairing_problems) == (16, 6, [])

    def test_fits_on_other_images_when_told(self, synthetic_set):
        other = evaluate(synthetic_set, train=synthetic_set / "test" / "good", **SMALL)
        assert (other.n_train, other.n_test) == (6, 18)
        assert not other.guarantee_met

    def test_the_test_set_takes_no_part_in_the_fit(self, synthetic_set, copied):
        """Were the threshold fitted on test images, removing some would move it."""
        shutil.rmtree(copied / "test" / "flip")
        fewer = evaluate(copied, **SMALL)
        assert fewer.threshold == evaluate(synthetic_set, **SMALL).threshold
        assert fewer.n_test == 15


class TestWhatCannotBeComputed:
    def test_without_masks(self, copied, evaluation):
        shutil.rmtree(copied / "ground_truth")
        result = evaluate(copied, false_alarm_rate=0.1, **SMALL)
        assert result.pixel_auroc is result.pixel_ap is result.aupro is None
        assert any("no defective pixel" in reason for reason in result.reasons)
        assert any("12 defective images have no mask" in reason for reason in result.reasons)
        assert not any("left out" in reason for reason in result.reasons)
        assert result.image_auroc == evaluation.image_auroc
        assert len(result.pairing_problems) == 12
        text = result.to_text()
        assert "pixel AUROC   n/a" in text
        assert "… and 9 more pairing problems" in text
        json.loads(result.to_json())

    def test_with_some_masks(self, copied):
        for kind in ("flip", "bent", "scratch"):
            shutil.rmtree(copied / "ground_truth" / kind)
        result = evaluate(copied, **SMALL)
        assert result.n_masks == 3
        assert result.pixel_auroc is not None
        assert any("over the 3 that have one" in reason for reason in result.reasons)

    def test_with_a_mask_of_another_image(self, copied):
        mask = copied / "ground_truth" / "color" / "000_mask.png"
        Image.new("L", (128, 50), 255).save(mask)
        (copied / "ground_truth" / "color" / "001_mask.png").write_bytes(b"no image")
        result = evaluate(copied, **SMALL)
        left_out = [reason for reason in result.reasons if reason.startswith("mask left out")]
        assert len(left_out) == 2
        assert "50 x 128 pixels do not fit" in left_out[0]
        assert "001_mask.png" in left_out[1]
        assert result.n_masks == 10

    def test_without_good_test_images(self, copied):
        shutil.rmtree(copied / "test" / "good")
        result = evaluate(copied, **SMALL)
        for name in ("image_auroc", "image_auroc_ci", "image_ap", "f1_max", "fpr_at_full_recall", "misordered_pairs"):
            assert getattr(result, name) is None, name
        assert result.false_alarm_rate_observed is None
        assert all(at.coverage is at.false_alarm_rate_within_band is None for at in result.at_rates)
        assert "false alarms n/a: no good test image" in result.to_text().splitlines()[0]
        assert result.per_defect == {}
        assert any("no good sample" in reason for reason in result.reasons)
        assert 0 <= result.recall_at_threshold <= 1
        assert result.pixel_auroc is not None
        assert "image AUROC   n/a" in result.to_text()
        json.loads(result.to_json())

    def test_without_defective_test_images(self, copied):
        for kind in ("flip", "bent", "scratch", "color"):
            shutil.rmtree(copied / "test" / kind)
        result = evaluate(copied, **SMALL)
        assert result.image_auroc is result.recall_at_threshold is result.pixel_auroc is None
        assert any("no defective sample" in reason for reason in result.reasons)
        assert all(at.recall_interval is None for at in result.at_rates)
        assert "recall n/a, false alarms" in result.to_text()
        assert 0 <= result.false_alarm_rate_observed <= 1

    def test_at_the_global_level(self, synthetic_set):
        result = evaluate(synthetic_set, level="global", **SMALL)
        assert result.pixel_auroc is result.pixel_ap is result.aupro is None
        assert "level='global' has no anomaly maps" in result.reasons
        assert 0 < result.image_auroc <= 1

    def test_without_test_images(self, copied):
        shutil.rmtree(copied / "test")
        with pytest.raises(
            ValueError, match="has no test images to evaluate on; put them into test/good and test/<kind>"
        ):
            evaluate(copied, **SMALL)

    def test_without_the_layout(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no train/good in it, found nothing; the layout of MVTec AD is"):
            evaluate(tmp_path, **SMALL)

    def test_unreadable_images_are_counted_and_listed(self, copied):
        (copied / "train" / "good" / "003.png").write_bytes(b"")
        spoilt = copied / "test" / "color" / "001.png"
        spoilt.write_bytes(spoilt.read_bytes()[:2000])
        result = evaluate(copied, **SMALL)
        assert (result.n_train, result.n_test, result.n_unreadable) == (15, 17, 2)
        assert [entry.id for entry in result.unreadable] == ["003.png", "color/001.png"]
        assert "truncated after 2 kB" in result.unreadable[1].reason
        assert result.n_masks == 11
        # Labels and masks are those of the images that are left.
        data = open_mvtec(copied)
        scores = Detector(**SMALL).fit(data.train).score(data.test)
        labels = [not image_id.startswith("good/") for image_id in scores.ids]
        assert result.image_auroc == pytest.approx(roc_auc_score(labels, scores.scores), abs=1e-9)
        masks = [data.read_mask(data.test.ids.index(image_id)).ravel() for image_id in scores.ids]
        maps = [scores.anomaly_map(i).ravel() for i in range(len(scores))]
        expected = roc_auc_score(np.concatenate(masks), np.concatenate(maps))
        assert result.pixel_auroc == pytest.approx(expected, abs=1e-3)

    def test_when_every_test_image_is_unreadable(self, copied):
        for path in (copied / "test").rglob("*.png"):
            path.write_bytes(b"no image")
        result = evaluate(copied, **SMALL)
        assert (result.n_test, result.n_unreadable) == (0, 18)
        assert result.image_auroc is result.pixel_auroc is result.false_alarm_rate_observed is None
        assert result.reasons
        json.loads(result.to_json())

    def test_what_alarms_whatever_its_score_is_counted_at_every_rate(self, scored):
        data, detector, scores = scored
        alarms = np.ones(len(scores), dtype=bool)  # as of pictures that a fixture cannot lay
        result = measure(detector, replace(scores, alarms=alarms), data, rates=(0.01,))
        assert [at.false_alarm_rate_observed for at in result.at_rates] == [1.0, 1.0]
        assert [at.recall_at_threshold for at in result.at_rates] == [1.0, 1.0]

    def test_times_and_size_that_were_not_measured(self, scored):
        data, detector, scores = scored
        result = measure(detector, scores, data, rates=())
        assert result.fit_seconds is result.seconds_per_image is None
        assert "fitted in n/a s" in result.to_text()
        assert "NaN" not in result.to_json()
