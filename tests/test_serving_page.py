"""The page of the server in a real browser: a part alarms, is said to be good, is learnt, released and taken back."""

import urllib.request

import pytest

pytest.importorskip("fastapi", reason="fastapi, of the extra [serve], is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from browser import violations
from playwright import sync_api
from serving import encoded, part, running, small_detector, spoilt

from anomalib_lite.serving.access import Settings
from anomalib_lite.serving.app import make_app
from anomalib_lite.serving.server import open_lines

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_detector().save(tmp_path_factory.mktemp("model") / "nut.safetensors")


@pytest.fixture
def opened(model, tmp_path):
    lines, history = open_lines(tmp_path / "server", {"nut": model})
    yield lines, history
    for line in lines.values():
        line.stop()
    history.close()


def post(address, pixels, name, token=""):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}/v1/models/nut/score?name={name}", encoded(pixels), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 820, "height": 1180})  # a tablet held upright
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    assert page.errors == []
    page.close()


class TestPage:
    def test_from_an_alarm_to_a_new_version_and_back(self, opened, page):
        expect = sync_api.expect
        with running(make_app(*opened)) as address:
            page.goto(address)
            expect(page.locator("#verdict")).to_have_text("waiting for parts")
            post(address, part(50), "first")
            expect(page.locator("#verdict")).to_have_text("good")
            post(address, spoilt(51), "spoilt")
            expect(page.locator("#verdict")).to_have_text("alarm")
            page.keyboard.press("b")
            expect(page.locator("#said")).to_contain_text("it was bad")
            post(address, part(60, green=True), "green")
            expect(page.locator("#name")).to_contain_text("green")
            expect(page.locator("#verdict")).to_have_text("alarm")
            assert page.locator("#picture").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
            page.keyboard.press("g")
            expect(page.locator("#said")).to_contain_text("it was good")
            page.keyboard.press("u")
            expect(page.locator("#said")).to_contain_text("Nobody")
            page.get_by_role("button", name="It was good").click()
            expect(page.locator("#said")).to_contain_text("it was good")
            expect(page.locator("#strip button")).to_have_count(3)

            page.get_by_role("button", name="Propose a new version").click()
            expect(page.locator("#proposal")).to_contain_text("1 false alarm cured, 0 defects lost")
            expect(page.locator("#comparison tr")).to_have_count(4)
            post(address, part(60, green=True), "again")
            expect(page.locator("#name")).to_contain_text("again")
            expect(page.locator("#verdict")).to_have_text("alarm")  # nothing changes by itself
            page.get_by_role("button", name="Release").click()
            expect(page.locator("#version")).to_contain_text("version 2")
            post(address, part(60, green=True), "cured")
            expect(page.locator("#name")).to_contain_text("cured")
            expect(page.locator("#verdict")).to_have_text("good")
            page.get_by_role("button", name="Go back to it").click()
            expect(page.locator("#version")).to_contain_text("version 1")
            post(address, part(60, green=True), "back-again")
            expect(page.locator("#name")).to_contain_text("back-again")
            expect(page.locator("#verdict")).to_have_text("alarm")

    def test_by_keyboard_through_the_last_ones(self, opened, page):
        expect = sync_api.expect
        with running(make_app(*opened)) as address:
            for name, pixels in (("one", part(50)), ("two", part(52)), ("three", spoilt(51))):
                post(address, pixels, name)
            page.goto(address)
            expect(page.locator("#name")).to_contain_text("three")
            page.keyboard.press("ArrowRight")
            expect(page.locator("#name")).to_contain_text("two")
            expect(page.locator("#follow")).to_have_attribute("aria-pressed", "false")
            post(address, part(53), "four")
            expect(page.locator("#strip button")).to_have_count(4)
            expect(page.locator("#name")).to_contain_text("two")  # what one looks at stays
            page.keyboard.press("l")
            expect(page.locator("#name")).to_contain_text("four")
            page.keyboard.press("h")
            expect(page.locator("#heat")).to_have_attribute("aria-pressed", "false")
            # By its name: a good one may stand before it, of the sample of what passed.
            page.locator("#queue li", has_text="three").get_by_role("button", name="Look").click()
            expect(page.locator("#name")).to_contain_text("three")

    def test_with_a_token(self, opened, page):
        expect = sync_api.expect
        with running(make_app(*opened, Settings(tokens={TOKEN: "line"}))) as address:
            post(address, part(50), "first", TOKEN)
            page.goto(address)
            expect(page.locator("#login")).to_be_visible()
            expect(page.locator("#main")).to_be_hidden()
            page.fill("#token", "wrong")
            page.get_by_role("button", name="Enter").click()
            expect(page.locator("#refused")).to_have_text("That token is not known.")
            page.fill("#token", TOKEN)
            page.get_by_role("button", name="Enter").click()
            expect(page.locator("#verdict")).to_have_text("good")

    def test_a_picture_large_by_keyboard_and_wheel(self, opened, page):
        expect = sync_api.expect
        with running(make_app(*opened)) as address:
            post(address, spoilt(51), "spoilt")
            page.goto(address)
            expect(page.locator("#enlarge")).to_be_visible()
            page.keyboard.press("z")
            expect(page.locator("#zoom")).to_be_visible()
            expect(page.locator("#zoom-title")).to_have_text("spoilt: alarm")
            expect(page.locator("#stage")).to_be_focused()
            expect(page.locator("#lines path").first).to_be_attached()
            expect(page.locator("#zoom-scale")).to_have_text("100 %")
            page.keyboard.press("+")
            expect(page.locator("#zoom-scale")).to_have_text("140 %")
            page.locator("#zoom-out").click()
            expect(page.locator("#zoom-scale")).to_have_text("100 %")
            page.locator("#stage").hover()
            page.mouse.wheel(0, -100)
            expect(page.locator("#zoom-scale")).to_have_text("118 %")
            before = page.locator("#sheet").evaluate("sheet => sheet.style.transform")
            page.keyboard.press("ArrowRight")
            page.mouse.down()
            page.mouse.move(300, 300)
            page.mouse.up()
            assert page.locator("#sheet").evaluate("sheet => sheet.style.transform") != before
            page.keyboard.press("o")
            expect(page.locator("#zoom-outline")).to_have_attribute("aria-pressed", "false")
            expect(page.locator("#lines")).to_be_hidden()
            page.keyboard.press("h")
            expect(page.locator("#zoom-heat")).to_have_attribute("aria-pressed", "false")
            page.keyboard.press("b")  # keys of what lies behind are not meant
            for _ in range(12):
                page.keyboard.press("Tab")
                assert page.evaluate(
                    "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
                )
            page.keyboard.press("Escape")
            expect(page.locator("#zoom")).to_be_hidden()
            expect(page.locator("#enlarge")).to_be_focused()
            expect(page.locator("#said")).to_contain_text("Nobody")

    def test_charts_say_what_they_show(self, opened, page):
        expect = sync_api.expect
        with running(make_app(*opened)) as address:
            for seed in (50, 52, 53):
                post(address, part(seed), str(seed))
            post(address, spoilt(51), "spoilt")
            page.goto(address)
            expect(page.locator("#name")).to_contain_text("spoilt")
            for name, text in (("rate", "the last 4 parts: 25 %"), ("drift", "Evidence"), ("latency", "median")):
                told = page.locator(f"#{name}-chart svg").get_attribute("aria-label")
                assert text in told
            expect(page.locator("#rate")).to_contain_text("chance allows")
            expect(page.locator("#latency")).to_contain_text("Half of the verdicts")
            assert page.locator("#rate-chart .band").count() == 1

    def test_what_good_looks_like(self, opened, page):
        expect = sync_api.expect
        with running(make_app(*opened)) as address:
            post(address, part(50), "good")
            page.goto(address)
            expect(page.locator("#verdict")).to_have_text("good")
            expect(page.locator("#beside")).to_be_hidden()
            post(address, spoilt(51), "spoilt")
            expect(page.locator("#beside-told")).to_contain_text("--good PART=FOLDER")
            expect(page.locator("#beside-good")).to_be_hidden()
            opened[0]["nut"].good = opened[0]["nut"].judge.detector.open([part(i) for i in range(24)])
            page.reload()
            expect(page.locator("#beside-told")).to_contain_text("Good, from image_")
            for side in ("part", "good"):
                assert page.locator(f"#beside-{side}").evaluate(
                    "image => image.decode().then(() => image.naturalWidth)"
                )

    def test_another_threshold_and_what_it_changes(self, opened, page):
        expect = sync_api.expect
        with running(make_app(*opened)) as address:
            post(address, spoilt(51), "spoilt")
            page.goto(address)
            expect(page.locator("#verdict")).to_have_text("alarm")
            page.keyboard.press("b")
            expect(page.locator("#confirmed")).to_contain_text("1 bad")
            page.get_by_label("Lower it until").check()
            page.get_by_role("button", name="Propose a new version").click()
            expect(page.locator("#proposal")).to_contain_text("already")
            page.fill("#percent", "0.1")
            expect(page.locator("#by-rate")).to_be_checked()
            page.keyboard.press("Enter")
            expect(page.locator("#proposal")).to_contain_text("threshold for 0.1 % of good parts")
            expect(page.locator(".doubts")).to_contain_text("cannot be promised")
            post(address, part(60, green=True), "green")
            expect(page.locator("#name")).to_contain_text("green")
            page.get_by_label("Leave it").check()
            page.keyboard.press("g")
            expect(page.locator("#confirmed")).to_contain_text("1 good, 1 of them alarms")
            page.get_by_role("button", name="Propose a new version").click()
            cured = page.locator("#comparison .thumbs button")
            expect(cured).to_have_count(1)
            post(address, part(50), "later")
            expect(page.locator("#name")).to_contain_text("later")
            cured.click()
            expect(page.locator("#name")).to_contain_text("green")

    def test_on_paper(self, opened, page):
        with running(make_app(*opened)) as address:
            post(address, spoilt(51), "spoilt")
            page.goto(address)
            sync_api.expect(page.locator("#verdict")).to_have_text("alarm")
            page.emulate_media(media="print")
            for name in ("#good", "#propose", "#percent", "#more"):
                sync_api.expect(page.locator(name)).to_be_hidden()
            sync_api.expect(page.locator("#verdict")).to_be_visible()

    @pytest.mark.parametrize("width", [360, 820, 1280])
    def test_nothing_is_cut_off(self, opened, page, width):
        with running(make_app(*opened)) as address:
            post(address, part(50), "a-name-without-a-space-" * 8)
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(address)
            sync_api.expect(page.locator("#verdict")).to_have_text("good")
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    def test_a_strangers_name_is_text(self, opened, page):
        with running(make_app(*opened)) as address:
            post(address, spoilt(51), "%3Cimg%20src%3Dx%20onerror%3Ddocument.title%3D1%3E")
            page.goto(address)
            sync_api.expect(page.locator("#name")).to_contain_text("<img src=x")
            assert page.title() == "anomalib_lite"

    @pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
    def test_axe_finds_nothing(self, opened, browser, width, scheme):
        expect = sync_api.expect
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        with running(make_app(*opened)) as address:
            post(address, part(50), "good")
            post(address, spoilt(51), "spoilt")
            page.goto(address)
            expect(page.locator("#beside-told")).to_contain_text("--good")
            expect(page.locator("#rate-chart svg")).to_be_visible()
            assert violations(page) == []
            page.keyboard.press("z")
            expect(page.locator("#lines path").first).to_be_attached()
            assert violations(page) == []
        page.close()

    def test_axe_finds_nothing_where_a_token_is_asked_for(self, opened, page):
        with running(make_app(*opened, Settings(tokens={TOKEN: "line"}))) as address:
            page.goto(address)
            sync_api.expect(page.locator("#login")).to_be_visible()
            assert violations(page) == []
