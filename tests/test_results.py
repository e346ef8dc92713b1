import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sources import ListSource
from anomalib_lite.results import Nearest, Scores


def make_scores(ids=("good/a.png", "bad/b.png", "bad/c.png"), **changes):
    n = len(ids)
    fields = {
        "ids": list(ids),
        "scores": np.linspace(1.0, 3.0, n),
        "p_values": np.linspace(0.9, 0.01, n),
        "alarms": np.linspace(1.0, 3.0, n) > 2.5,
        "threshold": 2.5,
        "false_alarm_rate": 0.05,
        "guarantee_met": True,
        "image_sizes": [(40, 60)] * n,
        "patch_scores": np.random.default_rng(0).random((n, 4, 6)).astype(np.float32),
        "map_scale": (1.25, 5.0),
        "unreadable": [UnreadableImage(3, "bad/d.png", "d.png: empty (0 bytes)")],
    }
    return Scores(**{**fields, **changes})


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestCSV:
    def test_has_a_line_per_image(self, tmp_path):
        rows = read_csv(make_scores().to_csv(tmp_path / "scores.csv"))
        assert list(rows[0]) == ["id", "score", "p_value", "alarm", "unreadable"]
        assert [row["id"] for row in rows] == ["good/a.png", "bad/b.png", "bad/c.png", "bad/d.png"]
        assert [float(row["score"]) for row in rows[:3]] == [1.0, 2.0, 3.0]
        assert [float(row["p_value"]) for row in rows[:3]] == pytest.approx([0.9, 0.455, 0.01])
        assert [row["alarm"] for row in rows[:3]] == ["0", "0", "1"]
        assert rows[3] == {
            "id": "bad/d.png",
            "score": "",
            "p_value": "",
            "alarm": "",
            "unreadable": "d.png: empty (0 bytes)",
        }

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
    def test_does_not_run_in_a_spreadsheet(self, start, tmp_path):
        formula = f"{start}cmd|' /C calc'!A0.png"
        scores = make_scores([formula], unreadable=[UnreadableImage(1, formula, formula)])
        for row in read_csv(scores.to_csv(tmp_path / "scores.csv")):
            assert row["id"] == "'" + formula
            assert row["unreadable"] in ("", "'" + formula)

    def test_quotes_commas_and_lines(self, tmp_path):
        name = 'a,"b"\nc.png'
        assert read_csv(make_scores([name]).to_csv(tmp_path / "scores.csv"))[0]["id"] == name

    def test_takes_names_that_are_no_text(self, tmp_path):
        name = b"part_\xff.png".decode(errors="surrogateescape")  # as os.walk gives it
        assert read_csv(make_scores([name]).to_csv(tmp_path / "scores.csv"))[0]["id"] == r"part_\udcff.png"

    def test_without_a_readable_image(self, tmp_path):
        empty = np.zeros(0)
        scores = make_scores([], scores=empty, p_values=empty, alarms=empty.astype(bool))
        assert [row["id"] for row in read_csv(scores.to_csv(tmp_path / "scores.csv"))] == ["bad/d.png"]


class TestDict:
    def test_is_complete_and_survives_json(self):
        nearest = [Nearest((0, 0, 10, 10), f"{i}.png", (10, 10, 20, 20), 0.5 + i) for i in range(3)]
        result = json.loads(json.dumps(make_scores(nearest=nearest).to_dict(), allow_nan=False))
        assert {key: result[key] for key in ("threshold", "false_alarm_rate", "guarantee_met")} == {
            "threshold": 2.5,
            "false_alarm_rate": 0.05,
            "guarantee_met": True,
        }
        assert result["images"][2] == {
            "id": "bad/c.png",
            "score": 3.0,
            "p_value": 0.01,
            "alarm": True,
            "nearest": {"box": [0, 0, 10, 10], "train_id": "2.png", "train_box": [10, 10, 20, 20], "distance": 2.5},
        }
        assert result["unreadable"] == [{"index": 3, "id": "bad/d.png", "reason": "d.png: empty (0 bytes)"}]
        # What is left out are the maps and what only they need.
        told = {"threshold", "false_alarm_rate", "guarantee_met", "unreadable"}
        per_image = {"ids", "scores", "p_values", "alarms", "nearest"}
        maps = {"image_sizes", "patch_scores", "map_scale"}
        assert {field.name for field in dataclasses.fields(Scores)} == told | per_image | maps

    def test_other_scorers_have_no_nearest(self):
        assert set(make_scores().to_dict()["images"][0]) == {"id", "score", "p_value", "alarm"}

    def test_length_is_the_number_of_readable_images(self):
        assert len(make_scores()) == 3

    def test_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make_scores().threshold = 0


class TestAnomalyMap:
    @pytest.mark.parametrize("size", [(48, 72), (200, 120), (41, 67), (256, 256)])
    def test_is_bilinear_and_smoothed(self, size):
        grid = np.random.default_rng(1).random((8, 10)).astype(np.float32)
        got = make_scores(["a"], image_sizes=[size], patch_scores=grid[None]).anomaly_map(0)
        resized = torch.nn.functional.interpolate(torch.from_numpy(grid)[None, None], size, mode="bilinear")[0, 0]
        sigma = (0.5 * size[0] / 8, 0.5 * size[1] / 10)
        expected = gaussian_filter(resized.numpy().astype(np.float64), sigma, truncate=8)
        border = tuple(slice(int(4 * s) + 1, -int(4 * s) - 1) for s in sigma)  # borders are padded otherwise
        assert got.shape == size
        assert got.dtype == np.float32
        assert got[border].size > 100
        assert got[border] == pytest.approx(expected[border], abs=2e-3)

    def test_stays_within_its_patches_and_keeps_a_constant(self):
        patches = make_scores().patch_scores
        anomaly_map = make_scores().anomaly_map(1)
        assert patches[1].min() <= anomaly_map.min() < anomaly_map.max() <= patches[1].max()
        flat = make_scores(["a"], patch_scores=np.full((1, 4, 6), 7.0, np.float32)).anomaly_map(0)
        assert flat == pytest.approx(np.full((40, 60), 7.0), rel=1e-5)

    def test_shows_a_patch_where_it_lies(self):
        patches = np.zeros((1, 4, 6), np.float32)
        patches[0, 1, 4] = 1
        anomaly_map = make_scores(["a"], patch_scores=patches).anomaly_map(0)
        rows, columns = np.nonzero(anomaly_map > 0.9 * anomaly_map.max())
        assert (rows.mean(), columns.mean()) == pytest.approx((14.5, 44.5), abs=0.1)  # middle of 10–20, 40–50

    def test_averages_when_the_image_is_smaller_than_the_grid(self):
        grid = np.indices((16, 16)).sum(axis=0) % 2  # picking would alias
        scores = make_scores(["a"], image_sizes=[(8, 4)], patch_scores=grid[None].astype(np.float32))
        assert scores.anomaly_map(0) == pytest.approx(np.full((8, 4), 0.5), abs=0.05)

    def test_many_sizes_do_not_pile_up(self):
        from anomalib_lite import results

        for side in range(20, 120):
            make_scores(["a"], image_sizes=[(side, side + 1)]).anomaly_map(0)
        assert len(results._RESIZING) <= 64

    def test_the_global_level_has_none(self, tmp_path):
        scores = make_scores(patch_scores=None)
        images = ListSource([np.zeros((40, 60, 3), np.uint8)] * 3, scores.ids)
        for use in (lambda: scores.anomaly_map(0), lambda: scores.save_overlays(tmp_path / "maps", images)):
            with pytest.raises(ValueError, match="level='global' scores whole images and has no anomaly maps"):
                use()


class TestOverlays:
    @staticmethod
    def save(folder, ids, **options):
        images = ListSource([np.full((40, 60, 3), 90, np.uint8)] * len(ids), list(ids))
        return make_scores(ids).save_overlays(folder, images, **options)

    def test_are_images_of_the_original_size(self, tmp_path):
        paths = self.save(tmp_path / "new" / "maps", ["good/a.png", "bad/b.png"])
        assert [path.name for path in paths] == ["good_a.png", "bad_b.png"]
        for path in paths:
            assert np.array(Image.open(path)).shape == (40, 60, 3)

    @pytest.mark.parametrize(
        "ids",
        [
            ["../../x.png", "/etc/x.png", "..", ".", "/", "a/../../x"],
            ["a.png", "a.jpg", "a.bmp", "a_2.png", "sub/a.png", "sub_a.png"],
            ["C:\\x\\y.png", "a:b.png", "a\nb.png", "a\0b.png", "=1.png", "ä/ö.png"],
            ["", "#", "...", "…", "x" * 400, "部" * 400, "y" * 400 + ".png"],
        ],
        ids=["climbing", "alike", "odd characters", "empty and long"],
    )
    def test_stay_in_their_folder_under_names_of_their_own(self, ids, tmp_path):
        folder = tmp_path / "maps"
        paths = self.save(folder, ids)
        assert len({path.name.lower() for path in paths}) == len(ids)
        assert sorted(folder.iterdir()) == sorted(paths)
        assert list(tmp_path.iterdir()) == [folder]
        assert not any(".." in path.name or path.name.startswith(".") for path in paths)

    def test_of_alarms_only(self, tmp_path):
        paths = self.save(tmp_path, ["a.png", "b.png", "c.png"], only_alarms=True)
        assert [path.name for path in paths] == ["c.png"]

    def test_of_other_images_are_refused(self, tmp_path):
        other = ListSource([np.zeros((40, 60, 3), np.uint8)], ["other.png"])
        with pytest.raises(ValueError, match=r"'good/a\.png' was scored but is not among the images given"):
            make_scores().save_overlays(tmp_path, other)
