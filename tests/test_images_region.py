"""Region of interest: what lies outside is neither learnt from, scored, calibrated nor painted."""

import json

import numpy as np
import pytest
from PIL import Image

from anomalib_lite import Detector
from anomalib_lite.files import model_file
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images import open_source
from anomalib_lite.images.foreground import estimate_foreground
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.region import Region, make_region

SMALL = {"image_size": 96, "dtype": "float32", "workers": 0, "bank_size": 400}
SIZE = (96, 144)
BOX = (24, 16, 120, 80)  # left, top, right, bottom


def picture(seed, ground=30, defect_at=None):
    """A bright brushed part in the box, before a ground."""
    rng = np.random.default_rng(seed)
    left, top, right, bottom = BOX
    rows = np.full(SIZE, float(ground)) + 2 * rng.normal(size=SIZE)
    rows[top:bottom, left:right] = 160 + 10 * rng.normal(size=(bottom - top, 1))
    rows += 3 * rng.normal(size=SIZE)
    if defect_at is not None:
        y, x = defect_at
        rows[y - 4 : y + 4, x - 4 : x + 4] -= 130
    return np.clip(np.repeat(rows[..., None], 3, axis=2), 0, 255).astype(np.uint8)


def outside():
    mask = np.ones(SIZE, dtype=bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = False
    return mask


@pytest.fixture(scope="module")
def detector():
    return Detector(roi=BOX, **SMALL).fit([picture(seed) for seed in range(12)])


class TestShapes:
    @pytest.mark.parametrize(
        "roi",
        [
            BOX,
            list(BOX),
            [BOX],
            {"box": BOX},
            {"boxes": [BOX]},
            [(24, 16), (120, 16), (120, 80), (24, 80)],
            {"polygons": [[(24, 16), (120, 16), (120, 80), (24, 80)]]},
            (24 / 144, 16 / 96, 120 / 144, 80 / 96),
            ~outside(),
            np.where(outside(), 0, 255).astype(np.uint8),
            (~outside()).repeat(2, axis=0).repeat(2, axis=1),
        ],
    )
    def test_of_many_kinds(self, roi):
        assert np.array_equal(make_region(roi, None, SIZE).mask, ~outside())

    @pytest.mark.parametrize("suffix", ["png", "json"])
    def test_in_files(self, tmp_path, suffix):
        path = tmp_path / f"roi.{suffix}"
        if suffix == "png":
            Image.fromarray(np.where(outside(), 0, 255).astype(np.uint8)).save(path)
        else:
            path.write_text(json.dumps({"boxes": [BOX]}))
        assert np.array_equal(make_region(path, None, SIZE).mask, ~outside())
        assert np.array_equal(make_region(None, str(path), SIZE).mask, outside())

    def test_both(self):
        found = make_region(BOX, [(30, 20, 40, 30), (50, 20, 60, 30)], SIZE).mask
        assert found.sum() == 96 * 64 - 200
        assert not found[25, 35]
        assert not found[25, 55]

    def test_a_triangle(self):
        found = make_region([(0, 0), (1, 0), (0, 1)], None, (100, 100)).mask
        assert 0.48 < found.mean() < 0.52
        assert found[10, 10]
        assert not found[90, 90]

    @pytest.mark.parametrize(
        ("roi", "message"),
        [
            ((24, 16, 200, 80), r"roi: \(200, 16\) lies outside pictures of 144 × 96 pixels"),
            ([(-5, 0), (10, 0), (10, 10)], "lies outside"),
            ((24, 16, 24, 80), "is empty"),
            ((80, 16, 24, 80), "is empty"),
            (np.zeros(SIZE, bool), "roi is empty"),
            (np.zeros(SIZE), r"a mask is bool \(H, W\), not float64"),
            (np.ones((96, 96), bool), r"roi has 96 × 96 pixels, and the pictures 96 × 144"),
            ([(1, 2), (3, 4)], "is neither a box"),
            ((1, 2, 3), "is neither a box"),
            ({"circle": [1, 2, 3]}, r"\['circle'\] in it"),
            ({}, "nothing in it"),
            ([], "give a mask"),
            (5, "give a mask"),
            ([(0, 0, float("nan"), 1)], "roi"),
            (("a", "b", "c", "d"), "roi"),
        ],
    )
    def test_that_are_none(self, roi, message):
        with pytest.raises(ValueError, match=message):
            make_region(roi, None, SIZE)

    def test_everything_ignored(self):
        with pytest.raises(ValueError, match="ignore leaves nothing to look at"):
            make_region(None, (0, 0, 1, 1), SIZE)

    def test_files_that_are_none(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            make_region(tmp_path / "roi.png", None, SIZE)
        (tmp_path / "roi.png").write_bytes(b"broken")
        with pytest.raises(ValueError, match=r"roi: roi\.png: not an image"):
            make_region(tmp_path / "roi.png", None, SIZE)
        (tmp_path / "roi.json").write_text("{")
        with pytest.raises(ValueError, match=r"roi\.json is no JSON"):
            make_region(tmp_path / "roi.json", None, SIZE)


class TestRegion:
    @pytest.mark.parametrize("size", [SIZE, (48, 72), (64, 96), (100, 150)])
    def test_nothing_of_the_outside_reaches_a_pixel(self, size):
        """Also where pictures are made smaller, and a pixel is made of several."""
        frame = Frame(size, region=make_region(BOX, None, SIZE))
        changed = picture(0)
        changed[outside()] = np.random.default_rng(1).integers(0, 256, (outside().sum(), 3))
        assert np.array_equal(frame.place(picture(0)), frame.place(changed))

    def test_survives_a_file(self):
        region = make_region(BOX, [(30, 20, 40, 30)], SIZE)
        again = Region.read(json.loads(json.dumps(region.to_dict())), region.to_array())
        assert again == region
        assert np.array_equal(again.mask, region.mask)

    @pytest.mark.parametrize("change", ["size", "pixels", "empty", "large"])
    def test_that_was_tampered_with(self, change):
        region = make_region(BOX, None, SIZE)
        values, packed = region.to_dict(), region.to_array().copy()
        if change == "size":
            values["size"] = [144, 96]
        elif change == "large":
            values["size"] = [1 << 20, 1 << 20]
        else:
            packed[0 if change == "pixels" else slice(None)] = 255 if change == "pixels" else 0
        with pytest.raises(ValueError, match="region"):
            Region.read(values, packed)


class TestDetector:
    def test_nothing_outside_moves_a_score(self, detector):
        for change in (0, 255, "noise"):
            pictures = [picture(20), picture(21, defect_at=(40, 60))]
            changed = [one.copy() for one in pictures]
            for one in changed:
                noise = np.random.default_rng(0).integers(0, 256, (outside().sum(), 3))
                one[outside()] = noise if change == "noise" else change
            expected, found = detector.score(pictures), detector.score(changed)
            assert found.scores == pytest.approx(expected.scores, rel=1e-6)
            assert np.array_equal(found.patch_scores, expected.patch_scores, equal_nan=True)

    def test_without_it_the_ground_alarms(self, detector):
        plain = Detector(**SMALL).fit([picture(seed) for seed in range(12)])
        lit = [picture(seed, ground=120) for seed in range(30, 36)]
        assert plain.score(lit).alarms.all()
        assert detector.score(lit).alarms.mean() < 0.5

    def test_a_defect_inside_is_found_and_one_outside_is_not(self, detector):
        scores = detector.score([picture(40, defect_at=(40, 60)), picture(41, defect_at=(8, 8))])
        assert scores.alarms.tolist() == [True, False]
        found = scores.anomaly_map(0)
        y, x = np.unravel_index(found.argmax(), found.shape)
        assert np.hypot(y - 40, x - 60) < 10
        assert (found[outside()] == 0).all()

    def test_nothing_outside_is_in_the_bank(self, detector):
        grid = detector.fitted_.grid
        rows, columns = np.divmod(detector.fitted_.origins[:, 1], grid[1])
        assert rows.min() >= 2
        assert rows.max() <= 9
        assert columns.min() >= 3
        assert columns.max() <= 14

    def test_what_does_not_matter_is_painted_dark(self, detector, tmp_path):
        bright = picture(42)
        bright[outside()] = 200
        (path,) = detector.score([bright]).save_overlays(tmp_path / "overlays", [bright])
        painted = np.asarray(Image.open(path))
        assert painted[4, 4].tolist() == [80, 80, 80]
        assert painted[50, 70].mean() > 100
        assert (bright[outside()] == 200).all()  # what was given stays as it was

    def test_ignored_areas(self):
        training = [picture(seed) for seed in range(12)]
        detector = Detector(ignore=[(50, 30, 80, 50)], **SMALL).fit(training)
        scores = detector.score([picture(50, defect_at=(40, 65)), picture(51, defect_at=(60, 100))])
        assert scores.alarms.tolist() == [False, True]

    def test_a_picture_of_another_shape_is_refused(self, detector):
        scores = detector.score([picture(60), picture(61)[:, :96]])
        assert len(scores) == 1
        assert "image_0001: has 96 × 96 pixels (height × width), other proportions than the 96 × 144" in (
            scores.unreadable[0].reason
        )
        same = np.asarray(Image.fromarray(picture(62)).resize((288, 192)))
        assert len(detector.score([same])) == 1

    def test_comes_back_from_a_file_and_is_fitted_again_without_it(self, tmp_path):
        mask = tmp_path / "roi.png"
        Image.fromarray(np.where(outside(), 0, 255).astype(np.uint8)).save(mask)
        first = Detector(roi=mask, **SMALL).fit([picture(seed) for seed in range(12)])
        path = first.save(tmp_path / "model.safetensors")
        mask.unlink()
        again = Detector.load(path)
        pictures = [picture(70), picture(71, defect_at=(40, 60))]
        assert np.array_equal(again.score(pictures).scores, first.score(pictures).scores)
        assert again.config()["frame"]["region"]["sha256"] == first.fitted_.frame.region.digest
        refitted = again.unfitted().fit([picture(seed) for seed in range(12)])
        assert refitted.fitted_.frame.region == first.fitted_.frame.region
        assert np.array_equal(refitted.score(pictures).scores, first.score(pictures).scores)

    def test_a_mask_in_memory_too(self, tmp_path):
        first = Detector(roi=~outside(), **SMALL).fit([picture(seed) for seed in range(6)])
        again = Detector.load(first.save(tmp_path / "model.safetensors"))
        assert again.fitted_.frame.region == first.fitted_.frame.region
        assert again.parameters()["roi"] == "<mask 96 × 144>"

    def test_a_tampered_file(self, detector, tmp_path):
        path = detector.save(tmp_path / "model.safetensors")
        arrays, values = model_file.load_file(path)
        arrays["frame.region"] = arrays["frame.region"][:-1].copy()
        model_file.save_file(path, arrays, values)
        with pytest.raises(ModelFileError, match="damaged"):
            Detector.load(path)

    def test_a_region_smaller_than_a_patch(self):
        with pytest.raises(ValueError, match="covers half of none of the 12 × 18 patches"):
            Detector(roi=(41, 41, 43, 43), **SMALL).fit([picture(seed) for seed in range(3)])

    @pytest.mark.parametrize("parameters", [{"tiles": (1, 2)}, {"level": "global"}, {"scorer": "kmeans"}])
    def test_with_others(self, parameters):
        detector = Detector(roi=BOX, n_clusters=20, **{**SMALL, **parameters}).fit([picture(seed) for seed in range(8)])
        dark, bright = (picture(80, ground=ground) for ground in (30, 30))
        bright[outside()] = 250
        assert detector.score([bright]).scores == pytest.approx(detector.score([dark]).scores, rel=1e-6)

    def test_training_pictures_of_another_shape_are_listed(self):
        pictures = [picture(seed) for seed in range(8)]
        pictures[3] = pictures[3][:, :96]
        with pytest.warns(UserWarning, match="unreadable, since the region of interest is not drawn for them"):
            detector = Detector(roi=BOX, **SMALL).fit(pictures)
        assert detector.n_train_ == 7
        assert [entry.index for entry in detector.unreadable_] == [3]


class TestAuto:
    def test_finds_the_part(self):
        found = estimate_foreground(open_source([picture(seed) for seed in range(6)]), SIZE, workers=0)
        assert found[BOX[1] : BOX[3], BOX[0] : BOX[2]].all()
        assert found.mean() < 1.35 * (~outside()).mean()

    def test_a_hole_in_the_part_belongs_to_it(self):
        pictures = [picture(seed) for seed in range(6)]
        for one in pictures:
            one[40:56, 60:80] = 30
        assert estimate_foreground(open_source(pictures), SIZE, workers=0)[48, 70]

    def test_a_surface_has_no_ground(self):
        surfaces = [np.random.default_rng(seed).integers(90, 160, (96, 144, 3), dtype=np.uint8) for seed in range(4)]
        with pytest.raises(ValueError, match="no even ground is found"):
            Detector(roi="auto", **SMALL).fit(surfaces)

    def test_nothing_that_can_be_read(self):
        with pytest.raises(ValueError, match="none of the training images looked at can be read"):
            estimate_foreground(open_source([b"broken"]), SIZE, workers=0)

    def test_in_a_fit(self, tmp_path):
        detector = Detector(roi="auto", **SMALL).fit([picture(seed) for seed in range(12)])
        assert 0.4 < detector.fitted_.frame.region.share < 0.65
        again = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert again.fitted_.frame.region == detector.fitted_.frame.region

    def test_is_shown_for_approval(self, tmp_path):
        from anomalib_lite import diagnose

        pictures = [picture(seed) for seed in range(12)]
        found = diagnose(pictures, roi="auto", **SMALL)
        assert found.to_dict()["region_share"] == found.region.share
        assert "% of every image is looked at; see in the figure" in found.advice()
        assert tmp_path / "region.png" in found.save_figures(tmp_path, pictures)
