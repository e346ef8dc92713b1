"""The report: one file, honest about what was unreadable, safe against names, alive in a browser."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_lite import Detector
from anomalib_lite.images.local import ListSource
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.report import page as report
from anomalib_lite.report.page import Thumbnails, kinds_of, write_report

HOSTILE = "</script><img src=x onerror=alert(1)>@@data@@.png"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def data(synthetic_set):
    return open_mvtec(synthetic_set)


@pytest.fixture(scope="module")
def detector(data):
    return Detector(image_size=64).fit(data.train)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Test images of every kind, one with a hostile name, one that is no image."""
    folder = tmp_path_factory.mktemp("images")
    shutil.copytree(data.test.root, folder, dirs_exist_ok=True)
    shutil.copy(folder / "good" / "000.png", folder / "good" / HOSTILE.replace("/", "_"))
    (folder / "good" / "broken <b>.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def page(detector, data, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(detector, folder, path, training_images=data.train)


def embedded(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S).group(1))


class TestPage:
    def test_holds_every_image_with_its_score_and_map(self, page, detector, folder):
        scores, held = detector.score(folder), embedded(page)
        assert [image["id"] for image in held["images"]] == scores.ids
        assert np.allclose([image["score"] for image in held["images"]], scores.scores)
        assert held["grid"] == list(scores.patch_scores.shape[1:])
        assert all(image["map"] and image["thumbnail"] for image in held["images"])

    def test_names_every_unreadable_file_and_its_reason(self, page):
        assert "broken &lt;b&gt;.png" in page.read_text()
        assert "not an image" in page.read_text()

    def test_asks_for_nothing_from_elsewhere(self, page):
        text = page.read_text()
        assert not re.search(r'(src|href)="(?!data:)', text)
        assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*|\"thumbnail\":\"[^\"]*\"", "", text)

    def test_a_name_cannot_become_markup(self, page):
        assert "onerror=alert(1)>" not in page.read_text()
        assert any("onerror" in image["id"] for image in embedded(page)["images"])

    def test_says_what_the_threshold_guarantees_and_with_what_it_was_made(self, page, detector):
        text = page.read_text()
        assert "16 good images" in text
        assert "<dt>backbone</dt><dd>builtin</dd>" in text
        assert "<dt>torch</dt>" in text

    def test_copies_of_training_images_are_named(self, detector, data, tmp_path):
        images = [*(data.test.read(i) for i in range(6)), data.train.read(4)]
        text = write_report(detector, images, tmp_path / "r.html", training_images=data.train).read_text()
        assert f"<li>image_0006 and {data.train.ids[4]}</li>" in text

    def test_works_at_the_global_level_without_maps(self, data, tmp_path):
        detector = Detector(image_size=64, level="global").fit(data.train)
        held = embedded(write_report(detector, data.test, tmp_path / "r.html"))
        assert held["grid"] is None
        assert "map" not in held["images"][0]

    def test_one_image_is_enough(self, detector, data, tmp_path):
        assert len(embedded(write_report(detector, data.test.read(0), tmp_path / "r.html"))["images"]) == 1

    def test_nothing_readable_is_an_error_with_the_reason(self, detector, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"none of 1 images can be read(.|\n)*broken\.png"):
            write_report(detector, tmp_path, tmp_path / "r.html")
        assert not (tmp_path / "r.html").exists()

    def test_what_has_gone_since_is_named_and_the_rest_is_drawn(self, detector, data, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "parts")
        scores = detector.score(tmp_path / "parts")
        worst, best = scores.ids[int(scores.scores.argmax())], scores.ids[int(scores.scores.argmin())]
        (tmp_path / "parts" / worst).unlink()
        (tmp_path / "parts" / best).write_bytes(b"half a pict")
        path = write_report(
            detector, tmp_path / "parts", tmp_path / "r.html", scores=scores, training_images=data.train
        )
        assert "Could not be drawn (2)" in path.read_text()
        assert f"<td>{worst}</td><td>{worst}: was scored but is not among the images given" in path.read_text()
        held = {image["id"]: image for image in embedded(path)["images"]}
        assert list(held) == scores.ids
        assert [name for name in held if not held[name]["thumbnail"]] == [
            name for name in scores.ids if name in (worst, best)
        ]

    def test_nothing_left_to_draw_still_gives_the_scores(self, detector, data, folder, tmp_path):
        scores = detector.score(data.test)
        images = [tmp_path / name for name in scores.ids]
        path = write_report(detector, ListSource(images, scores.ids), tmp_path / "r.html", scores=scores)
        assert f"Could not be drawn ({len(scores)})" in path.read_text()

    def test_other_images_are_refused(self, detector, data, tmp_path):
        with pytest.raises(ValueError, match="was scored but is not among the images given"):
            write_report(detector, data.train, tmp_path / "r.html", scores=detector.score(data.test.read(0)))

    @pytest.mark.parametrize("given", ["nothing", "scores", "scores and pictures"])
    def test_images_are_read_and_embedded_once(self, given, detector, data, tmp_path, monkeypatch):
        """What scoring decoded is kept small; what it embedded is not embedded again."""
        reads = Counter()
        source = Counting(data.test, reads)
        if given == "scores and pictures":
            source = Thumbnails(source)
        scores = None
        monkeypatch.setattr(report, "embed_whole", lambda *_, **__: pytest.fail("embedded again"))
        if given != "nothing":
            scores = detector.score(source, vectors=True)
        if given == "scores":
            reads.clear()
        path = write_report(detector, source, tmp_path / "r.html", scores=scores)
        assert set(reads.values()) == {1}
        assert all(image["thumbnail"] for image in embedded(path)["images"])

    def test_pictures_shrink_when_there_are_many(self, detector, folder, tmp_path, monkeypatch):
        large = write_report(detector, folder, tmp_path / "large.html").stat().st_size
        monkeypatch.setattr(report, "_PICTURE_BYTES", 30_000)
        assert write_report(detector, folder, tmp_path / "small.html").stat().st_size < large

    @pytest.mark.parametrize("name", ["good", "OK", "Normal", "test/ok", "Good"])
    def test_roc_and_calibration_know_good_images_by_any_name(self, name, detector, data, tmp_path):
        images = [data.test.read(i) for i in range(len(data.test))]
        ids = [f"{name if kind == 'good' else kind}/{i}.png" for i, kind in enumerate(data.kinds)]
        text = write_report(detector, ListSource(images, ids), tmp_path / "r.html").read_text()
        assert "<figcaption>ROC. " in text
        verdict = re.search(
            r"<figcaption>Calibration\. On the images of folders named good, ok or normal\. (.*?)</f", text
        )
        assert "of 6 good images" in verdict[1]

    def test_says_which_p_values_could_not_be_smaller(self, detector, data, tmp_path):
        text = write_report(detector, data.test, tmp_path / "r.html").read_text()
        assert "A p-value ≤ 0.0588 is the smallest that 16 good images allow." in text
        assert "\\u2264 0.0588" in text  # in the table's data

    def test_says_when_no_good_image_alarms(self, detector, data):
        shown = report._calibration(np.ones(80), 1 / 100)
        assert "Fewer alarms than promised: recall is given away (of 80 good images 0 at 10 %, 0 at 20 %)." in shown
        few = report._calibration(np.ones(80), 1 / 17)
        assert "too few for a threshold at 5 %" in few
        assert "Fewer alarms than promised: recall is given away (of 80 good images 0 at 20 %)." in few


class Counting:
    """A source that counts how often each image is read."""

    def __init__(self, source, reads):
        self.source, self.ids, self.reads = source, source.ids, reads

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        self.reads[i] += 1
        return self.source.read(i)


class TestKinds:
    @pytest.mark.parametrize(
        ("ids", "kinds"),
        [
            (["a.png", "b.png"], ["image", "image"]),
            (["good/a.png", "bent/b.png"], ["good", "bent"]),
            (["good/a.png", "b.png"], ["good", "image"]),
            (["same/a.png", "same/b.png"], ["image", "image"]),
        ],
    )
    def test_are_the_folders_when_there_are_several(self, ids, kinds):
        assert kinds_of(ids) == kinds


@pytest.fixture(scope="module")
def tab(page):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        problems = []
        tab.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        tab.on("dialog", lambda dialog: problems.append("a file name ran as script"))
        tab.goto(Path(page).as_uri())
        yield tab
        browser.close()
        assert not problems


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
class TestInABrowser:
    def names(self, tab):
        return tab.locator("tr.image td:nth-child(2)").all_inner_texts()

    def scores(self, tab):
        return [float(text) for text in tab.locator("tr.image td:nth-child(3)").all_inner_texts()]

    def test_the_worst_image_comes_first_and_columns_sort(self, tab):
        assert self.scores(tab) == sorted(self.scores(tab), reverse=True)
        tab.click("th[data-key=score] button")
        assert self.scores(tab) == sorted(self.scores(tab))
        tab.click("th[data-key=id] button")
        assert self.names(tab)[0].startswith("bent/")
        assert tab.locator("th[data-key=id]").get_attribute("aria-sort") == "ascending"

    def test_a_click_shows_the_image_and_its_heat_map(self, tab):
        assert tab.locator("#detail").is_hidden()
        tab.locator("tr.image").nth(2).click()
        tab.wait_for_selector("#mapped[data-drawn=heat]")
        name = self.names(tab)[2]
        assert name in tab.inner_text("#about")
        plain, mapped = (
            tab.evaluate(f"() => Array.from(document.getElementById('{name}').getContext('2d')"
                         ".getImageData(0, 0, 200, 200).data)")
            for name in ("plain", "mapped")
        )  # fmt: skip
        assert plain != mapped

    def test_images_are_found_by_name_and_by_alarm(self, tab):
        everything = len(self.names(tab))
        tab.fill("#find", "color/")
        assert self.names(tab)
        assert all(name.startswith("color/") for name in self.names(tab))
        tab.fill("#find", "")
        tab.check("#only")
        assert set(tab.locator("tr.image .verdict").all_inner_texts()) <= {"alarm"}
        tab.uncheck("#only")
        assert len(self.names(tab)) == everything


def test_pictures_open_upright(page):
    """The thumbnail is the image itself."""
    import base64
    import io

    entry = embedded(page)["images"][0]
    picture = Image.open(io.BytesIO(base64.b64decode(entry["thumbnail"])))
    assert picture.format == "WEBP"
    assert picture.size[0] / picture.size[1] == pytest.approx(entry["width"] / entry["height"], rel=0.05)
