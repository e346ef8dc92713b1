"""A fixture: parts shifted and turned are laid as in the template, and results told where the picture has them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from PIL import Image, ImageDraw
from told import but_for_the_time

pytest.importorskip("skimage", reason="scikit-image, the extra [fixture], is not installed")

from scipy import ndimage

from anomalib_lite import Detector
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images import open_source
from anomalib_lite.images.fixture import Fixture, Pose, RegisteredSource, make_fixture

SIDE = 96


def bracket(turn=0.0, down=0.0, right=0.0, *, spot=None, seed=0, side=SIDE):
    """An angled bracket with two holes on a dark ground, turned and shifted; a spot lies on the part."""
    rng = np.random.default_rng(seed)
    large = 4 * side
    picture = Image.new("L", (large, large), 40)
    draw = ImageDraw.Draw(picture)
    unit = large / 12
    draw.polygon([(x * unit, y * unit) for x, y in ((3, 3), (9, 3), (9, 5), (5, 5), (5, 9), (3, 9))], fill=170)
    for x, y in ((8, 4), (4, 8)):
        draw.ellipse([(x - 0.5) * unit, (y - 0.5) * unit, (x + 0.5) * unit, (y + 0.5) * unit], fill=40)
    if spot is not None:
        y, x = (place * 12 * unit for place in spot)
        draw.ellipse([x - 0.45 * unit, y - 0.45 * unit, x + 0.45 * unit, y + 0.45 * unit], fill=240)
    picture = picture.rotate(turn, Image.Resampling.BILINEAR, fillcolor=40, translate=(right * large, down * large))
    grey = np.asarray(picture.resize((side, side), Image.Resampling.BOX), dtype=float) + rng.normal(0, 2, (side, side))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def lying_about(n, turn, seed=0):
    rng = np.random.default_rng(seed)
    return [bracket(rng.uniform(-turn, turn), *rng.uniform(-0.06, 0.06, 2), seed=seed * 1000 + i) for i in range(n)]


class TestPose:
    @pytest.mark.parametrize(("turn", "down", "right"), [(0, 0.05, -0.08), (20, 0, 0), (-33, 0.04, 0.03), (0, 0, 0)])
    def test_a_known_pose_is_found(self, turn, down, right):
        fixture = Fixture(_template(bracket()), 45.0, 0.0)
        pose = fixture.pose(bracket(turn, down, right, seed=1))
        assert abs(pose.turn - turn) <= 1
        assert pose.down == pytest.approx(down, abs=0.012)
        assert pose.right == pytest.approx(right, abs=0.012)
        laid = pose.applied(bracket(turn, down, right, seed=1)).astype(float)
        inner = slice(12, -12)
        before = np.abs(bracket(turn, down, right, seed=1).astype(float) - bracket())[inner, inner].mean()
        assert np.abs(laid - bracket())[inner, inner].mean() < max(5, 0.5 * before)

    def test_what_cannot_be_registered_is_left_as_it_is(self):
        fixture = Fixture(_template(bracket()), 0.0, 0.6)
        for pixels in (np.full((SIDE, SIDE, 3), 90, np.uint8), np.zeros((SIDE, 2 * SIDE, 3), np.uint8)):
            pose = fixture.pose(pixels)
            assert not pose.found
            assert (pose.turn, pose.down, pose.right) == (0, 0, 0)
            assert pose.applied(pixels) is pixels

    def test_maps_and_boxes_come_back_to_where_the_picture_has_them(self):
        pose = Pose(25.0, 0.05, -0.04)
        picture = np.zeros((90, 120, 3), np.uint8)
        picture[50:56, 70:78] = 255
        laid = pose.applied(picture)
        rows, columns = np.nonzero(laid[..., 0] > 127)
        back = pose.undone(laid[..., 0].astype(np.float32))
        assert np.allclose(ndimage.center_of_mass(back), (52.5, 73.5), atol=0.3)
        left, top, right, bottom = pose.box_undone(
            (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), (90, 120)
        )
        assert left <= 70
        assert top <= 50
        assert right >= 78
        assert bottom >= 56
        assert right - left < 20
        assert bottom - top < 20
        assert Pose().box_undone((3, 4, 10, 12), (90, 120)) == (3, 4, 10, 12)

    def test_a_box_stays_in_its_picture(self):
        left, top, right, bottom = Pose(0, 0.5, 0.9).box_undone((80, 70, 90, 80), (90, 120))
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 90


def _template(pixels):
    return np.asarray(Image.fromarray(pixels).resize((128, 128), Image.Resampling.BILINEAR))[..., 0]


class TestMaking:
    def test_good_pictures_are_all_found(self):
        source = open_source(lying_about(12, 30))
        fixture = make_fixture(source, 40, (SIDE, SIDE))
        registered = RegisteredSource(source, fixture)
        for i in range(len(source)):
            registered.read(i)
        assert all(pose.found for pose in registered.poses.values())
        assert min(pose.agreement for pose in registered.poses.values()) > 0.6

    def test_pictures_that_show_nothing_to_hold_on_to_are_said(self):
        rng = np.random.default_rng(0)
        noise = [rng.integers(90, 110, (64, 64, 3), dtype=np.uint8) for _ in range(8)]
        with pytest.warns(UserWarning, match="too little to hold on to"):
            make_fixture(open_source(noise), 0, (64, 64))

    def test_copies(self):
        fixture = Fixture(_template(bracket()), 45.0, 0.2)
        for other in (copy.deepcopy(fixture), pickle.loads(pickle.dumps(fixture))):
            assert other.pose(bracket(10)) == fixture.pose(bracket(10))


# In the template's own frame; the region of interest is the bracket's upper arm.
ARM = {"boxes": [[0.24, 0.24, 0.76, 0.42]]}


@pytest.fixture(scope="module")
def detector():
    parts = [bracket(seed=99), *lying_about(24, 30)]
    return Detector(image_size=SIDE, fixture=40, false_alarm_rate=0.1).fit(parts, groups="each")


class TestDetector:
    def test_a_defect_is_shown_where_the_picture_has_it(self, detector):
        spoilt = bracket(28, 0.05, -0.04, spot=(4 / 12, 6.3 / 12), seed=5)
        clean = bracket(28, 0.05, -0.04, seed=5)
        difference = np.abs(spoilt.astype(float) - clean).mean(axis=2)
        scores = detector.score([spoilt, clean])
        assert scores.alarms.tolist() == [True, False]
        there = ndimage.center_of_mass(difference > 30)
        found = np.unravel_index(scores.anomaly_map(0).argmax(), (SIDE, SIDE))
        assert np.hypot(found[0] - there[0], found[1] - there[1]) < 8
        left, top, right, bottom = scores.nearest[0].box
        assert left - 8 <= there[1] <= right + 8
        assert top - 8 <= there[0] <= bottom + 8
        box = scores.regions(0)[0].box
        assert box[0] - 2 <= there[1] <= box[2] + 2
        assert box[1] - 2 <= there[0] <= box[3] + 2

    def test_what_cannot_be_registered_alarms_and_is_said(self, detector):
        other = np.full((SIDE, SIDE, 3), 40, np.uint8)
        scores = detector.score([bracket(seed=7), other])
        assert scores.registered.tolist() == [True, False]
        assert scores.alarms[1]
        assert scores.verdicts[1] == "alarm"
        assert "cannot be registered" in scores.notes[scores.ids[1]]
        assert [entry["registered"] for entry in scores.to_dict()["images"]] == [True, False]

    def test_saved_and_loaded(self, detector, tmp_path):
        spoilt = [bracket(28, 0.05, -0.04, spot=(4 / 12, 6.3 / 12)), np.full((SIDE, SIDE, 3), 40, np.uint8)]
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        before, after = detector.score(spoilt), loaded.score(spoilt)
        assert but_for_the_time(before) == but_for_the_time(after)
        assert np.array_equal(before.anomaly_map(0), after.anomaly_map(0))

    def test_a_file_with_another_template_is_damaged(self, detector, tmp_path):
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file

        path = detector.save(tmp_path / "model.safetensors")
        arrays = load_file(path)
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        for name, value in (
            ("fixture.template", arrays["fixture.template"][:4]),
            ("fixture.template", arrays["fixture.template"].astype(np.float32)),
            ("train.poses", arrays["train.poses"][:-1]),
            ("train.poses", np.full_like(arrays["train.poses"], np.nan)),
        ):
            save_file({**arrays, name: np.ascontiguousarray(value)}, path, metadata)
            with pytest.raises(ModelFileError, match="is damaged"):
                Detector.load(path)

    def test_a_region_of_interest_stays_on_the_part(self):
        """The other arm is outside, wherever the part lies: a spot on it moves no score beyond rounding."""
        parts = [bracket(seed=99), *lying_about(12, 25)]
        detector = Detector(image_size=SIDE, fixture=30, roi=ARM, false_alarm_rate=0.1).fit(parts, groups="each")
        pose = (20, 0.03, 0.03)
        clean, inside, outside = (
            bracket(*pose, spot=spot, seed=5) for spot in (None, (4 / 12, 6.3 / 12), (7 / 12, 4 / 12))
        )
        scores = detector.score([clean, inside, outside])
        assert scores.alarms.tolist() == [False, True, False]
        assert scores.scores[2] < scores.scores[0] + 0.5 * (scores.scores[1] - scores.scores[0])

    @pytest.mark.parametrize("fixture", [-1, 181, "turn", True, float("nan")])
    def test_what_is_no_angle(self, fixture):
        with pytest.raises(ValueError, match="degrees that parts may be turned by"):
            Detector(fixture=fixture)

    def test_drawn_over_the_picture(self, detector, tmp_path):
        spoilt = bracket(28, 0.05, -0.04, spot=(4 / 12, 6.3 / 12))
        scores = detector.score([spoilt])
        (path,) = scores.save_overlays(tmp_path / "overlays", [spoilt])
        changed = np.abs(np.asarray(Image.open(path).convert("RGB"), dtype=float) - spoilt).mean(axis=2)
        there = np.unravel_index(scores.anomaly_map(0).argmax(), (SIDE, SIDE))
        assert changed[there] > 30
        assert changed[there] > 5 * changed.mean()
