"""The command line: parses, calls the library, prints. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done; 1 done, but something was unreadable and --strict was set; 2 wrong usage or input; of `watch --once`
3 an alarm with --fail-on-alarm, 4 no verdict.
"""

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalib_lite.flags import with_detector_flags
from anomalib_lite.serving import commands

app = typer.Typer(
    name="anomalib-lite",
    help="Find the bad part among good ones: fit on pictures of good parts, score new ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
_Strict = Annotated[bool, typer.Option("--strict", help="exit with 1 when an image is unreadable")]
_EverythingIsGood = Annotated[
    bool, typer.Option("--everything-is-good", help="learn also what looks like test images or masks by its name")
]
_Groups = Annotated[
    str | None,
    typer.Option(help="pictures that belong together: parent (their folder), each (none), or a regular expression"),
]
_Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda [default: as fitted]")]
_Download = Annotated[bool, typer.Option("--download", help="fetch a torchvision backbone's weights if need be")]
_MaxPixels = Annotated[int | None, typer.Option(help="larger pictures are unreadable [default: as fitted]")]


@app.command()
@with_detector_flags
def demo(
    parameters: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the results")] = Path("demo-output"),
) -> None:
    """Draw synthetic parts, fit on the good ones, score the rest; needs no data and no network."""
    from anomalib_lite.demo import run_demo

    typer.echo(run_demo(output, **parameters))


@app.command()
@with_detector_flags
def fit(
    parameters: dict[str, Any],
    good: Annotated[Path, typer.Argument(help="folder of good images")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file to write")] = Path("model.safetensors"),
    include_backbone: Annotated[
        bool, typer.Option("--include-backbone", help="store the backbone's weights in the model file")
    ] = False,
    groups: _Groups = None,
    everything_is_good: _EverythingIsGood = False,
    strict: _Strict = False,
) -> None:
    """Fit a detector on a folder of good images."""
    from anomalib_lite.detector import Detector
    from anomalib_lite.files.atomic import saved_to

    saved_to(output)
    detector = Detector(**parameters).fit(good, groups=groups, everything_is_good=everything_is_good)
    detector.save(output, include_backbone=include_backbone)
    typer.echo(f"fitted on {detector.n_train_} images, saved to {output}")
    typer.echo(detector.seen_as())
    typer.echo(detector.fitted_.calibration.explain())
    _finish(detector.unreadable_, strict)


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    images: Annotated[list[Path], typer.Argument(help="images, or folders of images")],
    csv: Annotated[Path | None, typer.Option(help="write the scores to this CSV file")] = None,
    overlays: Annotated[Path | None, typer.Option(help="write heat maps over the images to this folder")] = None,
    regions: Annotated[Path | None, typer.Option(help="write one line per defect's region to this CSV file")] = None,
    coco: Annotated[Path | None, typer.Option(help="write the regions to this COCO JSON file")] = None,
    masks: Annotated[Path | None, typer.Option(help="write the regions as mask PNGs to this folder")] = None,
    maps: Annotated[Path | None, typer.Option(help="write the anomaly maps to this folder")] = None,
    map_format: Annotated[str, typer.Option(help="npy, tiff (32-bit floats) or png (16 bits)")] = "npy",
    min_area: Annotated[float, typer.Option(help="smallest region told: pixels, or mm² if their size is known")] = 0.0,
    max_regions: Annotated[int | None, typer.Option(help="most regions told of a picture")] = None,
    weights: Annotated[str | None, typer.Option(help="the backbone's weights, if they are a local file")] = None,
    download: _Download = False,
    device: _Device = None,
    max_pixels: _MaxPixels = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="another rate than it was fitted for; the model file stays as it is")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="alarm above this score instead")] = None,
    look_again: Annotated[
        float | None, typer.Option(help="a second, larger rate (or lower threshold): look at those images again")
    ] = None,
    as_json: _Json = False,
    strict: _Strict = False,
) -> None:
    """Score images with a fitted detector."""
    from anomalib_lite.files.atomic import saved_to
    from anomalib_lite.plotting.picture_folder import picture_folder
    from anomalib_lite.plotting.region_files import MAP_FORMATS

    for file in (csv, regions, coco):
        if file is not None:
            saved_to(file)
    folders = [folder for folder in (overlays, masks, maps) if folder is not None]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("--overlays, --masks and --maps each need a folder of their own")
    for folder in folders:
        picture_folder(folder)
    if map_format not in MAP_FORMATS:
        raise ValueError(f"--map-format {map_format}: choose one of {', '.join(MAP_FORMATS)}")
    limits: dict[str, Any] = {"min_area": min_area, "max_regions": max_regions}
    if false_alarm_rate is not None and threshold is not None:
        raise ValueError("--false-alarm-rate and --threshold both set the threshold; give one of them")
    detector = _loaded(model, weights, download, device, max_pixels)
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
    scores = detector.score(source)
    if overlays is not None:
        scores.save_overlays(overlays, source)
    if masks is not None:
        scores.save_masks(masks, **limits)
    if maps is not None:
        scores.save_maps(maps, map_format)
    if csv is not None:
        scores.to_csv(csv, overlays=overlays)
    if regions is not None:
        scores.regions_to_csv(regions, **limits)
    if coco is not None:
        scores.to_coco(coco, **limits)
    if as_json:
        typer.echo(json.dumps(scores.to_dict(**limits)))
    else:
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
    for image_id, note in scores.notes.items():
        typer.echo(f"note: {image_id}: {note}", err=True)
    _finish(scores.unreadable, strict)


app.command()(commands.watch)
app.command()(commands.serve)
app.command("serve-demo")(commands.serve_demo)
app.command()(commands.history)


@app.command()
def recalibrate(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    good: Annotated[Path, typer.Argument(help="folder of fresh good images, not learnt from")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file to write; may be the same")],
    mode: Annotated[str, typer.Option(help="replace the old calibration, or extend it")] = "replace",
    false_alarm_rate: Annotated[float | None, typer.Option(help="another rate than before")] = None,
    groups: _Groups = None,
    everything_is_good: _EverythingIsGood = False,
    weights: Annotated[str | None, typer.Option(help="the backbone's weights, if they are a local file")] = None,
    download: _Download = False,
    device: _Device = None,
    max_pixels: _MaxPixels = None,
) -> None:
    """Set the threshold of a model from fresh good images, such as under a new light, without a refit."""
    from anomalib_lite.files.atomic import saved_to

    saved_to(output)
    detector = _loaded(model, weights, download, device, max_pixels)
    before = detector.fitted_.calibration.threshold
    detector = detector.recalibrate(good, mode=mode, groups=groups, everything_is_good=everything_is_good)
    if false_alarm_rate is not None:
        detector = detector.at_rate(false_alarm_rate)
    detector.save(output)
    typer.echo(f"threshold {before:.6g} → {detector.fitted_.calibration.threshold:.6g}, saved to {output}")
    typer.echo(detector.fitted_.calibration.explain())


@app.command()
@with_detector_flags
def evaluate(
    parameters: dict[str, Any],
    dataset: Annotated[Path, typer.Argument(help="folder in MVTec AD layout: train/good, test/<kind>, ground_truth")],
    groups: _Groups = None,
    as_json: _Json = False,
    strict: _Strict = False,
) -> None:
    """Fit on train/good of a data set, score its test/, and print every metric."""
    from anomalib_lite.evaluation.measuring import evaluate as run

    evaluation = run(dataset, groups=groups, **parameters)
    typer.echo(evaluation.to_json() if as_json else evaluation.to_text())
    _finish(evaluation.unreadable, strict)


@app.command()
@with_detector_flags
def diagnose(
    parameters: dict[str, Any],
    good: Annotated[Path, typer.Argument(help="folder of good images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for the figures")] = None,
    groups: _Groups = None,
    everything_is_good: _EverythingIsGood = False,
    as_json: _Json = False,
    strict: _Strict = False,
) -> None:
    """Examine good images before fitting: odd ones, duplicates, groups, and what threshold they support."""
    from anomalib_lite.diagnosis.advice import diagnose as run

    diagnosis = run(good, groups=groups, everything_is_good=everything_is_good, **parameters)
    if output is not None:
        written = diagnosis.save_figures(output, good)
        typer.echo(f"{len(written)} figures in {output}", err=True)
    typer.echo(json.dumps(diagnosis.to_dict()) if as_json else diagnosis.advice())
    _finish(diagnosis.unreadable, strict)


@app.command()
def capability(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    good: Annotated[Path, typer.Argument(help="folder of good images that it was not fitted on")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="figure to write, such as curves.png")] = None,
    kinds: Annotated[str, typer.Option(help="of spot, scratch, dent and missing")] = "spot,scratch,dent,missing",
    contrast: Annotated[float, typer.Option(help="share of the range by which defects are darker or lighter")] = 0.25,
    per_kind: Annotated[int, typer.Option(help="defects painted of each kind")] = 80,
    weights: Annotated[str | None, typer.Option(help="the backbone's weights, if they are a local file")] = None,
    download: _Download = False,
    device: _Device = None,
    max_pixels: _MaxPixels = None,
    as_json: _Json = False,
) -> None:
    """Paint defects of known size onto good images, and tell what size the model finds, and where it is weak."""
    from anomalib_lite.diagnosis.capability import capability as run
    from anomalib_lite.diagnosis.capability_figure import plot_capability
    from anomalib_lite.files.atomic import saved_to

    if output is not None:
        saved_to(output)
    detector = _loaded(model, weights, download, device, max_pixels)
    chosen: Any = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    found = run(detector, good, kinds=chosen, contrast=contrast, per_kind=per_kind)
    if output is not None:
        plot_capability(found).savefig(output)
        typer.echo(f"curves: {output}", err=True)
    typer.echo(json.dumps(found.to_dict()) if as_json else found.to_text())


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    images: Annotated[list[Path], typer.Argument(help="images, or folders of images")],
    output: Annotated[Path, typer.Option("--output", "-o", help="page to write")] = Path("report.html"),
    good: Annotated[
        Path | None, typer.Option(help="the good images it was fitted on, to show them beside the new ones")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="the backbone's weights, if they are a local file")] = None,
    download: _Download = False,
    device: _Device = None,
    max_pixels: _MaxPixels = None,
    strict: _Strict = False,
) -> None:
    """Score images and write one HTML page to look at: scores, heat maps, figures, settings."""
    from anomalib_lite.files.atomic import saved_to
    from anomalib_lite.report.page import Thumbnails, write_report

    saved_to(output)
    detector = _loaded(model, weights, download, device, max_pixels)
    source = Thumbnails(detector.open(images[0] if len(images) == 1 else list(images)))
    scores = detector.score(source, vectors=True)
    write_report(detector, source, output, training_images=good, scores=scores)
    typer.echo(f"{len(scores)} images, {int(scores.alarms.sum())} alarms: {output}")
    _finish(scores.unreadable, strict)


@app.command()
def compare(
    dataset: Annotated[Path, typer.Argument(help="labelled folder: MVTec AD layout, or one folder per class")],
    models: Annotated[
        str | None, typer.Option(help="comma-separated, such as cnn,linear@resnet18,unet,knn [default: all]")
    ] = None,
    seeds: Annotated[int, typer.Option(help="divisions into halves, and trainings on each")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="of every training [default: 30; linear, bottleneck 100; finetune, unet 20]")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for tables and figures")] = None,
    backbone: Annotated[str, typer.Option(help="of models that name none behind @")] = "builtin",
    weights_dir: Annotated[
        Path | None, typer.Option(help="folder of local weights, <backbone>*.pth or .safetensors")
    ] = None,
    leave_one_out: Annotated[bool, typer.Option(help="train again without each kind of defect")] = True,
    few_labels: Annotated[
        str, typer.Option(help="numbers of labelled defects to train with, comma-separated, or none")
    ] = "2,5,10,20,40",
    study_models: Annotated[
        str | None, typer.Option(help="which of the models take part in these two studies, comma-separated")
    ] = None,
    study_seeds: Annotated[int, typer.Option(help="seeds of these two studies")] = 1,
    good: Annotated[str | None, typer.Option(help="class of good images [default: good, ok or normal]")] = None,
    image_size: Annotated[int | None, typer.Option(help="side in pixels, of models without a backbone")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images per step of training [default: 16, unet 8]")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="take the colour away first")] = False,
    horizontal_flip: Annotated[
        bool, typer.Option("--horizontal-flip", help="mirror training images, where that is no defect")
    ] = False,
    false_alarm_rate: Annotated[float, typer.Option(help="of the detectors")] = 0.01,
    checkpoints: Annotated[
        Path | None, typer.Option(help="folder to keep results in as they come, and to go on from")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16")] = "auto",
    as_json: _Json = False,
    strict: _Strict = False,
) -> None:
    """Put supervised models and detectors on the same held-out half of a labelled folder."""
    from anomalib_lite.comparison.comparing import compare as run
    from anomalib_lite.embedding.weights import weights_in
    from anomalib_lite.supervised.labelled import open_labelled

    images = open_labelled(dataset, good=good)
    comparison = run(
        images,
        models=None if models is None else models.split(","),
        seeds=seeds,
        epochs=epochs,
        backbone=backbone,
        weights={} if weights_dir is None else weights_in(weights_dir),
        leave_one_out=leave_one_out,
        few_labels=_counts(few_labels, "--few-labels"),
        study_models=None if study_models is None else study_models.split(","),
        study_seeds=study_seeds,
        image_size=image_size,
        batch_size=batch_size,
        grey=grey,
        horizontal_flip=horizontal_flip,
        false_alarm_rate=false_alarm_rate,
        checkpoints=checkpoints,
        device=device,
        dtype=dtype,
        progress=True,
    )
    if output is not None:
        typer.echo(f"{len(comparison.save(output, images))} files in {output}", err=True)
    typer.echo(comparison.to_json() if as_json else comparison.to_markdown())
    for problem in comparison.problems:
        typer.echo(f"left out or unpaired: {problem}", err=True)
    for row in comparison.rows:
        if row.error:
            typer.echo(f"{row.name} failed: {row.error}", err=True)
    _finish(comparison.unreadable, strict)


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
    from anomalib_lite.images.download import download as run

    folder = run(category, output, accept_license=accept_license, url=url, sha256=sha256, progress=sys.stderr.isatty())
    typer.echo(f"{folder} is ready; try: anomalib-lite evaluate {folder}")


@app.command()
def doctor(
    backbone: Annotated[str, typer.Option(help="networks to measure, comma-separated")] = "builtin,resnet18",
    image_size: Annotated[str, typer.Option(help="sides of the pictures in pixels, comma-separated")] = "256,384,512",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    again: Annotated[bool, typer.Option("--again", help="forget what was measured before")] = False,
    as_json: _Json = False,
) -> None:
    """Tell what this machine computes with, how quickly, and what is chosen for it."""
    from anomalib_lite.doctor import examine

    sizes = _counts(image_size, "--image-size")
    found = examine(backbones=backbone.split(","), sizes=sizes, device=device, again=again)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else found.explain())


def main() -> None:
    """Run the command line; wrong input ends in one line on stderr and exit code 2, not in a traceback."""
    from anomalib_lite.images.download import DownloadError

    # A file name may hold characters that the terminal cannot show; that is no reason to stop.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)
    try:
        app()
    except (ValueError, OSError, ImportError, DownloadError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def _counts(text: str, flag: str) -> list[int]:
    if text.strip().lower() in ("", "none"):
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} {text}: give numbers separated by commas, or none") from None


def _loaded(model: Path, weights: str | None, download: bool, device: str | None, max_pixels: int | None) -> Any:
    from anomalib_lite.detector import Detector

    return Detector.load(
        model,
        weights=weights,
        download=download,
        device=device,
        max_pixels=max_pixels,
        progress=sys.stderr.isatty(),
    )


def _finish(unreadable: list[Any], strict: bool) -> None:
    for image in unreadable:
        typer.echo(f"unreadable: {image.reason}", err=True)
    if unreadable and strict:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
