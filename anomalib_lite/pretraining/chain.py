"""Rebuild the built-in network from its first step to the file that ships, each link of its chain by its own code.

    python -m anomalib_lite.pretraining.chain --teachers FOLDER -o builtin.safetensors --work work

Six trainings followed one another, and what they learn from was changed between them (`docs/model-card.md`). So each
is run from the commit that has its code, which takes a clone of the repository with its history. Begun again, it goes
on: links that are done are not trained again, and one that was killed goes on from its checkpoint. `--trial` takes two
steps of every link on few images, to see in minutes that all is there before hours are spent.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

WIDER = ("--widths", "64", "112", "224", "--lr", "0.006")


@dataclass(frozen=True)
class Link:
    """One training: the commit of its code, the teachers in their order, what else it is told, and where it stops."""

    name: str
    commit: str
    teachers: tuple[str, ...]
    images: int
    steps: int
    stops_at: int
    told: tuple[str, ...] = WIDER


THREE = ("inception_v3", "mobilenet_v2", "resnet18")
LINKS = (
    Link("first", "51076e7", ("resnet18",), 16_000, 7000, 7000, told=()),
    Link("nothing-shaken", "7b68204", THREE, 12_000, 3000, 3000),
    Link("shaken", "1f160a0", THREE, 24_000, 3000, 3000),
    Link("other", "4c5a72d", ("inception_v3", "mobilenet_v2+other", "resnet18"), 24_000, 4200, 3250),
    Link("apart", "4c5a72d", ("inception_v3", "mobilenet_v2+other", "mobilenet_v2", "resnet18"), 24_000, 2500, 2500),
    Link("placed", "1eed970", ("inception_v3", "mobilenet_v2+other", "mobilenet_v2", "resnet18"), 24_000, 4500, 4500),
)
_TRIAL_IMAGES, _TRIAL_STEPS = 640, 2
# Run in the folder of a link's code: its training, ended when the weights of a step are written, though its learning
# rates were planned for more; that code cannot be asked to.
_ENDING = """
import sys
from anomalib_lite.pretraining import __main__ as pretraining
last, train = int(sys.argv.pop(1)), pretraining.train
def ending(*given, report, **told):
    def reported(step, *rest):
        report(step, *rest)
        if step > last:
            sys.exit(f"step {last} was passed without its weights being kept; remove the checkpoint to train anew")
        if step == last:
            sys.exit(0)
    return train(*given, report=reported, **told)
pretraining.train = ending
pretraining.main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, required=True, help="folder of weights: resnet18.pth, …")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the weights, .safetensors")
    parser.add_argument("--work", type=Path, default=Path("pretraining-chain"), help="code, pools, checkpoints, links")
    parser.add_argument("--trial", action="store_true", help="two steps of every link on few images")
    arguments = parser.parse_args()
    teachers, work = arguments.teachers.resolve(), arguments.work.resolve() / ("trial" if arguments.trial else "links")
    for name in sorted({name for link in LINKS for name in link.teachers}):
        if not (teachers / f"{name}.pth").is_file():
            parser.error(f"{teachers} has no {name}.pth; docs/model-card.md says where each is from")
    codes = {link.commit: code_of(link.commit, work.parent / "code") for link in LINKS}
    done: Path | None = None
    for link in LINKS:
        done = trained(link, codes[link.commit], teachers, work, begin=done, trial=arguments.trial)
    assert done is not None
    shutil.copyfile(done, arguments.output)


def code_of(commit: str, folder: Path) -> Path:
    """The package as it was at a commit, unpacked into a folder of its own."""
    code = folder / commit
    if not code.is_dir():
        repository = Path(__file__).resolve().parents[2]
        command = ["git", "-C", str(repository), "archive", commit, "anomalib_lite"]
        found = subprocess.run(command, capture_output=True)
        if found.returncode:
            raise SystemExit(
                f"{repository} does not have commit {commit}: run this in a clone of the repository with its whole "
                f"history (git: {found.stderr.decode(errors='replace').strip()})"
            )
        unfinished = folder / f"{commit}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(unfinished, filter="data")
        unfinished.rename(code)
    return code


def command_of(link: Link, teachers: Path, work: Path, *, begin: Path | None, trial: bool) -> list[str]:
    """What trains a link, to be run in the folder of its code; the weights become `work` / trained / its name."""
    steps, images = (_TRIAL_STEPS, _TRIAL_IMAGES) if trial else (link.steps, link.images)
    last = (1 if link.stops_at < link.steps else steps) if trial else link.stops_at
    told = [*link.told, "--images", str(images), "--steps", str(steps), *(["--report-every", "1"] if trial else [])]
    if begin is None:  # the first had one teacher, named by its file
        told += ["--teacher", str(teachers / f"{link.teachers[0]}.pth")]
    else:
        told += ["--begin", str(begin), "--teachers", str(teachers), "--teacher", *link.teachers]
    told += ["--work", str(work / "pools"), "-o", str(_being_trained(link, work))]
    return [sys.executable, "-c", _ENDING, str(last), *told]


def trained(link: Link, code: Path, teachers: Path, work: Path, *, begin: Path | None, trial: bool) -> Path:
    """The weights of a link, trained unless they are there."""
    done = work / f"{link.name}.safetensors"
    if done.exists():
        return done
    print(f"{link.name}: commit {link.commit}", flush=True)
    output = _being_trained(link, work)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = command_of(link, teachers, work, begin=begin, trial=trial)
    ended = subprocess.run(command, cwd=code, env={**os.environ, "PYTHONPATH": str(code)})
    if ended.returncode:
        raise SystemExit(f"{link.name} ended with {ended.returncode}; run the same command again to go on")
    output.rename(done)
    return done


def _being_trained(link: Link, work: Path) -> Path:
    return work / "trained" / f"{link.name}.safetensors"


if __name__ == "__main__":
    main()
