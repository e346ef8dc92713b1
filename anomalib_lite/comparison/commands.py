"""The command that compares: it parses, calls what is here, and prints."""

from pathlib import Path
from typing import Annotated

import typer

from anomalib_lite.flags import Json, Strict, counts, finish


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
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Put supervised models and detectors on the same held-out half of a labelled folder."""
    from anomalib_lite.comparison.comparing import compare as run
    from anomalib_lite.embedding.weights import weights_in
    from anomalib_lite.files.atomic import saved_in
    from anomalib_lite.supervised.labelled import open_labelled

    for folder in (output, checkpoints):
        if folder is not None:
            saved_in(folder)
    images = open_labelled(dataset, good=good)
    comparison = run(
        images,
        models=None if models is None else models.split(","),
        seeds=seeds,
        epochs=epochs,
        backbone=backbone,
        weights={} if weights_dir is None else weights_in(weights_dir),
        leave_one_out=leave_one_out,
        few_labels=counts(few_labels, "--few-labels"),
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
    finish(comparison.unreadable, strict)
