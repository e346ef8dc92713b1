"""Regions: defects with an outline, at a threshold from good images alone."""

import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from anomalib_lite import Detector
from anomalib_lite.locating import regions as regions_room
from anomalib_lite.locating.regions import find_regions

SMALL = {"image_size": 128, "dtype": "float32", "workers": 0, "bank_size": 800, "false_alarm_rate": 0.1}


TWO = [(20, 20, 44, 44), (140, 80, 172, 112)]


def bump(size=(64, 96), at=(30, 40), height=5.0, sigma=4.0, ground=1.0):
    y, x = (np.arange(length) - place for length, place in zip(size, at, strict=True))
    return (ground + height * np.exp(-(y[:, None] ** 2 + x**2) / (2 * sigma**2))).astype(np.float32)


def found(anomaly_map, threshold=2.0, **more):
    return find_regions(anomaly_map, threshold, **{"usual": 1.0, "patch": (8.0, 8.0), **more})


def part(seed, defects=(), size=(128, 192)):
    rng = np.random.default_rng(seed)
    pixels = 150 + 8 * rng.normal(size=(size[0], 1)) + 3 * rng.normal(size=size)
    for left, top, right, bottom in defects:
        pixels[top:bottom, left:right] -= 120
    return np.clip(np.repeat(pixels[..., None], 3, axis=2), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector():
    return Detector(pixel_size=0.5, **SMALL).fit([part(seed) for seed in range(20)])


@pytest.fixture(scope="module")
def scores(detector):
    return detector.score([part(120), part(101, [(30, 40, 54, 64)]), part(102, TWO)])


class TestFinding:
    def test_a_bump_is_measured_at_half_its_height(self):
        (region,), labels = found(bump(sigma=4.0))
        radius = 4.0 * np.sqrt(2 * np.log(2))
        assert region.area == pytest.approx(np.pi * radius**2, rel=0.05)
        assert region.peak == pytest.approx(6.0)
        assert region.peak_at == (40.5, 30.5)
        assert labels.max() == 1
        assert (labels > 0).sum() == region.area
        left, top, right, bottom = region.box
        assert right - left == pytest.approx(2 * radius, abs=1.5)
        assert bottom - top == pytest.approx(2 * radius, abs=1.5)
        assert left < 40.5 < right

    def test_the_height_of_the_threshold_does_not_change_its_size(self):
        (low,), _ = found(bump(), 2.0)
        (high,), _ = found(bump(), 5.5)
        assert low.area == high.area

    def test_what_is_nowhere_above_the_threshold_is_none(self):
        regions, labels = found(bump(), 6.5)
        assert regions == []
        assert not labels.any()

    def test_the_outline_goes_around_it(self):
        (region,), labels = found(bump())
        (ring,) = region.outline
        picture = Image.new("L", (96, 64))
        ImageDraw.Draw(picture).polygon([(x - 0.5, y - 0.5) for x, y in ring], fill=1)
        drawn = np.asarray(picture) > 0
        both = (drawn & (labels > 0)).sum() / (drawn | (labels > 0)).sum()
        assert both > 0.75
        assert ring[0] == ring[-1]

    def test_a_ring_has_a_hole(self):
        y, x = np.mgrid[:64, :64] - 32
        away = np.hypot(y, x)
        (region,), _ = found(np.where(abs(away - 20) < 3, 6.0, 1.0).astype(np.float32))
        assert len(region.outline) == 2
        assert len(region.outline[0]) > len(region.outline[1])

    def test_the_highest_first_and_no_more_than_wanted(self):
        two = np.maximum(bump(height=3.0, at=(20, 20)), bump(height=5.0, at=(40, 70)))
        regions, labels = found(two)
        assert [region.peak_at[0] for region in regions] == [70.5, 20.5]
        assert labels[40, 70] == 1
        assert labels[20, 20] == 2
        assert len(found(two, max_regions=1)[0]) == 1
        assert found(two, max_regions=0)[0] == []

    @pytest.mark.parametrize(("height", "away", "count"), [(2.0, 60, 1), (2.0, 120, 2), (4.0, 60, 2)])
    def test_a_weak_one_beside_a_strong_one_is_its_halo(self, height, away, count):
        both = np.maximum(bump((64, 200), (32, 30), 10.0), bump((64, 200), (32, 30 + away), height))
        assert len(found(both)[0]) == count

    def test_small_ones_are_left_out(self):
        two = np.maximum(bump(at=(20, 20), sigma=2.0), bump(at=(40, 70), sigma=5.0))
        assert len(found(two)[0]) == 2
        assert len(found(two, min_area=50)[0]) == 1
        assert len(found(two, min_area=50, pixel_size=2.0)[0]) == 2  # 4 square millimetres for each pixel

    def test_lengths_are_those_of_the_image(self):
        (region,), labels = found(bump(), size=(640, 960), pixel_size=0.1)
        assert labels.shape == (64, 96)
        assert region.peak_at == (405.0, 305.0)
        assert region.area == pytest.approx(100 * (labels > 0).sum())
        assert region.area_mm2 == pytest.approx(region.area * 0.01)


class TestByNumpyAlone:
    """What the runner without torch, scipy and matplotlib has to do as well, against those who do it best."""

    @pytest.mark.parametrize("seed", range(8))
    def test_is_what_scipy_and_matplotlib_find(self, seed):
        contourpy = pytest.importorskip("contourpy", reason="comes with matplotlib")
        ndimage = pytest.importorskip("scipy.ndimage")
        rng = np.random.default_rng(seed)
        size = rng.integers(1, 40, 2)
        values = ndimage.gaussian_filter(rng.normal(size=size), rng.choice([0.3, 1.0, 2.0])).astype(np.float32)
        for reach in (0, 1, 5, 60):
            for axis, window in enumerate([(2 * reach + 1, 1), (1, 2 * reach + 1)]):
                expected = ndimage.maximum_filter(values, window)
                np.testing.assert_array_equal(regions_room._highest(values, reach, axis), expected)
        mask = values > np.quantile(values, rng.uniform(0.1, 0.9))
        labels, boxes = regions_room._labelled(mask)
        expected, count = ndimage.label(mask)
        np.testing.assert_array_equal(labels, expected)
        assert boxes == ndimage.find_objects(expected)
        assert len(boxes) == count
        for number, box in enumerate(boxes, start=1):
            inside = labels[box] == number
            rings = regions_room._outline(inside, (0, 0), (1.0, 1.0))
            lines = contourpy.contour_generator(z=np.pad(inside, 1).astype(np.float32)).lines(0.5)
            assert sides(rings) == sides([line - 0.5 for line in lines])


def sides(rings):
    """The sides of closed rings, whatever corner they start from and whichever way they go."""
    corners = [[tuple(corner) for corner in np.round(ring, 1).tolist()] for ring in rings]
    assert all(ring[0] == ring[-1] for ring in corners)
    return {frozenset(pair) for ring in corners for pair in itertools.pairwise(ring)}


class TestScores:
    def test_name_what_is_there(self, scores):
        assert scores.regions(0) == []
        (region,) = scores.regions(1)
        left, top, right, bottom = region.box
        assert 30 - 20 < left <= 32
        assert 52 <= right < 54 + 20
        assert 40 - 20 < top <= 42
        assert 62 <= bottom < 64 + 20
        assert (left + right) / 2 == pytest.approx(42, abs=4)  # and half a patch beside it
        assert (top + bottom) / 2 == pytest.approx(52, abs=4)
        assert region.area_mm2 == pytest.approx(region.area / 4)
        assert len(scores.regions(2)) == 2

    def test_masks_are_the_regions(self, scores):
        mask = scores.defect_mask(2)
        assert mask.shape == (128, 192)
        assert mask.sum() == pytest.approx(sum(region.area for region in scores.regions(2)))
        assert not scores.defect_mask(0).any()
        assert scores.defect_mask(0).shape == (128, 192)

    def test_the_pixel_threshold_is_from_good_images_alone(self, detector):
        peaks = detector.fitted_.peaks
        assert peaks.n == 20
        assert detector.score([part(120)]).pixel_threshold == peaks.threshold
        assert detector.at_rate(0.3).score([part(120)]).pixel_threshold < peaks.threshold

    def test_the_promised_share_of_good_images_has_a_region(self, detector):
        alarmed = [bool(detector.score([part(seed)]).regions(0)) for seed in range(200, 280)]
        assert np.mean(alarmed) < 0.25  # 8 of 80 are expected, 15 are 1 % of what chance does

    def test_survive_a_file_and_a_recalibration(self, detector, scores, tmp_path):
        again = Detector.load(detector.save(tmp_path / "model.safetensors"))
        (found,) = again.score([part(101, [(30, 40, 54, 64)])]).regions(0)
        (expected,) = scores.regions(1)
        assert found.peak == pytest.approx(expected.peak, rel=1e-4)
        assert found.box == pytest.approx(expected.box, abs=1.5)
        assert again.fitted_.peaks.threshold == detector.fitted_.peaks.threshold
        fresh = detector.recalibrate([part(seed) for seed in range(300, 320)])
        assert fresh.fitted_.peaks.n == 20
        assert fresh.fitted_.peaks.exact
        assert len(fresh.score([part(101, [(30, 40, 54, 64)])]).regions(0)) == 1
        assert detector.recalibrate([part(seed) for seed in range(300, 310)], mode="extend").fitted_.peaks.n == 30

    def test_large_images_are_looked_at_smaller(self, detector, monkeypatch):
        from anomalib_lite import results

        scores = detector.score([part(101, [(30, 40, 54, 64)])])
        (expected,) = scores.regions(0)
        monkeypatch.setattr(results, "_MAP_PIXELS", 128 * 192 // 4)
        (found,) = scores.regions(0)
        assert found.area == pytest.approx(expected.area, rel=0.2)
        assert found.box == pytest.approx(expected.box, abs=3)
        assert scores.defect_mask(0).shape == (128, 192)

    @pytest.mark.parametrize("limits", [{"min_area": -1}, {"max_regions": -1}])
    def test_limits_that_are_none(self, scores, limits):
        with pytest.raises(ValueError, match="neither is negative"):
            scores.regions(1, **limits)

    def test_the_global_level_has_none(self, tmp_path):
        whole = Detector(level="global", **SMALL).fit([part(seed) for seed in range(6)]).score([part(9)])
        assert whole.pixel_threshold is None
        assert "regions" not in whole.to_dict()["images"][0]
        for write in (
            lambda: whole.regions(0),
            lambda: whole.regions_to_csv(tmp_path / "a.csv"),
            lambda: whole.to_coco(tmp_path / "a.json"),
            lambda: whole.save_masks(tmp_path / "masks"),
            lambda: whole.save_maps(tmp_path / "maps"),
        ):
            with pytest.raises(ValueError, match="level='global' scores whole images"):
                write()
        assert list(tmp_path.iterdir()) == []


class TestFiles:
    def test_csv_has_a_line_for_each(self, scores, tmp_path):
        with scores.regions_to_csv(tmp_path / "regions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == ["image_0001", "image_0002", "image_0002"]
        assert [row["region"] for row in rows] == ["1", "1", "2"]
        assert float(rows[0]["area"]) == scores.regions(1)[0].area
        assert float(rows[0]["area_mm2"]) == pytest.approx(scores.regions(1)[0].area / 4)

    def test_json_has_them_too(self, scores):
        told = json.loads(json.dumps(scores.to_dict(max_regions=1), allow_nan=False))
        assert told["pixel_threshold"] == scores.pixel_threshold
        assert [len(image["regions"]) for image in told["images"]] == [0, 1, 1]
        assert set(told["images"][1]["regions"][0]) == {
            *("box", "area", "area_mm2", "peak", "mean", "peak_at", "outline"),
        }

    def test_coco(self, scores, tmp_path):
        told = json.loads(scores.to_coco(tmp_path / "regions.json").read_text())
        assert [image["file_name"] for image in told["images"]] == scores.ids
        assert [(image["height"], image["width"]) for image in told["images"]] == [(128, 192)] * 3
        assert [annotation["image_id"] for annotation in told["annotations"]] == [2, 3, 3]
        assert len({annotation["id"] for annotation in told["annotations"]}) == 3
        first = told["annotations"][0]
        left, top, right, bottom = scores.regions(1)[0].box
        assert first["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.1)
        assert len(first["segmentation"][0]) >= 6
        assert told["categories"] == [{"id": 1, "name": "defect", "supercategory": "anomaly"}]

    def test_masks(self, scores, tmp_path):
        paths = scores.save_masks(tmp_path / "masks")
        for i, path in enumerate(paths):
            assert np.array_equal(np.asarray(Image.open(path)) == 255, scores.defect_mask(i))

    @pytest.mark.parametrize("kind", ["npy", "tiff", "png"])
    def test_maps(self, scores, tmp_path, kind):
        paths = scores.save_maps(tmp_path / "maps", kind)
        assert [path.suffix for path in paths] == [f".{kind}"] * 3
        expected = scores.anomaly_map(1)
        if kind == "npy":
            assert np.array_equal(np.load(paths[1]), expected)
        elif kind == "tiff":
            assert np.array_equal(np.asarray(Image.open(paths[1])), expected)
        else:
            (manifest,) = (tmp_path / "maps").glob(".*.json")
            step = json.loads(manifest.read_text())["value_of_a_step"]
            stored = np.asarray(Image.open(paths[1])).astype(np.float64) * step
            assert stored == pytest.approx(np.minimum(expected, 65535 * step), abs=step)

    def test_a_kind_of_map_that_is_none(self, scores, tmp_path):
        with pytest.raises(ValueError, match="choose one of npy, tiff, png"):
            scores.save_maps(tmp_path / "maps", "bmp")

    @pytest.mark.parametrize("write", ["save_masks", "save_maps"])
    def test_what_is_not_ours_is_not_overwritten(self, scores, tmp_path, write):
        (tmp_path / "image_0001.npy").write_bytes(b"mine")
        Image.new("L", (4, 4)).save(tmp_path / "image_0001.png")
        with pytest.raises(ValueError, match="was not written by us"):
            getattr(scores, write)(tmp_path)
        assert (tmp_path / "image_0001.npy").read_bytes() == b"mine"

    def test_masks_are_not_taken_for_parts(self, scores, tmp_path):
        from anomalib_lite.images import open_source

        scores.save_masks(tmp_path / "parts" / "masks")
        Image.fromarray(part(0)).save(tmp_path / "parts" / "a.png")
        assert open_source(tmp_path / "parts").ids == ["a.png"]

    def test_overlays_have_the_outline(self, scores, detector, tmp_path):
        pictures = [part(120), part(101, [(30, 40, 54, 64)]), part(102, TWO)]
        paths = scores.save_overlays(tmp_path / "overlays", pictures)
        line = [(np.asarray(Image.open(path)) == (120, 220, 255)).all(axis=2).sum() for path in paths]
        assert line[0] == 0
        assert line[1] > 40
        assert line[2] > 80

    def test_by_the_command_line(self, detector, tmp_path):
        from typer.testing import CliRunner

        from anomalib_lite.cli import app

        folder = tmp_path / "parts"
        folder.mkdir()
        Image.fromarray(part(101, [(30, 40, 54, 64)])).save(folder / "bad.png")
        model = detector.save(tmp_path / "model.safetensors")
        out = {name: tmp_path / name for name in ("regions.csv", "coco.json", "masks", "maps", "overlays")}
        command = [
            "score",
            str(model),
            str(folder),
            "--regions",
            str(out["regions.csv"]),
            "--coco",
            str(out["coco.json"]),
        ]
        command += ["--masks", str(out["masks"]), "--maps", str(out["maps"]), "--map-format", "tiff"]
        result = CliRunner().invoke(app, [*command, "--overlays", str(out["overlays"]), "--json", "--max-regions", "1"])
        assert result.exit_code == 0, result.output
        assert all(path.exists() for path in out.values())
        assert (out["maps"] / "bad.png.tiff").is_file()
        assert len(json.loads(result.stdout)["images"][0]["regions"]) == 1
        again = CliRunner().invoke(app, [*command, "--overlays", str(out["maps"])])
        assert "each need a folder of their own" in str(again.exception)
