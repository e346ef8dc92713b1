"""A real browser for the tests of pages, and axe-core, which finds what those who do not see them well would miss."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_BY_CI = Path(__file__).parents[1] / ".venv/node_modules/axe-core/axe.min.js"  # where .ci/run puts it


@contextmanager
def launched():
    """Chromium through playwright; a skip where either is not there."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        yield browser
        browser.close()


def violations(page):
    """What axe-core finds wrong with a page as it is now: rule, and the first places."""
    script = Path(os.environ.get("ANOMALIB_LITE_AXE", _BY_CI))
    if not script.is_file():
        pytest.skip(f"axe-core is not installed: no {script.name} in .venv, and ANOMALIB_LITE_AXE names none")
    if not page.evaluate("'axe' in window"):
        page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run()")
    assert len(found["passes"]) > 10  # it has looked
    return [
        (rule["id"], [(node["html"][:160], node["any"][:1]) for node in rule["nodes"][:3]])
        for rule in found["violations"]
    ]
