"""The command line: parses, calls the library, prints. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done; 1 done, but something was unreadable and --strict was set; 2 wrong usage or input; 3 an alarm, with
--fail-on-alarm; 4 no verdict: of `score` and `report` on any image, of `watch --once` on one.
"""

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anomalib_lite.comparison import commands as comparing
from anomalib_lite.diagnosis import commands as diagnosing
from anomalib_lite.exporting.commands import export
from anomalib_lite.flags import (
    DecimalComma,
    Device,
    Download,
    EverythingIsGood,
    FailOnAlarm,
    Groups,
    Json,
    MaxPixels,
    Strict,
    Weights,
    counts,
    finish,
    finish_scored,
    finish_verdicts,
    loaded,
    tell,
    with_detector_flags,
)
from anomalib_lite.scaling.commands import score_to_parquet
from anomalib_lite.serving import commands as serving


class _Commands(TyperGroup):
    """The commands, each with its whole first sentence: click cuts it off at a line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            said = {
                name: " ".join((command.help or "").split("\n\n")[0].split()) for name, command in self.commands.items()
            }
            formatter.write_dl([(name, said[name]) for name in self.list_commands(ctx)])


app = typer.Typer(
    name="anomalib-lite",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # which would take the brackets of [default: 5] for markup
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        from anomalib_lite.version import __version__

        typer.echo(f"anomalib-lite {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """Find the bad part among good ones: fit on pictures of good parts, score new ones."""


def _path_or_url(text: str) -> Any:
    return text if "://" in text else Path(text)  # a path would lose one of the two slashes


@app.command()
@with_detector_flags
def demo(
    parameters: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the results")] = Path("demo-output"),
) -> None:
    """Draw synthetic parts, fit on the good ones, score the rest; needs no data and no network."""
    from anomalib_lite.demo import run_demo
    from anomalib_lite.files.atomic import saved_in

    saved_in(output)
    tell(run_demo(output, **parameters))


@app.command()
@with_detector_flags
def fit(
    parameters: dict[str, Any],
    good: Annotated[
        Any, typer.Argument(parser=_path_or_url, metavar="GOOD", help="folder of good images, or URL such as s3://…")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file to write")] = Path("model.safetensors"),
    include_backbone: Annotated[
        bool, typer.Option("--include-backbone", help="store the backbone's weights in the model file")
    ] = False,
    groups: Groups = None,
    everything_is_good: EverythingIsGood = False,
    strict: Strict = False,
) -> None:
    """Fit a detector on a folder of good images."""
    from anomalib_lite.detector import Detector
    from anomalib_lite.files.atomic import saved_to

    saved_to(output)
    detector = Detector(**parameters).fit(good, groups=groups, everything_is_good=everything_is_good)
    detector.save(output, include_backbone=include_backbone)
    typer.echo(f"fitted on {detector.n_train_} images, saved to {output}")
    tell(detector.seen_as())
    tell(detector.explain())
    finish(detector.unreadable_, strict)


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    images: Annotated[
        list[Any],
        typer.Argument(parser=_path_or_url, metavar="IMAGES", help="images, folders of them, or URLs such as s3://…"),
    ],
    csv: Annotated[Path | None, typer.Option(help="write the scores to this CSV file")] = None,
    decimal_comma: DecimalComma = False,
    overlays: Annotated[Path | None, typer.Option(help="write heat maps over the images to this folder")] = None,
    regions: Annotated[Path | None, typer.Option(help="write one line per defect's region to this CSV file")] = None,
    coco: Annotated[Path | None, typer.Option(help="write the regions to this COCO JSON file")] = None,
    masks: Annotated[Path | None, typer.Option(help="write the regions as mask PNGs to this folder")] = None,
    maps: Annotated[Path | None, typer.Option(help="write the anomaly maps to this folder")] = None,
    map_format: Annotated[str, typer.Option(help="npy, tiff (32-bit floats) or png (16 bits)")] = "npy",
    min_area: Annotated[float, typer.Option(help="smallest region told: pixels, or mm² if their size is known")] = 0.0,
    max_regions: Annotated[int | None, typer.Option(help="most regions told of a picture")] = None,
    weights: Weights = None,
    download: Download = False,
    device: Device = None,
    max_pixels: MaxPixels = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="another rate than it was fitted for; the model file stays as it is")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="alarm above this score instead")] = None,
    look_again: Annotated[
        float | None, typer.Option(help="a second, larger rate (or lower threshold): look at those images again")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="write scores to a folder of Parquet files as they come; go on with one")
    ] = None,
    chunk: Annotated[int | None, typer.Option(help="images of a Parquet file [default: 256]")] = None,
    as_json: Json = False,
    strict: Strict = False,
    fail_on_alarm: FailOnAlarm = False,
) -> None:
    """Score images with a fitted detector.

    The exit code is 4 if no image can be read, else 1 with --strict and an unreadable one, else 3 with --fail-on-alarm
    and an alarm.
    """
    from anomalib_lite.files.atomic import saved_in, saved_to
    from anomalib_lite.machine.progress import DRAWING, work
    from anomalib_lite.plotting.picture_folder import picture_folder
    from anomalib_lite.plotting.region_files import MAP_FORMATS

    for file in (csv, regions, coco):
        if file is not None:
            saved_to(file)
    folders = [folder for folder in (overlays, masks, maps) if folder is not None]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("--overlays, --masks and --maps each need a folder of their own")
    for folder in folders:
        picture_folder(saved_in(folder))
    if parquet is not None:
        saved_in(parquet)
    if map_format not in MAP_FORMATS:
        raise ValueError(f"--map-format {map_format}: choose one of {', '.join(MAP_FORMATS)}")
    limits: dict[str, Any] = {"min_area": min_area, "max_regions": max_regions}
    if false_alarm_rate is not None and threshold is not None:
        raise ValueError("--false-alarm-rate and --threshold both set the threshold; give one of them")
    detector = loaded(model, weights, download, device, max_pixels)
    if threshold is not None:
        detector = detector.at_threshold(threshold, look_again=look_again)
    elif false_alarm_rate is not None:
        detector = detector.at_rate(false_alarm_rate, look_again=look_again)
    elif look_again is not None:  # beside the threshold it has
        fixed = detector.fitted_.calibration.fixed
        if fixed is not None:
            detector = detector.at_threshold(fixed, look_again=look_again)
        else:
            detector = detector.at_rate(detector.false_alarm_rate, look_again=look_again)
    source = images[0] if len(images) == 1 else list(images)
    if parquet is not None:
        others = {"--csv": csv, "--overlays": overlays, "--regions": regions, "--coco": coco}
        others |= {"--masks": masks, "--maps": maps}
        written = score_to_parquet(detector, source, parquet, chunk=chunk, as_json=as_json, others=others)
        finish_verdicts(written.verdicts, strict, fail_on_alarm)
        return
    with work(None, *[DRAWING for _ in folders]):
        scores = detector.score(source)
        if overlays is not None:
            scores.save_overlays(overlays, source)
        if masks is not None:
            scores.save_masks(masks, **limits)
        if maps is not None:
            scores.save_maps(maps, map_format)
    if csv is not None:
        scores.to_csv(csv, overlays=overlays, decimal_comma=decimal_comma)
    if regions is not None:
        scores.regions_to_csv(regions, **limits, decimal_comma=decimal_comma)
    if coco is not None:
        scores.to_coco(coco, **limits)
    if as_json:
        typer.echo(json.dumps(scores.to_dict(**limits)))
    elif len(scores):
        _print_table(scores)
    for image_id, note in scores.notes.items():
        tell(f"note: {image_id}: {note}", err=True)
    finish_scored(scores, strict, fail_on_alarm)


app.command()(serving.watch)
app.command()(serving.serve)
app.command("serve-demo")(serving.serve_demo)
app.command()(serving.history)
app.command()(export)


@app.command()
def recalibrate(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    good: Annotated[Path, typer.Argument(help="folder of fresh good images, not learnt from")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file to write; may be the same")],
    mode: Annotated[str, typer.Option(help="replace the old calibration, or extend it")] = "replace",
    false_alarm_rate: Annotated[float | None, typer.Option(help="another rate than before")] = None,
    groups: Groups = None,
    everything_is_good: EverythingIsGood = False,
    weights: Weights = None,
    download: Download = False,
    device: Device = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Set the threshold of a model from fresh good images, such as under a new light, without a refit."""
    from anomalib_lite.files.atomic import saved_to

    saved_to(output)
    detector = loaded(model, weights, download, device, max_pixels)
    before = detector.fitted_.calibration.threshold
    detector = detector.recalibrate(good, mode=mode, groups=groups, everything_is_good=everything_is_good)
    if false_alarm_rate is not None:
        detector = detector.at_rate(false_alarm_rate)
    detector.save(output)
    typer.echo(f"threshold {before:.6g} → {detector.fitted_.calibration.threshold:.6g}, saved to {output}")
    tell(detector.explain())


@app.command()
def add(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    good: Annotated[Path, typer.Argument(help="folder of more good images")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file to write; may be the same")],
    calibrating: Annotated[
        bool, typer.Option(help="whether they set the threshold too; not for parts picked out because they alarmed")
    ] = True,
    groups: Groups = None,
    everything_is_good: EverythingIsGood = False,
    weights: Weights = None,
    download: Download = False,
    device: Device = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Learn more good images, such as false alarms (with --no-calibrating), in a fraction of a refit's time."""
    from anomalib_lite.files.atomic import saved_to

    saved_to(output)
    before = loaded(model, weights, download, device, max_pixels)
    detector = before.add(good, groups=groups, everything_is_good=everything_is_good, calibrating=calibrating)
    detector.save(output)
    old, new = before.fitted_.calibration.threshold, detector.fitted_.calibration.threshold
    typer.echo(f"{detector.n_train_ - before.n_train_} more images learnt from, {detector.n_train_} in all")
    typer.echo(f"threshold {old:.6g} → {new:.6g}, saved to {output}")
    tell(detector.explain())


@app.command()
@with_detector_flags
def evaluate(
    parameters: dict[str, Any],
    dataset: Annotated[
        str, typer.Argument(help="folder in MVTec AD layout, or its URL: train/good, test/<kind>, ground_truth")
    ],
    groups: Groups = None,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Fit on train/good of a data set, score its test/, and print every metric."""
    from anomalib_lite.evaluation.measuring import evaluate as run

    evaluation = run(dataset, groups=groups, **parameters)
    if as_json:
        typer.echo(evaluation.to_json())
    else:
        tell(evaluation.to_text())
    finish(evaluation.unreadable, strict)


app.command()(with_detector_flags(diagnosing.diagnose))
app.command()(diagnosing.capability)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    images: Annotated[list[Path], typer.Argument(help="images, or folders of images")],
    output: Annotated[Path, typer.Option("--output", "-o", help="page to write")] = Path("report.html"),
    good: Annotated[
        Path | None, typer.Option(help="the good images it was fitted on, to show them beside the new ones")
    ] = None,
    weights: Weights = None,
    download: Download = False,
    device: Device = None,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
    fail_on_alarm: FailOnAlarm = False,
) -> None:
    """Score images and write one HTML page to look at: scores, heat maps, figures, settings."""
    from anomalib_lite.detecting.scoring import SCORING
    from anomalib_lite.embedding.streaming import WHOLE
    from anomalib_lite.files.atomic import saved_to
    from anomalib_lite.machine.progress import DRAWING, work
    from anomalib_lite.report.page import write_report
    from anomalib_lite.report.pictures import Thumbnails

    saved_to(output)
    detector = loaded(model, weights, download, device, max_pixels)
    source = Thumbnails(detector.open(images[0] if len(images) == 1 else list(images)))
    with work(None, SCORING, *([] if good is None else [WHOLE]), DRAWING):
        scores = detector.score(source, vectors=True)
        if len(scores):
            write_report(detector, source, output, training_images=good, scores=scores)
    if len(scores):
        typer.echo(f"{len(scores)} images, {int(scores.alarms.sum())} alarms: {output}")
    finish_scored(scores, strict, fail_on_alarm)


app.command()(comparing.compare)


@app.command()
def download(
    category: Annotated[str, typer.Argument(help="category of MVTec AD")] = "metal_nut",
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to put it in")] = Path(),
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="accept CC BY-NC-SA 4.0, non-commercial use only")
    ] = False,
    url: Annotated[str | None, typer.Option(help="another place to fetch the archive from")] = None,
    sha256: Annotated[str | None, typer.Option(help="checksum the archive must have")] = None,
) -> None:
    """Download a category of MVTec AD, verify it and unpack it."""
    from anomalib_lite.files.atomic import saved_in
    from anomalib_lite.images.download import download as run

    saved_in(output)
    folder = run(category, output, accept_license=accept_license, url=url, sha256=sha256)
    typer.echo(f"{folder} is ready; try: anomalib-lite evaluate {folder}")


@app.command()
def doctor(
    backbone: Annotated[str, typer.Option(help="networks to measure, comma-separated")] = "builtin,resnet18",
    image_size: Annotated[str, typer.Option(help="sides of the pictures in pixels, comma-separated")] = "256,384,512",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    again: Annotated[bool, typer.Option("--again", help="forget what was measured before")] = False,
    as_json: Json = False,
) -> None:
    """Tell what this machine computes with, how quickly, and what is chosen for it."""
    from anomalib_lite.doctor import examine

    sizes = counts(image_size, "--image-size")
    found = examine(backbones=backbone.split(","), sizes=sizes, device=device, again=again)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        tell(found.explain())


def main() -> None:
    """Run the command line; wrong input ends in one line on stderr and exit code 2, not in a traceback."""
    from anomalib_lite.images.download import DownloadError

    # A file name may hold characters that the terminal cannot show; that is no reason to stop.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: tell(f"warning: {message}", err=True)
    try:
        app(prog_name="anomalib-lite")
    except (ValueError, OSError, ImportError, DownloadError) as error:
        # A sentence of ours as it is, without [Errno 2] before it.
        ours = isinstance(error, OSError) and error.filename is None
        tell(f"error: {(getattr(error, 'strerror', None) or error) if ours else error}", err=True)
        sys.exit(2)


def _print_table(scores: Any) -> None:
    """A line for each image, and what they come to."""
    verdicts = scores.verdicts
    width = max(map(len, verdicts), default=0)
    for i, image_id in enumerate(scores.ids):
        verdict = verdicts[i].upper() if scores.alarms[i] else verdicts[i]
        whole = "  (as a whole)" if scores.as_a_whole(i) else ""
        typer.echo(f"{verdict:{width}}  score {scores.scores[i]:8.4f}  p {scores.p_text(i)}  {image_id}{whole}")
    if any(scores.p_text(i).startswith("≤") for i in range(len(scores))):
        smallest = 1 / (scores.calibration_groups + 1)
        typer.echo(f"p ≤ {smallest:.4f}: the smallest that {scores.calibration_groups} good images allow")
    again = ""
    if scores.look_again is not None:
        again = f", {verdicts.count('look again')} are to be looked at again (above {scores.look_again:.4f})"
    typer.echo(
        f"{int(scores.alarms.sum())} of {len(scores)} images alarm (threshold {scores.threshold:.4f}, "
        f"false-alarm rate {scores.false_alarm_rate:.4g}"
        + ("" if scores.guarantee_met else ", which is not promised")
        + f"){again}"
    )


if __name__ == "__main__":
    main()
