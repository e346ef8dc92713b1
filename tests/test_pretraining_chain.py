"""The chain of trainings that the shipped weights came from: its commands, where it stops, and how it goes on."""

import subprocess
from pathlib import Path

import pytest

from anomalib_lite.pretraining import chain
from anomalib_lite.pretraining.chain import LINKS, Link, code_of, command_of, trained

# In place of the package of a commit: it tells of steps, writes the weights at each, and counts its runs.
STAND_IN = """
import argparse
from pathlib import Path

def train(steps, begin=1, *, report):
    for step in range(begin, steps + 1):
        report(step, 1.0)

def main():
    parser = argparse.ArgumentParser()
    for name in ("--images", "--steps", "--teachers", "--begin", "--work", "-o", "--report-every"):
        parser.add_argument(name)
    parser.add_argument("--teacher", nargs="+")
    told = parser.parse_args()
    work = Path(told.work)
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "runs", "a") as runs:
        runs.write("run\\n")
    if (work / "broken").exists():
        raise SystemExit(3)
    begin = 4 if (work / "passed").exists() else 1
    train(int(told.steps), begin, report=lambda step, loss: Path(told.o).write_text(f"step {step} after {told.begin}"))
"""


@pytest.fixture
def code(tmp_path):
    package = tmp_path / "code" / "anomalib_lite" / "pretraining"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(STAND_IN)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    return tmp_path / "code"


def link(**changed):
    return Link(**{"name": "a", "commit": "c", "teachers": ("t",), "images": 9, "steps": 5, "stops_at": 5, **changed})


class TestLink:
    def test_is_trained_once(self, code, tmp_path):
        for _ in range(2):
            done = trained(link(told=()), code, tmp_path, tmp_path / "w", begin=Path("before"), trial=False)
            assert done.read_text() == "step 5 after before"
        assert (tmp_path / "w" / "pools" / "runs").read_text() == "run\n"

    def test_ends_with_the_weights_of_its_last_step(self, code, tmp_path):
        done = trained(link(told=(), stops_at=3), code, tmp_path, tmp_path / "w", begin=Path("b"), trial=False)
        assert done.read_text() == "step 3 after b"

    def test_that_fails_leaves_nothing_that_looks_done(self, code, tmp_path):
        (tmp_path / "w" / "pools").mkdir(parents=True)
        (tmp_path / "w" / "pools" / "broken").touch()
        with pytest.raises(SystemExit, match="a ended with 3; run the same command again"):
            trained(link(told=()), code, tmp_path, tmp_path / "w", begin=Path("b"), trial=False)
        assert not list((tmp_path / "w").glob("*.safetensors"))

    def test_that_went_on_where_it_was_to_stop_is_not_taken(self, code, tmp_path, capfd):
        (tmp_path / "w" / "pools").mkdir(parents=True)
        (tmp_path / "w" / "pools" / "passed").touch()
        with pytest.raises(SystemExit, match="a ended with 1"):
            trained(link(told=(), stops_at=3), code, tmp_path, tmp_path / "w", begin=Path("b"), trial=False)
        assert "step 3 was passed" in capfd.readouterr().err
        assert not list((tmp_path / "w").glob("*.safetensors"))


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    repository = Path(chain.__file__).parents[2]
    for commit in {link.commit for link in LINKS}:
        known = ["git", "-C", str(repository), "cat-file", "-e", f"{commit}^{{commit}}"]
        if subprocess.run(known, capture_output=True).returncode:
            pytest.skip(f"the history does not reach back to commit {commit}")
    return {link.commit: code_of(link.commit, folder) for link in LINKS}


class TestChain:
    @pytest.mark.parametrize("trial", [False, True])
    @pytest.mark.parametrize("number", range(len(LINKS)))
    def test_every_link_is_told_only_what_its_code_knows(self, codes, number, trial):
        begin = Path("before.safetensors") if number else None
        command = command_of(LINKS[number], Path("teachers"), Path("work"), begin=begin, trial=trial)
        main = (codes[LINKS[number].commit] / "anomalib_lite" / "pretraining" / "__main__.py").read_text()
        told = [part for part in command if part.startswith("--")]
        assert told
        assert all(f'"{option}"' in main for option in told)
        assert "    train(\n" in main  # which is what is made to end
        assert "report=report" in main
        teachers = (codes[LINKS[number].commit] / "anomalib_lite" / "pretraining" / "distillation.py").read_text()
        assert all(teacher.partition("+")[0] in teachers.lower() for teacher in LINKS[number].teachers)

    def test_a_commit_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(SystemExit, match="does not have commit 0123abc: run this in a clone"):
            code_of("0123abc", tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_teacher_that_is_missing_is_named_before_anything_runs(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(
            "sys.argv", ["chain", "--teachers", str(tmp_path), "-o", "x", "--work", str(tmp_path / "w")]
        )
        with pytest.raises(SystemExit):
            chain.main()
        assert "has no inception_v3.pth" in capsys.readouterr().err
        assert not (tmp_path / "w").exists()
