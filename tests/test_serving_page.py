"""The page of the server in a real browser: a part alarms, is said to be good, is learnt, released and taken back."""

import shutil
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="fastapi, of the extra [serve], is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright import sync_api
from serving import encoded, part, running, small_detector, spoilt

from anomalib_lite.serving.access import Settings
from anomalib_lite.serving.app import make_app
from anomalib_lite.serving.server import open_lines

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


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
            expect(page.locator("#proposal")).to_contain_text("1 false alarms cured, 0 defects lost")
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
            page.get_by_role("button", name="Look").first.click()
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
