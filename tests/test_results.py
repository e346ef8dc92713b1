import base64
import csv
import dataclasses
import io
import json
import re
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from anomalib_lite.fitted.core import Nearest
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.local import FolderSource, ListSource
from anomalib_lite.results import Scores


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
        scores = make_scores(model="cafe", time="2026-11-28T06:00:00+00:00")
        rows = read_csv(scores.to_csv(tmp_path / "scores.csv"))
        assert list(rows[0]) == [
            *("id", "score", "p_value", "alarm", "verdict", "unreadable"),
            *("threshold", "false_alarm_rate", "model", "time"),
        ]
        assert [row["id"] for row in rows] == ["good/a.png", "bad/b.png", "bad/c.png", "bad/d.png"]
        assert [float(row["score"]) for row in rows[:3]] == [1.0, 2.0, 3.0]
        assert [float(row["p_value"]) for row in rows[:3]] == pytest.approx([0.9, 0.455, 0.01])
        assert [row["alarm"] for row in rows[:3]] == ["0", "0", "1"]
        assert rows[3] == {
            "id": "bad/d.png",
            "score": "",
            "p_value": "",
            "alarm": "",
            "verdict": "no verdict",
            "unreadable": "d.png: empty (0 bytes)",
            "threshold": "2.5",
            "false_alarm_rate": "0.05",
            "model": "cafe",
            "time": "2026-11-28T06:00:00+00:00",
        }

    def test_for_spreadsheets_that_write_a_comma(self, tmp_path):
        content = make_scores().to_csv(tmp_path / "scores.csv", decimal_comma=True).read_bytes()
        assert content.startswith(b"\xef\xbb\xbfid;score;p_value;")
        assert b"\r\nbad/b.png;2;0,455;0;good;;2,5;0,05;" in content

    @pytest.mark.parametrize(
        "start",
        [
            "=",
            "+",
            "-",
            "@",
            "\t",
            "\r",
            "\n",
            " =",
            "  @",
            "\t-",
            "\n+",
            "＝",
            "＋",
            "－",
            "＠",
            " ＝",
            "\ufeff=",
            "\xa0=",
        ],
    )
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

    def test_a_nul_does_not_end_the_table(self, tmp_path):
        text = make_scores(["a\0b.png"]).to_csv(tmp_path / "scores.csv").read_bytes()
        assert b"\0" not in text
        assert rb"a\x00b.png" in text

    def test_is_replaced_in_one_step(self, tmp_path, monkeypatch):
        """What fails half-way leaves the table of yesterday."""
        path = make_scores().to_csv(tmp_path / "scores.csv")
        before = path.read_bytes()
        broken = make_scores(unreadable=[UnreadableImage(3, "x", 3)])
        with pytest.raises(TypeError):
            broken.to_csv(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_leads_to_the_overlays(self, tmp_path):
        scores = make_scores()
        images = ListSource([np.zeros((40, 60, 3), np.uint8)] * 3, scores.ids)
        scores.save_overlays(tmp_path / "maps", images, only_alarms=True)
        rows = read_csv(scores.to_csv(tmp_path / "scores.csv", overlays=tmp_path / "maps"))
        assert [row["overlay"] for row in rows] == ["", "", str(tmp_path / "maps" / "bad__c.png.png"), ""]

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
            "verdict": "alarm",
            "nearest": {"box": [0, 0, 10, 10], "train_id": "2.png", "train_box": [10, 10, 20, 20], "distance": 2.5},
            "regions": [],
        }
        assert result["unreadable"] == [{"index": 3, "id": "bad/d.png", "reason": "d.png: empty (0 bytes)"}]
        # What is left out are the maps and what only drawings need.
        told = {"threshold", "false_alarm_rate", "guarantee_met", "unreadable", "notes", "model", "time"}
        per_image = {"ids", "scores", "p_values", "alarms", "nearest"}
        verdicts = {"look_again", "calibration_groups"}  # the latter as the smallest p-value
        maps = {"source", "image_sizes", "patch_scores", "map_scale", "vectors", "reading", "frame", "usual_score"}
        if_asked = {"whole_scores", "poses"}  # levels and fixtures have tests of their own
        regions = {"pixel_threshold", "pixel_size"}
        assert {
            field.name for field in dataclasses.fields(Scores)
        } == told | per_image | verdicts | maps | regions | if_asked

    def test_other_scorers_have_no_nearest(self):
        assert set(make_scores().to_dict()["images"][0]) == {"id", "score", "p_value", "alarm", "verdict", "regions"}

    def test_length_is_the_number_of_readable_images(self):
        assert len(make_scores()) == 3

    def test_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make_scores().threshold = 0
        given = np.linspace(1.0, 3.0, 3)
        scores = make_scores(scores=given)
        for array in (scores.scores, scores.p_values, scores.alarms, scores.patch_scores):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
        given[0] = 5  # the caller's own array stays the caller's


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
        from anomalib_lite.locating import maps

        for side in range(20, 120):
            make_scores(["a"], image_sizes=[(side, side + 1)]).anomaly_map(0)
        assert maps._resizing.cache_info().currsize <= 32

    @pytest.mark.parametrize(("grid", "size"), [((28, 28), (320, 320)), ((3, 50), (7, 901)), ((40, 3), (13, 2))])
    def test_is_what_whole_matrices_make_of_it(self, grid, size):
        """The definition: a bilinear matrix, then a Gaussian one over all pixels, rows summing to one."""
        axes = []
        for cells, pixels in zip(grid, size, strict=True):
            centres = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
            tent = np.maximum(0, 1 - np.abs(np.clip(centres, 0, cells - 1)[:, None] - np.arange(cells)))
            if pixels < cells:
                tent = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(cells)) * pixels / cells)
            offsets = np.arange(pixels)[:, None] - np.arange(pixels)
            gaussian = np.exp(-0.5 * (offsets * cells / pixels / 0.5) ** 2)
            axes.append((gaussian / gaussian.sum(1, keepdims=True)) @ (tent / tent.sum(1, keepdims=True)))
        patches = np.random.default_rng(2).normal(size=grid).astype(np.float32)
        got = make_scores(["a"], image_sizes=[size], patch_scores=patches[None]).anomaly_map(0)
        assert got == pytest.approx(axes[0] @ patches @ axes[1].T, abs=1e-5)

    def test_a_line_scan_picture_takes_no_matrix_of_its_pixels(self):
        """12 000 pixels took matrices of 12 000 x 12 000, 3.5 GB."""
        tracemalloc.start()
        try:
            make_scores(["a"], image_sizes=[(64, 12_000)]).anomaly_map(0)
            assert tracemalloc.get_traced_memory()[1] < 50e6
        finally:
            tracemalloc.stop()

    def test_many_threads_may_ask_at_once(self):
        """A cache that one thread empties must not lose what another is about to read."""
        scores = make_scores([str(i) for i in range(300)], image_sizes=[(3 + i, 4) for i in range(300)])
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(8) as pool:
                assert len(list(pool.map(scores.anomaly_map, [*range(300)] * 4))) == 1200
        finally:
            sys.setswitchinterval(interval)

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
        return dict(zip(ids, make_scores(ids).save_overlays(folder, images, **options), strict=False))

    @staticmethod
    def manifest(folder):
        return json.loads((folder / ".anomalib_lite-overlays.json").read_text())

    def test_are_images_of_the_original_size(self, tmp_path):
        written = self.save(tmp_path / "new" / "maps", ["good/a.png", "bad/b.png"])
        assert {name: path.name for name, path in written.items()} == {
            "good/a.png": "good__a.png.png",
            "bad/b.png": "bad__b.png.png",
        }
        for path in written.values():
            assert np.array(Image.open(path)).shape == (40, 60, 3)

    @pytest.mark.parametrize(
        "ids",
        [
            ["../../x.png", "/etc/x.png", "..", ".", "/", "a/../../x"],
            ["a.png", "a.jpg", "a.bmp", "a_2.png", "sub/a.png", "sub_a.png", "sub__a.png", "A.png", "SUB/a.png"],
            ["C:\\x\\y.png", "a:b.png", "a\nb.png", "a\0b.png", "=1.png", "ä/ö.png", "\udcff.png", "😀.png"],
            ["", "#", "...", "…", "x" * 400, "部" * 400, "y" * 400 + ".png", "z" * 400 + ".png"],
        ],
        ids=["climbing", "alike", "odd characters", "empty and long"],
    )
    def test_stay_in_their_folder_under_names_of_their_own(self, ids, tmp_path):
        folder = tmp_path / "maps"
        for _ in range(2):  # the second time over the first
            written = self.save(folder, ids)
            assert list(written) == ids
            assert len({path.name.lower() for path in written.values()}) == len(ids)
            assert sorted(folder.glob("*.png")) == sorted(written.values())
            assert list(tmp_path.iterdir()) == [folder]
            assert not any(".." in path.name or path.name.startswith(".") for path in written.values())
            assert self.manifest(folder)["pictures"] == {path.name: name for name, path in written.items()}

    def test_names_do_not_mislead(self, tmp_path):
        """`a_2.png` was the overlay of `a.jpg`, beside a picture of that very name."""
        written = self.save(tmp_path / "maps", ["a.png", "a.jpg", "a_2.png"])
        assert [path.name for path in written.values()] == ["a.png.png", "a.jpg.png", "a_2.png.png"]

    def test_of_alarms_only(self, tmp_path):
        written = self.save(tmp_path, ["a.png", "b.png", "c.png"], only_alarms=True)
        assert [path.name for path in written.values()] == ["c.png.png"]

    def test_of_other_images_are_refused(self, tmp_path):
        other = ListSource([np.zeros((40, 60, 3), np.uint8)], ["other.png"])
        with pytest.raises(ValueError, match=r"'good/a\.png' was scored but is not among the images given"):
            make_scores().save_overlays(tmp_path, other)


class TestOverlaysLeaveOtherFilesAlone:
    @pytest.fixture
    def parts(self, tmp_path):
        """A folder of two pictures, one below it; their ids are as a folder gives them."""
        folder = tmp_path / "parts"
        for name in ("a.png", "sub/b.png"):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            Image.new("RGB", (60, 40), "red").save(folder / name)
        return folder

    @staticmethod
    def contents(folder):
        return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    @pytest.mark.parametrize("target", ["parts", "parts/sub", "."], ids=["the same", "below", "above"])
    def test_pictures_are_never_overwritten_nor_hidden(self, parts, target):
        before = self.contents(parts)
        with pytest.raises(
            ValueError, match=r"(a|b)\.png, which was not written by us; give what is written a folder of its own"
        ):
            make_scores(["a.png", "sub/b.png"]).save_overlays(parts.parent / target, parts)
        assert self.contents(parts) == before

    def test_nor_is_a_picture_put_there_since(self, parts, tmp_path):
        maps = tmp_path / "maps"
        scores = make_scores(["a.png", "sub/b.png"])
        scores.save_overlays(maps, parts, only_alarms=True)
        Image.new("RGB", (60, 40), "red").save(maps / "a.png.png")
        before = self.contents(maps)
        with pytest.raises(ValueError, match=r"maps holds a\.png\.png, which was not written by us"):
            scores.save_overlays(maps, parts)
        assert self.contents(maps) == before

    def test_nothing_is_drawn_before_that_is_known(self, parts, monkeypatch):
        monkeypatch.setattr(Image.Image, "save", lambda *_: pytest.fail("something was written"))
        (parts / "maps").mkdir()
        (parts / "maps" / "sub__b.png.png").symlink_to(parts / "sub" / "b.png")
        with pytest.raises(ValueError, match="not written by us"):
            make_scores(["a.png", "sub/b.png"]).save_overlays(parts / "maps", parts)

    def test_a_damaged_manifest_is_named(self, parts, tmp_path):
        (tmp_path / "maps").mkdir()
        (tmp_path / "maps" / ".anomalib_lite-overlays.json").write_text("[")
        with pytest.raises(ValueError, match=r"overlays\.json is damaged.*choose another folder"):
            make_scores(["a.png", "sub/b.png"]).save_overlays(tmp_path / "maps", parts)

    def test_a_second_batch_joins_the_first(self, parts, tmp_path):
        scores = make_scores(["a.png", "sub/b.png"])
        scores.save_overlays(tmp_path / "maps", parts)
        other = ListSource([np.zeros((40, 60, 3), np.uint8)], ["sub__b.png"])
        (path,) = make_scores(["sub__b.png"]).save_overlays(tmp_path / "maps", other)
        assert path.name.startswith("sub__b.png~")
        assert TestOverlays.manifest(tmp_path / "maps")["pictures"] == {
            "a.png.png": "a.png",
            "sub__b.png.png": "sub/b.png",
            path.name: "sub__b.png",
        }


class TestOverlaysOfWhatIsGone:
    @pytest.mark.parametrize("how", ["deleted", "deleted from a folder", "broken", "resized"])
    def test_the_rest_is_drawn_and_it_is_named(self, how, tmp_path):
        names = ["a.png", "b.png", "c.png"]
        for name in names:
            Image.new("RGB", (60, 40), "red").save(tmp_path / name)
        images = ListSource([tmp_path / name for name in names], names)
        if how == "deleted":
            (tmp_path / "b.png").unlink()
        elif how == "deleted from a folder":
            (tmp_path / "b.png").unlink()
            images = tmp_path
        elif how == "broken":
            (tmp_path / "b.png").write_bytes(b"half a pict")
        else:
            Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
        with pytest.warns(UserWarning, match=r"1 of 3 pictures could not be drawn: b\.png: "):
            written = make_scores(names).save_overlays(tmp_path / "maps", images)
        assert [path.name for path in written] == ["a.png.png", "c.png.png"]
        assert all(path.is_file() for path in written)
        listed = TestOverlays.manifest(tmp_path / "maps")
        assert set(listed["pictures"].values()) == {"a.png", "c.png"}
        assert list(listed["not_drawn"]) == ["b.png"]


class TestOneOfThem:
    def test_is_told_with_what_was_found_of_it(self):
        scores = make_scores(notes={"bad/c.png": "first of 2 pages"}, pixel_threshold=0.9)
        image = scores[2]
        assert (image.id, image.score, image.p_value) == ("bad/c.png", 3.0, pytest.approx(0.01))
        assert (image.verdict, image.alarm, image.note, image.size) == ("alarm", True, "first of 2 pages", (40, 60))
        assert (scores[0].verdict, scores[0].alarm, scores[0].note) == ("good", False, "")
        np.testing.assert_array_equal(image.anomaly_map(), scores.anomaly_map(2))
        assert image.regions(max_regions=1) == scores.regions(2, max_regions=1)
        assert image == scores[-1] == scores[np.int64(2)]
        with pytest.raises(dataclasses.FrozenInstanceError):
            image.score = 0.0

    def test_come_one_after_the_other(self):
        scores = make_scores()
        assert list(scores) == [scores[0], scores[1], scores[2]]

    def test_there_are_so_many(self):
        with pytest.raises(IndexError, match=r"scores\[3\]: there are 3 images"):
            make_scores()[3]
        with pytest.raises(TypeError, match=r"scores\['bad/c.png'\]: give a position"):
            make_scores()["bad/c.png"]


class TestSomeOfThem:
    @pytest.mark.parametrize(
        "chosen",
        [slice(1, None), [1, 2], np.array([1, 2]), np.array([False, True, True]), [False, True, True]],
        ids=["slice", "list", "array", "mask", "list mask"],
    )
    def test_are_scores_with_all_that_belongs_to_them(self, chosen):
        nearest = [Nearest((0, 0, 1, 1), f"{i}.png", (0, 0, 1, 1), 0.5) for i in range(3)]
        every = {"whole_scores": np.arange(3.0), "vectors": np.zeros((3, 2), np.float32), "nearest": nearest}
        scores = make_scores(**every, notes={"good/a.png": "x", "bad/b.png": "y", "bad/d.png": "z"})
        some = scores[chosen]
        assert some.ids == ["bad/b.png", "bad/c.png"]
        assert (some.scores.tolist(), some.whole_scores.tolist(), some.nearest) == ([2.0, 3.0], [1.0, 2.0], nearest[1:])
        np.testing.assert_array_equal(some.anomaly_map(0), scores.anomaly_map(1))
        assert some.notes == {"bad/b.png": "y", "bad/d.png": "z"}
        assert some.unreadable == scores.unreadable
        assert not some.scores.flags.writeable

    def test_none_is_fine(self):
        assert len(make_scores()[[]]) == len(make_scores()[:0]) == 0
        with pytest.raises(IndexError):
            make_scores()[np.array([True])]

    def test_that_alarm(self):
        assert make_scores().alarms_only().ids == ["bad/c.png"]

    def test_in_another_order(self):
        scores = make_scores()
        assert scores.sort().ids == ["bad/c.png", "bad/b.png", "good/a.png"]
        assert scores.sort("p_value").ids == ["bad/c.png", "bad/b.png", "good/a.png"]
        assert scores.sort("id").ids == ["bad/b.png", "bad/c.png", "good/a.png"]
        with pytest.raises(ValueError, match="by='name'; choose 'score', 'p_value' or 'id'"):
            scores.sort("name")


class TestInWords:
    def test_say_how_many_got_which_verdict(self):
        told = "Scores(3 images: 1 good, 1 look again, 1 alarm; 1 unreadable; threshold 2.5, false-alarm rate 0.05"
        assert repr(make_scores(look_again=1.5)) == told + ")"
        assert repr(make_scores(look_again=1.5, guarantee_met=False)) == told + ", which is not promised)"

    def test_a_notebook_shows_the_worst_and_what_was_not_seen(self):
        page = make_scores([f"{i:02d}.png" for i in range(12)])._repr_html_()
        assert page.index("11.png") < page.index("10.png") < page.index("02.png")
        assert "01.png" not in page
        assert "and 2 more" in page
        assert "empty (0 bytes)" in page

    def test_a_notebook_shows_pictures_of_files_and_else_the_heat_map_alone(self, tmp_path):
        for name in ("a.png", "b.png"):
            Image.new("RGB", (60, 40), (0, 200, 0)).save(tmp_path / name)
        scores = make_scores(["a.png", "b.png"], source=FolderSource(tmp_path), map_scale=(5.0, 10.0))  # unpainted
        (tmp_path / "a.png").unlink()
        page = scores._repr_html_()
        (picture,) = re.findall('data:image/jpeg;base64,([^"]+)', page)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert shown.shape == (96, 144, 3)
        np.testing.assert_allclose(shown.reshape(-1, 3).mean(0), [0, 200, 0], atol=4)
        assert "a.png: no such file" in page
        assert make_scores()._repr_html_().count('<img alt="heat map of ') == 3
        assert "<img" not in make_scores(patch_scores=None)._repr_html_()

    def test_a_name_is_text_and_no_page(self):
        page = make_scores(["<script>x</script>", "\udcff.png", "c"])._repr_html_()
        assert "<script>" not in page
        assert r"\udcff.png" in page
        page.encode()


class TestFrame:
    def test_is_the_table_of_the_file(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        frame = make_scores().to_frame()
        assert list(frame.columns) == list(read_csv(make_scores().to_csv(tmp_path / "x.csv"))[0])
        assert frame["score"].tolist()[:3] == [1.0, 2.0, 3.0]
        assert frame["score"].isna().tolist() == frame["alarm"].isna().tolist() == [False, False, False, True]
        assert isinstance(frame, pandas.DataFrame)

    def test_without_pandas_names_the_way_out(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="pip install pandas; or take to_csv or to_dict"):
            make_scores().to_frame()
