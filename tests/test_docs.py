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
