"""The commands that examine good images and a model: they parse, call what is here, and print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalib_lite.flags import (
    Device,
    Download,
    EverythingIsGood,
    Groups,
    Json,
    MaxPixels,
    Strict,
    Weights,
    finish,
    loaded,
    tell,
)


def diagnose(
    parameters: dict[str, Any],
    good: Annotated[Path, typer.Argument(help="folder of good images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for the figures")] = None,
    groups: Groups = None,
    everything_is_good: EverythingIsGood = False,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Examine good images before fitting: odd ones, duplicates, groups, and what threshold they support."""
    from anomalib_lite.diagnosis.advice import diagnose as run
    from anomalib_lite.files.atomic import saved_in
    from anomalib_lite.machine.progress import DRAWING, work

    if output is not None:
        saved_in(output)
    with work(None, *([DRAWING] if output is not None else [])):
        diagnosis = run(good, groups=groups, everything_is_good=everything_is_good, **parameters)
        written = [] if output is None else diagnosis.save_figures(output, good)
    if output is not None:
        typer.echo(f"{len(written)} figures in {output}", err=True)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict()))
    else:
        tell(diagnosis.advice())
    finish(diagnosis.unreadable, strict)


def capability(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    good: Annotated[Path, typer.Argument(help="folder of good images that it was not fitted on")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="figure to write, such as curves.png")] = None,
    kinds: Annotated[str, typer.Option(help="of spot, scratch, dent and missing")] = "spot,scratch,dent,missing",
    contrast: Annotated[float, typer.Option(help="share of the range by which defects are darker or lighter")] = 0.25,
    per_kind: Annotated[int, typer.Option(help="defects painted of each kind")] = 80,
    weights: Weights = None,
    download: Download = False,
    device: Device = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Paint defects of known size onto good images, and tell what size the model finds, and where it is weak."""
    from anomalib_lite.diagnosis.capability import capability as run
    from anomalib_lite.diagnosis.capability_figure import plot_capability
    from anomalib_lite.files.atomic import saved_to

    if output is not None:
        saved_to(output)
    detector = loaded(model, weights, download, device, max_pixels)
    chosen: Any = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    found = run(detector, good, kinds=chosen, contrast=contrast, per_kind=per_kind)
    if output is not None:
        plot_capability(found).savefig(output)
        typer.echo(f"curves: {output}", err=True)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        tell(found.to_text())
