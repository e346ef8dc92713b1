"""The report: one file, honest about what was unreadable, safe against names, alive in a browser."""

import base64
import html
import io
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import violations
from PIL import Image

from anomalib_lite import Detector
from anomalib_lite.images.local import ListSource
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.sources import open_source
from anomalib_lite.report import figures, pictures
from anomalib_lite.report.page import write_report
from anomalib_lite.report.pictures import Thumbnails, size_of
from anomalib_lite.report.rows import kinds_of

HOSTILE = "</script><img src=x onerror=alert(1)>@@data@@.png"


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


@pytest.fixture(scope="module")
def easily_alarmed(detector):
    return detector.at_rate(0.4)


@pytest.fixture(scope="module")
def outlined(easily_alarmed, folder, tmp_path_factory):
    return write_report(easily_alarmed, folder, tmp_path_factory.mktemp("outlined") / "report.html")


def lines(page):
    """What the lines of a page's table hold, by the names of the images."""
    found = {}
    for attributes, line in re.findall(r"<tr (data-kind.*?)>(.*?)</tr>", page.read_text(encoding="utf-8"), re.S):
        told = dict(re.findall(r'data-(\w+)="(.*?)"', attributes))
        name = re.search(r'<th scope="row">(?:<span class="name">)?(.*?)<', line)[1]
        told |= dict(zip(("picture", "heat"), re.findall(r'src="(.*?)"', line), strict=False))
        found[html.unescape(name)] = told | {"text": html.unescape(re.sub("<[^>]*>", " ", line))}
    return found


def as_picture(address):
    return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))


class TestPage:
    def test_holds_every_image_with_its_score_and_map(self, page, detector, folder):
        scores, held = detector.score(folder), lines(page)
        assert sorted(held) == sorted([*scores.ids, "good/broken <b>.png"])
        assert [float(held[name]["score"]) for name in scores.ids] == pytest.approx(scores.scores, rel=1e-5)
        assert [held[name]["verdict"] for name in scores.ids] == scores.verdicts
        assert all({"picture", "heat"} <= set(held[name]) for name in scores.ids)

    def test_an_outline_goes_around_what_alarms_and_around_nothing_else(self, outlined, easily_alarmed, folder):
        scores, text = easily_alarmed.score(folder), outlined.read_text()
        held = {
            html.unescape(name): line
            for line, name in re.findall(r'(<td class="look">.*?class="name">(.*?)<.*?)\n', text)
        }
        assert '<svg class="lines"' in text
        for i, name in enumerate(scores.ids):
            regions = scores.regions(i) if scores.alarms[i] else []
            rings = [ring for region in regions for ring in region.outline]
            drawn = re.search(r'<svg class="lines"[^>]*viewBox="0 0 (\d+) (\d+)".*?<path d="(.*?)"', held[name])
            assert bool(drawn) == bool(rings)
            if drawn:
                height, width = scores.image_sizes[i]
                share = max(int(drawn[1]), int(drawn[2])) / max(height, width)
                begins = [tuple(map(int, begin.split())) for begin in re.findall(r"M([\d ]+)l", drawn[3])]
                np.testing.assert_allclose(begins, [np.multiply(ring[0], share) for ring in rings], atol=0.51)
                for ring, moves in zip(rings, re.findall(r"l([-\d ]+)z", drawn[3]), strict=True):
                    corners = np.cumsum(np.reshape([int(move) for move in moves.split()], (-1, 2)), axis=0)
                    np.testing.assert_array_equal(corners[-1], [0, 0])  # it is closed
                    np.testing.assert_allclose(np.ptp(corners, axis=0), share * np.ptp(ring, axis=0), atol=1.01)

    def test_the_verdict_and_the_worst_picture_stand_above_the_statistics(self, page, detector, folder):
        scores, text = detector.score(folder), page.read_text()
        worst = scores.ids[int(scores.scores.argmax())]
        alarms = int(scores.alarms.sum())
        said = f"{alarms} of {len(scores)} images alarm{'s' * (alarms == 1)}"
        assert re.search(r"<h1[^>]*>(.*?)</h1>", text)[1] == said
        assert next(iter(lines(page))) == worst
        assert text.index(said) < text.index(f'alt="{worst}: alarm"') < text.index('class="tiles"')

    def test_every_picture_says_what_it_shows(self, page):
        for picture in re.findall(r"<img[^>]*>", page.read_text()):
            if 'class="heat"' not in picture and 'id="' not in picture:  # those lie over one that says it
                assert re.search(r'alt="[^"]{9,}"', picture), picture[:200]
        assert re.search(r'alt="Scores and the threshold [^"]*good: 7 from [^"]* above', page.read_text())
        assert "<canvas" not in page.read_text()

    def test_names_every_unreadable_file_and_its_reason(self, page):
        line = lines(page)["good/broken <b>.png"]
        assert line["verdict"] == "no verdict"
        assert "not an image" in line["text"]
        assert "1 image could not be read: it has no verdict." in page.read_text()

    def test_asks_for_nothing_from_elsewhere(self, page):
        text = page.read_text()
        assert not re.search(r'(src|href)="(?!data:)', text)
        assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*|http://www.w3.org/2000/svg", "", text)
        assert not re.search(r"import |@import|fetch\(", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))

    def test_a_name_cannot_become_markup(self, page):
        assert "onerror=alert(1)>" not in page.read_text()
        assert any("onerror" in name for name in lines(page))

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
        page = write_report(detector, data.test, tmp_path / "r.html")
        assert all("picture" in line and "heat" not in line for line in lines(page).values())
        assert '<body class="no-maps">' in page.read_text()

    def test_one_image_is_enough(self, detector, data, tmp_path):
        page = write_report(detector, data.test.read(0), tmp_path / "r.html")
        assert len(lines(page)) == 1
        assert re.search(r"<h1[^>]*>(1|None) of 1 image alarms</h1>", page.read_text())

    def test_without_alarms_it_says_so(self, detector, data, tmp_path):
        scores = detector.at_threshold(1e6).score(data.test)
        text = write_report(detector, data.test, tmp_path / "r.html", scores=scores).read_text()
        assert f'<h1 class="good">None of {len(scores)} images alarms</h1>' in text
        assert "The highest score: " in text
        assert "Nearest good patches" not in text

    def test_a_part_that_was_not_found_is_told_and_sorted(self, detector, data, tmp_path):
        """Its score is infinite: it alarms, whatever it looks like."""
        scores = detector.score(data.test)
        far = replace(scores, scores=np.where(np.arange(len(scores)) == 5, np.inf, scores.scores))
        page = write_report(detector, data.test, tmp_path / "r.html", scores=far)
        assert next(iter(lines(page))) == scores.ids[5]
        assert lines(page)[scores.ids[5]]["score"] == "Infinity"  # as a script reads it

    def test_the_region_of_interest_is_told(self, data, tmp_path):
        detector = Detector(image_size=64, roi=[(32, 32, 96, 96)]).fit(data.train)
        page = write_report(detector, data.test, tmp_path / "r.html")
        assert "Region of interest: 25\xa0% of every picture is looked at." in page.read_text()
        layer = np.array(as_picture(next(iter(lines(page).values()))["heat"]).convert("RGBA"))
        assert (layer[2, 2] == (0, 0, 0, 153)).all()  # dark outside
        assert layer[48, 48, 3] != 153

    @pytest.mark.parametrize(("alarms", "shown", "which"), [(2, 2, "all of them"), (9, 6, "those that score highest")])
    def test_says_of_how_many_alarms_the_nearest_patch_is_shown(self, alarms, shown, which, detector, data, tmp_path):
        threshold = np.sort(detector.score(data.test).scores)[-alarms - 1]
        scores = detector.at_threshold(float(threshold)).score(data.test)
        text = write_report(
            detector, data.test, tmp_path / "r.html", scores=scores, training_images=data.train
        ).read_text()
        assert f"<h2>Nearest good patches: {shown} of {alarms} alarms</h2><p>Shown are {which}." in text
        assert text.count('<figure class="nearest">') == shown

    def test_a_remark_stands_in_the_line_of_its_image(self, detector, data, tmp_path):
        scores = replace(detector.score(data.test), notes={data.test.ids[3]: "2 further pages"})
        page = write_report(detector, data.test, tmp_path / "r.html", scores=scores)
        assert [name for name, line in lines(page).items() if "2 further pages" in line["text"]] == [data.test.ids[3]]
        assert "1 has a remark in its line of the table." in page.read_text()

    def test_an_image_to_be_looked_at_again_is_no_good_one(self, detector, data, tmp_path):
        scores = detector.at_threshold(1e6, look_again=0.0).score(data.test)
        page = write_report(detector, data.test, tmp_path / "r.html", scores=scores)
        assert {line["verdict"] for line in lines(page).values()} == {"look again"}
        assert f"{len(scores)} to be looked at again." in page.read_text()

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
        assert "2 have gone or changed since they were scored: they have no picture." in path.read_text()
        held = lines(path)
        assert "was scored but is not among the images given" in held[worst]["text"]
        assert {name for name in scores.ids if "picture" not in held[name]} == {worst, best}
        assert float(held[worst]["score"]) == pytest.approx(scores.scores.max(), rel=1e-5)

    def test_nothing_left_to_draw_still_gives_the_scores(self, detector, data, folder, tmp_path):
        scores = detector.score(data.test)
        images = [tmp_path / name for name in scores.ids]
        path = write_report(detector, ListSource(images, scores.ids), tmp_path / "r.html", scores=scores)
        assert f"{len(scores)} have gone or changed" in path.read_text()
        assert len(lines(path)) == len(scores)

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
        monkeypatch.setattr(figures, "embed_whole", lambda *_, **__: pytest.fail("embedded again"))
        if given != "nothing":
            scores = detector.score(source, vectors=True)
        if given == "scores":
            reads.clear()
        path = write_report(detector, source, tmp_path / "r.html", scores=scores)
        assert set(reads.values()) == {1}
        assert all("picture" in line for line in lines(path).values())

    def test_pictures_shrink_when_there_are_many(self, detector, folder, tmp_path, monkeypatch):
        large = write_report(detector, folder, tmp_path / "large.html").stat().st_size
        monkeypatch.setattr(pictures, "_PICTURE_BYTES", 30_000)
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
        assert '<td class="number">≤ 0.0588</td>' in text

    def test_says_when_no_good_image_alarms(self, detector, data):
        shown = figures.calibration_figure(np.ones(80), 1 / 100)
        assert "Fewer alarms than promised: recall is given away (of 80 good images 0 at 10 %, 0 at 20 %)." in shown
        few = figures.calibration_figure(np.ones(80), 1 / 17)
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
            (["/line/test/good/a.png", "/line/test/bent/b.png"], ["good", "bent"]),
            (["/line/good/a.png", "/line/good/new/b.png"], ["good", "good/new"]),
        ],
    )
    def test_are_the_folders_when_there_are_several(self, ids, kinds):
        assert kinds_of(ids) == kinds


class TestThumbnails:
    def test_few_are_large_and_many_are_small(self, data):
        few, many = Thumbnails(ListSource([np.zeros((1200, 900, 3), np.uint8)], ["a"])), Thumbnails(Many())
        few.read(0)
        many.read(0)
        assert size_of(few.pictures[0]) == (576, 768)
        assert size_of(many.pictures[0]) == (240, 320)

    def test_an_alarm_is_as_sharp_as_it_can_be(self, detector, tmp_path):
        """For scoring large JPEGs are decoded at a fraction of their size."""
        stripes = np.zeros((900, 900, 3), np.uint8)
        stripes[:, ::6] = 255
        Image.fromarray(stripes).save(tmp_path / "stripes.jpg")
        source = Thumbnails(open_source(tmp_path))
        scores = detector.score(source)
        assert scores.alarms.all()
        decoded = size_of(source.pictures[0])
        (shown,) = pictures.small_pictures(scores, source, {}).values()
        assert decoded[0] < 768
        assert size_of(shown) == (768, 768)
        (tmp_path / "stripes.jpg").unlink()
        source.pictures[0] = pictures.as_jpeg(stripes, 100)
        assert size_of(pictures.small_pictures(scores, source, {})[0]) == (100, 100)

    def test_stand_upright_and_are_passed_on_to_paper(self, page, data):
        picture = as_picture(next(iter(lines(page).values()))["picture"])
        assert picture.format == "JPEG"  # a PDF takes it over as it is
        assert picture.size == (128, 128)


class Many:
    """So many images that each can have few bytes."""

    def __init__(self):
        self.ids = [f"{i}.png" for i in range(5000)]

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        return np.zeros((1200, 900, 3), np.uint8)


@pytest.fixture
def tab(browser, page):
    tab = browser.new_page(viewport={"width": 820, "height": 1180})
    problems = []
    tab.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    tab.on("dialog", lambda dialog: problems.append("a file name ran as script"))
    tab.goto(Path(page).as_uri())
    yield tab
    tab.close()
    assert not problems


class TestInABrowser:
    def names(self, tab):
        return tab.locator("tbody tr:visible th").evaluate_all("all => all.map(one => one.firstChild.textContent)")

    def scores(self, tab):
        texts = tab.locator("tbody tr:visible td:nth-child(3)").all_inner_texts()
        return [float(text) for text in texts if text != "–"]

    def test_the_worst_image_comes_first_and_columns_sort(self, tab):
        assert self.scores(tab) == sorted(self.scores(tab), reverse=True)
        assert self.names(tab)[-1] == "good/broken <b>.png"  # without a score
        tab.click("th[data-key=score] button")
        assert self.scores(tab) == sorted(self.scores(tab))
        assert self.names(tab)[-1] == "good/broken <b>.png"
        tab.click("th[data-key=name] button")
        assert self.names(tab)[0].startswith("bent/")
        assert tab.locator("th[data-key=name]").get_attribute("aria-sort") == "ascending"
        assert tab.locator("th[data-key=score]").get_attribute("aria-sort") == "none"
        tab.click("th[data-key=p] button")
        p_values = tab.locator("tbody tr[data-p]").evaluate_all("rows => rows.map(row => +row.dataset.p)")
        assert p_values == sorted(p_values)
        assert len(set(p_values)) > 3

    def test_images_are_found_by_name_verdict_kind_and_score(self, tab):
        everything = self.names(tab)
        tab.fill("#find", "COLOR/")
        assert [name for name in everything if name.startswith("color/")] == self.names(tab)
        tab.click("button[type=reset]")
        tab.wait_for_function("!document.querySelector('tbody tr[hidden]')")
        assert tab.inner_text("#shown") == f"{len(everything)} of {len(everything)} images shown"
        assert self.names(tab) == everything
        tab.select_option("#verdict", "alarm")
        assert set(tab.locator("tbody tr:visible .verdict").all_inner_texts()) == {"alarm"}
        tab.select_option("#kind", "good")
        assert all(name.startswith("good/") for name in self.names(tab))
        tab.select_option("#kind", "")
        tab.select_option("#verdict", "no verdict")
        assert self.names(tab) == ["good/broken <b>.png"]
        tab.select_option("#verdict", "")
        middle = sorted(self.scores(tab))[9]
        tab.fill("#from", str(middle - 0.0001))
        assert min(self.scores(tab)) == middle
        tab.fill("#to", str(middle + 0.0001))
        assert self.scores(tab) == [middle]  # and no unreadable one
        tab.fill("#to", "0")
        assert tab.inner_text("#shown") == "No image is like that."

    def test_heat_maps_can_be_taken_away(self, tab):
        assert tab.locator("tbody .heat").first.is_visible()
        tab.uncheck("#heat")
        assert not tab.locator("tbody .heat").first.is_visible()

    def test_an_overlay_by_keyboard(self, tab):
        names = self.names(tab)
        opener = tab.locator("tbody .open").nth(2)
        opener.focus()
        tab.keyboard.press("Enter")
        title = tab.locator("#zoom-title")
        assert f"{names[2]}: " in title.inner_text()
        assert f"(3 of {len(names) - 1})" in title.inner_text()  # the unreadable one has no picture
        assert tab.evaluate("document.activeElement.id") == "stage"
        outline = tab.evaluate("getComputedStyle(document.activeElement).outline")
        assert "solid" in outline
        assert "3px" in outline
        for key, place in (("n", 3), ("ArrowRight", 4), ("p", 3), ("ArrowLeft", 2), ("PageUp", 1), ("PageDown", 2)):
            tab.keyboard.press(key)
            assert title.inner_text().startswith(names[place])
        tab.keyboard.press("+")
        assert tab.inner_text("#zoom-scale") == "140 %"
        moved = tab.evaluate("document.getElementById('sheet').style.transform")
        tab.keyboard.press("ArrowRight")  # moves what is enlarged
        assert title.inner_text().startswith(names[2])
        assert tab.evaluate("document.getElementById('sheet').style.transform") != moved
        tab.keyboard.press("0")
        assert tab.inner_text("#zoom-scale") == "100 %"
        tab.keyboard.press("h")
        assert tab.locator("#zoom-heat").get_attribute("aria-pressed") == "false"
        for _ in range(14):
            tab.keyboard.press("Tab")
            assert tab.evaluate("(at => at === document.body || !!at.closest('dialog'))(document.activeElement)")
        tab.keyboard.press("Escape")
        assert tab.locator("#zoom").is_hidden()
        assert opener.evaluate("opener => opener === document.activeElement")

    def test_a_slider_lays_the_picture_beside_its_heat_map(self, tab):
        tab.locator("#worst .open").click()
        tab.locator("#compare").focus()
        for _ in range(10):
            tab.keyboard.press("ArrowRight")
        assert tab.evaluate("getComputedStyle(document.getElementById('hot')).clipPath") == "inset(0px 0px 0px 10%)"
        assert tab.locator("#edge").is_visible()
        tab.keyboard.press("Home")
        assert tab.locator("#edge").is_hidden()

    def test_outlines_lie_over_the_picture_and_can_be_taken_away(self, tab, outlined):
        tab.goto(outlined.as_uri())
        tab.locator("#worst .open").click()
        line = tab.locator("#drawn path").last
        assert line.is_visible()
        picture, lines = (tab.locator(name).bounding_box() for name in ("#large", "#drawn svg"))
        assert all(lines[side] == pytest.approx(picture[side], abs=0.5) for side in picture)
        tab.keyboard.press("o")
        assert tab.locator("#zoom-outline").get_attribute("aria-pressed") == "false"
        assert line.is_hidden()
        tab.keyboard.press("Escape")
        tab.locator("tbody tr[data-verdict=good] .open").first.click()
        assert tab.locator("#zoom-outline").is_disabled()
        assert tab.locator("#drawn path").count() == 0

    def test_the_overlay_goes_through_what_is_shown(self, tab):
        tab.select_option("#kind", "color")
        names = self.names(tab)
        tab.locator("tbody tr:visible .open").first.click()
        assert "(1 of 3)" in tab.inner_text("#zoom-title")
        tab.click("#before")  # from the first to the last
        assert tab.inner_text("#zoom-title").startswith(names[-1])
        tab.click("#next")
        tab.click("#zoom-close")
        tab.locator("#worst .open").click()
        assert self.names(tab) == names

    def test_the_worst_picture_opens_as_the_one_it_is_however_the_table_is_sorted(self, tab):
        worst = self.names(tab)[0]
        tab.click("th[data-key=name] button")
        tab.locator("#worst .open").click()
        assert tab.inner_text("#zoom-title").startswith(worst)

    @pytest.mark.parametrize("width", [360, 390, 820, 1280])
    def test_nothing_is_cut_off(self, tab, width):
        tab.set_viewport_size({"width": width, "height": 900})
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert tab.evaluate(fits)
        tab.locator("tbody .open").first.click()
        assert tab.evaluate(fits)
        for name in ("#zoom-close", "#compare", "#about"):
            box = tab.locator(name).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= 900

    @pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
    def test_axe_finds_nothing(self, tab, width, scheme):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        assert violations(tab) == []
        tab.locator("tbody .open").first.click()
        assert violations(tab) == []

    @pytest.mark.parametrize("script", [True, False])
    def test_paper_has_every_line_with_its_picture(self, browser, page, detector, folder, script):
        """Every picture is in the PDF, once: those of the lines, the worst, and the nearest patches."""
        context = browser.new_context(java_script_enabled=script)
        tab = context.new_page()
        tab.goto(page.as_uri())
        pdf = tab.pdf(format="A4")
        context.close()
        shown = set(re.findall(r"data:image/jpeg;base64,[^\"]*", page.read_text()))
        assert len(shown) > len(detector.score(folder))
        assert len(re.findall(rb"/Filter /DCTDecode", pdf)) == len(shown)
        assert 3 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 8

    def test_on_paper_no_line_is_torn_and_nothing_is_dark(self, tab):
        tab.emulate_media(media="print", color_scheme="dark")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.locator("tbody tr").first.evaluate("row => getComputedStyle(row).breakInside") == "avoid"
        assert tab.locator("#filter").is_hidden()
        assert "dark" not in tab.locator(".plot img").first.evaluate("image => image.currentSrc")[:40]
        light = tab.locator(".plot img").first.evaluate("image => image.currentSrc === image.src")
        assert light
