"""The command that exports a model: it parses, calls what is here, and prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from anomalib_lite.flags import tell


def export(
    model: Annotated[Path, typer.Argument(help="model file written by fit")],
    output: Annotated[Path, typer.Option("--output", "-o", help="graph to write: ….onnx, or ….xml for OpenVINO")],
    check: Annotated[
        Path | None, typer.Option(help="folder of images to compare by [default: drawn ones, of several sizes]")
    ] = None,
    opset: Annotated[int, typer.Option(help="version of ONNX's operators, 18 to 20")] = 18,
    weights: Annotated[str | None, typer.Option(help="the backbone's weights, if they are a local file")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="fetch a torchvision backbone's weights if need be")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Write a model as one graph from pixels to verdict, after comparing it with the library."""
    from anomalib_lite.detector import Detector
    from anomalib_lite.exporting.writing import export as run

    detector = Detector.load(model, weights=weights, download=download, device="cpu")
    if detector.embedder.dtype == "bfloat16":
        detector = Detector.load(model, weights=weights, download=download, device="cpu", dtype="float32")
    found = run(detector, output, check=check, opset=opset)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        tell(f"{found.explain()}\nsaved to {output}")
