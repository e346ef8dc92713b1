"""Pictures as they come from a line: a verdict for each, and none for what shows nothing."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anomalib_lite import Detector, Judge
from anomalib_lite.images.sight import Sight
from anomalib_lite.images.synthetic import render_part

SMALL = {"image_size": 64, "workers": 0, "false_alarm_rate": 0.1}


def part(seed, defect=None, side=96):
    return render_part(np.random.default_rng(seed), side, defect)[0]


def blurred(pixels, radius):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


@pytest.fixture(scope="module")
def detector():
    return Detector(**SMALL).fit([part(i) for i in range(30)], groups="each")


@pytest.fixture
def judge(detector):
    return Judge(detector)


class TestVerdict:
    def test_is_what_score_says(self, detector, judge):
        for seed, defect in ((100, None), (101, "color"), (102, None), (103, "bent")):
            pixels = part(seed, defect)
            verdict, scores = judge.judge(pixels, "a"), detector.score([pixels])
            assert verdict.verdict == scores.verdicts[0]
            assert (verdict.score, verdict.p_value) == (scores.scores[0], scores.p_values[0])
            assert (verdict.threshold, verdict.false_alarm_rate) == (scores.threshold, scores.false_alarm_rate)
            assert len(verdict.regions) == (len(scores.regions(0)) if verdict.verdict == "alarm" else 0)
        told = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
        assert {
            "id",
            "verdict",
            "score",
            "p_value",
            "regions",
            "model",
            "picture",
            "time",
            "milliseconds",
        } <= told.keys()

    def test_of_a_file_bytes_and_an_array_alike(self, detector, tmp_path):
        pixels = part(101, "color")
        Image.fromarray(pixels).save(tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        found = [Judge(detector).judge(one, "a") for one in (pixels, tmp_path / "a.png", content)]
        assert len({(one.verdict, one.score, one.picture) for one in found}) == 1

    def test_channels_of_opencv(self, detector):
        pixels = part(101, "color")
        rgb, bgr = (
            Judge(detector, channels=channels).judge(picture, "a")
            for channels, picture in (("rgb", pixels), ("bgr", pixels[..., ::-1]))
        )
        assert (rgb.score, rgb.picture) == (bgr.score, bgr.picture)
        with pytest.raises(ValueError, match="'rgb' or 'bgr'"):
            Judge(detector, channels="gbr")


class TestNoVerdict:
    @pytest.mark.parametrize(
        ("picture", "reason"),
        [
            (None, "no picture"),
            (b"no picture", "cannot be read"),
            (b"", "cannot be read"),
            (np.zeros((96, 96, 3), np.uint8), "black"),
            ((0.03 * part(100)).astype(np.uint8), "black"),
            (np.full((96, 96, 3), 255, np.uint8), "saturated"),
            (np.full((96, 96, 3), 120, np.uint8), "shows nothing"),
            (blurred(part(100), 6), "blurred"),
            (part(100)[:60], "proportions"),
            (np.zeros((3, 4, 5, 6), np.uint8), "cannot be read"),
            (np.full((96, 96, 3), np.nan), "cannot be read"),
        ],
    )
    def test_is_said_why(self, judge, picture, reason):
        verdict = judge.judge(picture, "a")
        assert verdict.verdict == "no verdict"
        assert reason in verdict.reason
        assert (verdict.score, verdict.p_value, verdict.regions) == (None, None, ())
        json.dumps(verdict.to_dict(), allow_nan=False)

    def test_a_frozen_camera(self, judge):
        found = [judge.judge(pixels, "a") for pixels in (part(100), part(100), part(101), part(101), part(100))]
        assert [one.verdict == "no verdict" for one in found] == [False, True, False, True, False]
        assert "frozen" in found[1].reason

    def test_a_cut_off_file(self, judge):
        file = io.BytesIO()
        Image.fromarray(part(100)).save(file, "png")
        assert judge.judge(file.getvalue()[:-200], "a").verdict == "no verdict"

    def test_defects_and_good_parts_are_judged(self, judge):
        for seed in range(200, 220):
            assert judge.judge(part(seed), "a").verdict != "no verdict"
        for seed in range(220, 230):
            assert judge.judge(part(seed, "scratch"), "a").verdict != "no verdict"

    def test_a_set_of_many_shapes_has_no_wrong_one(self):
        shapes = [(96, 96), (96, 64), (64, 96)]
        parts = [part(i)[: shapes[i % 3][0], : shapes[i % 3][1]] for i in range(12)]
        with pytest.warns(UserWarning, match="other proportions"):
            detector = Detector(**SMALL).fit(parts, groups="each")
        assert Judge(detector).judge(part(50)[:64], "a").verdict != "no verdict"

    def test_of_another_shape_than_the_region(self, tmp_path):
        detector = Detector(**SMALL, roi=(0.1, 0.1, 0.9, 0.9)).fit([part(i) for i in range(8)], groups="each")
        assert Judge(detector).judge(part(50)[:64], "a").verdict == "no verdict"


class TestStream:
    def test_in_order_one_each(self, detector):
        frames = [part(100), None, part(101, "color"), np.zeros((96, 96, 3), np.uint8)]
        found = list(detector.stream(iter(frames)))
        assert [one.id for one in found] == [f"frame_{i:06d}" for i in range(4)]
        assert [one.verdict == "no verdict" for one in found] == [False, True, False, True]

    def test_pictures_are_taken_one_at_a_time(self, detector):
        taken = []

        def camera():
            for i in range(3):
                taken.append(i)
                yield part(100 + i)

        stream = detector.stream(camera())
        assert taken == []
        next(stream)
        assert taken == [0]

    def test_what_is_asked_for_wrongly_is_said_at_once(self, detector):
        with pytest.raises(ValueError, match="channels"):
            detector.stream([], channels="grey")
        with pytest.raises(RuntimeError, match="not fitted yet"):
            Detector(**SMALL).stream([])


class TestDigest:
    def test_is_that_of_the_model_wherever_it_is(self, detector, tmp_path):
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert loaded.digest == detector.digest
        assert len(detector.digest) == 64

    def test_is_another_for_another_threshold(self, detector):
        other = detector.at_rate(0.3)
        assert other.digest != detector.digest
        assert Judge(other).judge(part(100), "a").model == other.digest


class TestSight:
    def test_survives_a_save(self, detector, tmp_path):
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert loaded.fitted_.sight == detector.fitted_.sight

    def test_of_nothing(self):
        assert Sight.learn([]) is None

    @pytest.mark.parametrize(
        "values", [{}, {"brightest": 1.0}, dict.fromkeys(("brightest", "saturated", "contrast"), 1.0)]
    )
    def test_what_is_none(self, values):
        with pytest.raises(ValueError, match="no limits"):
            Sight.read(values)

    def test_large_pictures_are_looked_at_small(self):
        rng = np.random.default_rng(0)
        sight = Sight.learn([part(i, side=512) for i in range(3)])
        assert sight.fault(part(9, side=512)) is None
        assert "black" in sight.fault(rng.integers(0, 5, (512, 512, 3), dtype=np.uint8))
