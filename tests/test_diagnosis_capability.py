"""Capability: the size of defect that a detector sees, from painted defects; and whether the curve is one."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from anomalib_lite import Detector
from anomalib_lite.cli import app
from anomalib_lite.diagnosis.capability import PaintedDefect, capability
from anomalib_lite.diagnosis.detection import fit_curve
from anomalib_lite.images.painting import KINDS, paint

GREY = np.full((64, 96, 3), 180, np.uint8)


def surface(seed, size=(96, 128)):
    rng = np.random.default_rng(seed)
    rows = 150 + 8 * rng.normal(size=(size[0], 1)) + 3 * rng.normal(size=size)
    return np.clip(np.repeat(rows[..., None], 3, axis=2), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector():
    parameters = {"image_size": 96, "dtype": "float32", "workers": 0, "bank_size": 600, "false_alarm_rate": 0.1}
    return Detector(**parameters).fit([surface(seed) for seed in range(24)])


@pytest.fixture(scope="module")
def found(detector):
    return capability(detector, [surface(seed) for seed in range(100, 110)], per_kind=20, contrast=0.1)


class TestBrushes:
    @pytest.mark.parametrize("kind", KINDS)
    def test_paint_where_they_are_told_to_and_as_large(self, kind):
        for size in (4, 12, 24):
            changed = (paint(GREY, kind, at=(30, 50), size=size, contrast=0.5, ground=(0, 0, 0)) != GREY).any(axis=2)
            y, x = np.nonzero(changed)
            assert abs(y.mean() - 30) < 2
            assert abs(x.mean() - 50) < 2
            extent = x.max() - x.min() + 1
            assert 0.7 * size <= extent <= 1.6 * size + 3

    def test_dark_on_bright_and_bright_on_dark(self):
        assert paint(GREY, "spot", at=(30, 50), size=10, contrast=0.25)[30, 50, 0] == 180 - 64
        assert paint(GREY // 4, "spot", at=(30, 50), size=10, contrast=0.25)[30, 50, 0] == 45 + 64

    def test_a_dent_has_a_light_and_a_dark_side(self):
        column = paint(GREY, "dent", at=(30, 50), size=16, contrast=0.2)[30, :, 0].astype(int) - 180
        assert column.max() == pytest.approx(51, abs=2)
        assert column.min() == pytest.approx(-51, abs=2)

    def test_what_is_missing_shows_the_ground(self):
        assert paint(GREY, "missing", at=(30, 50), size=12, contrast=0.2, ground=(9, 8, 7))[30, 50].tolist() == [
            9,
            8,
            7,
        ]

    def test_the_picture_stays_as_it_was(self):
        before = GREY.copy()
        paint(GREY, "spot", at=(30, 50), size=10, contrast=0.5)
        assert np.array_equal(GREY, before)

    def test_at_the_border(self):
        assert paint(GREY, "scratch", at=(0, 95), size=30, contrast=0.5).shape == GREY.shape

    @pytest.mark.parametrize(
        "wrong", [{"kind": "crack"}, {"size": 0}, {"contrast": 0}, {"contrast": 1.5}, {"at": (500, 500)}]
    )
    def test_what_cannot_be_painted(self, wrong):
        with pytest.raises(ValueError, match=r"kind=|size=|at="):
            paint(GREY, **{"kind": "spot", "at": (30, 50), "size": 10, "contrast": 0.5, **wrong})


class TestCurve:
    def test_finds_the_curve_that_made_the_hits(self):
        rng = np.random.default_rng(0)
        sizes = np.exp(rng.uniform(0, 4, 4000))
        truth = 1 / (1 + np.exp(-(-6 + 3 * np.log(sizes))))
        curve = fit_curve(sizes, rng.random(4000) < truth)
        assert curve.intercept == pytest.approx(-6, abs=0.5)
        assert curve.slope == pytest.approx(3, abs=0.25)
        assert curve.size_found(0.9) == pytest.approx(np.exp((6 + np.log(9)) / 3), rel=0.06)

    def test_the_bound_holds_in_nineteen_of_twenty(self):
        """a90/95 lies above the true a90 in 95 % of trials, or nearly: Wald's bound is approximate."""
        rng = np.random.default_rng(0)
        truth = np.exp((6 + np.log(9)) / 3)
        held = []
        for _ in range(200):
            sizes = np.exp(rng.uniform(0, 4, 80))
            hits = rng.random(80) < 1 / (1 + np.exp(-(-6 + 3 * np.log(sizes))))
            bound = fit_curve(sizes, hits).size_found(0.9, confident=True)
            held.append(bound is None or bound >= truth)
        assert np.mean(held) > 0.9

    def test_separated_hits_have_a_curve_too(self):
        sizes = np.geomspace(1, 100, 60)
        curve = fit_curve(sizes, sizes > 10)
        assert curve.size_found(0.5) == pytest.approx(10, rel=0.15)
        assert np.isfinite(curve.slope)
        assert curve.size_found(0.9) < curve.size_found(0.9, confident=True) < 40

    @pytest.mark.parametrize(("hits", "expected"), [(True, 1.0), (False, None)])
    def test_all_or_none(self, hits, expected):
        sizes = np.geomspace(1, 100, 60)
        curve = fit_curve(sizes, np.full(60, hits))
        assert curve.size_found(0.5) == expected
        assert curve.hits == 60 * hits

    @pytest.mark.parametrize("sizes", [np.ones(20), np.arange(1, 6)])
    def test_too_little(self, sizes):
        with pytest.raises(ValueError, match="ten of several are needed"):
            fit_curve(sizes, np.ones(len(sizes), bool))


class TestCapability:
    def test_larger_defects_are_found_more_often(self, found):
        assert len(found.defects) == 20 * len(KINDS)
        large = [defect.found for defect in found.defects if defect.size > 10 and defect.kind == "spot"]
        small = [defect.found for defect in found.defects if defect.size < 5 and defect.kind == "spot"]
        assert np.mean(large) > np.mean(small)
        assert found.curves["spot"].slope > 0

    def test_says_so_in_words(self, found):
        text = found.to_text()
        assert text.startswith("80 defects painted onto ")
        assert "10 % of the range darker or lighter" in text
        for name in ("spots", "scratches", "dents", "missing pieces"):
            assert f"\n{name}: " in text

    def test_is_json(self, found):
        told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert set(told["kinds"]) == set(KINDS)
        assert np.array(told["where"], dtype=float).shape == (5, 5)

    def test_is_the_same_again(self, detector, found):
        again = capability(detector, [surface(seed) for seed in range(100, 110)], per_kind=20, contrast=0.1)
        assert again.to_dict() == found.to_dict()

    def test_a_lower_threshold_finds_more(self, detector, found):
        keen = capability(detector.at_rate(0.4), [surface(seed) for seed in range(100, 110)], per_kind=20, contrast=0.1)
        both = {defect.id for defect in keen.defects} & {defect.id for defect in found.defects}
        hits = [sum(defect.found for defect in one.defects if defect.id in both) for one in (found, keen)]
        assert hits[0] <= hits[1]
        assert keen.false_alarm_rate == 0.4

    def test_millimetres(self, found):
        import dataclasses

        assert " px = " in dataclasses.replace(found, pixel_size=0.1).to_text()

    def test_nothing_is_painted_where_nothing_is_looked_at(self):
        parameters = {"image_size": 96, "dtype": "float32", "workers": 0, "bank_size": 400}
        detector = Detector(roi=(0, 0, 64, 96), **parameters).fit([surface(seed) for seed in range(8)])
        here = capability(detector, [surface(seed) for seed in range(50, 56)], kinds=["spot"], per_kind=20)
        assert max(defect.x for defect in here.defects) <= 0.51

    def test_the_weaker_rim_is_told(self):
        from anomalib_lite.diagnosis.capability import _where

        rng = np.random.default_rng(0)
        defects = []
        for i in range(400):
            x, y, size = rng.random(), rng.random(), float(np.exp(rng.uniform(0, 4)))
            rim = min(x, y, 1 - x, 1 - y) < 1 / 6
            defects.append(PaintedDefect(str(i), "spot", size, x, y, 0.0, bool(size > (20 if rim else 5))))
        curves = {"spot": fit_curve([d.size for d in defects], np.array([d.found for d in defects]))}
        where, rim = _where(defects, curves, np.ones((256, 256), dtype=bool))
        assert rim < 0.9
        assert where[2, 2] > 1 > where[0, 0]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"kinds": ["crack"]}, "choose of spot"),
            ({"kinds": []}, "choose of spot"),
            ({"contrast": 0}, "contrast=0"),
            ({"per_kind": 5}, "per_kind=5"),
            ({"sizes": (10, 5)}, "sizes="),
        ],
    )
    def test_wrong_values(self, detector, wrong, message):
        with pytest.raises(ValueError, match=message):
            capability(detector, [surface(99)], **wrong)

    def test_images_that_all_alarm(self, detector):
        with pytest.raises(ValueError, match="no image is left to paint on: 2 of 2 can be read, and all of them alarm"):
            capability(
                detector, [np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8) for seed in (0, 1)]
            )

    def test_an_unreadable_one_is_told(self, detector):
        with pytest.warns(UserWarning, match="1 images cannot be read"):
            capability(detector, [*(surface(seed) for seed in range(100, 106)), b"broken"], kinds=["spot"], per_kind=10)

    def test_training_images_are_told(self, detector):
        with pytest.warns(UserWarning, match="learnt from"):
            capability(detector, [surface(seed) for seed in range(12)], kinds=["spot"], per_kind=10)

    @pytest.mark.parametrize("as_json", [True, False])
    def test_by_the_command_line(self, detector, tmp_path, as_json):
        from PIL import Image

        (tmp_path / "good").mkdir()
        for seed in range(100, 106):
            Image.fromarray(surface(seed)).save(tmp_path / "good" / f"{seed}.png")
        model = detector.save(tmp_path / "model.safetensors")
        command = ["capability", str(model), str(tmp_path / "good"), "--kinds", "spot,dent", "--per-kind", "10"]
        command += ["-o", str(tmp_path / "capability.png")]
        result = CliRunner().invoke(app, command + ["--json"] * as_json)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "capability.png").stat().st_size > 10_000
        if as_json:
            assert set(json.loads(result.stdout)["kinds"]) == {"spot", "dent"}
        else:
            assert "spots: " in result.stdout
