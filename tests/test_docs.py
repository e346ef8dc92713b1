"""Every code block of the documentation runs, in a folder of its own, page by page."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.M | re.S)
FIGURE = re.compile(r"!\[([^\]]*)\]\(([^)]*)\)|<img\b[^>]*>")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def blocks(page):
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_every_block_runs(page, tmp_path, monkeypatch, capsys):
    from anomalib_lite import make_metal_nut

    monkeypatch.chdir(tmp_path)
    if "make_metal_nut(" not in page.read_text().split("```bash")[0]:
        make_metal_nut(tmp_path / "metal_nut", n_train=20, n_good=5, n_defect=2, size=128)
    names: dict = {}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, f"{page.name}", "exec"), names)
            continue
        for line in code.strip().splitlines():
            command = shlex.split(line)
            assert command[0] == "anomalib-lite", line
            done = subprocess.run(
                [sys.executable, "-m", "anomalib_lite.cli", *command[1:]], capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert page.relative_to(ROOT / "docs").as_posix() in menu


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_figures_say_what_they_show_and_are_small(page):
    for figure in FIGURE.finditer(page.read_text(encoding="utf-8")):
        assert len((figure[1] or "").split()) >= 4, f"{figure[0]}: what does it show, in words?"
        if figure[2].startswith(("pictures/gallery_", "../pictures/gallery_")):
            assert (page.parent / figure[2]).stat().st_size < 60_000


def test_every_picture_is_shown():
    shown = {Path(figure[2]).name for page in PAGES for figure in FIGURE.finditer(page.read_text(encoding="utf-8"))}
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} == shown
