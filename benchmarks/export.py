"""An exported detector against the library, over all test images of a set: scores, verdicts, maps, and time.

    python benchmarks/export.py SET... [--backbone resnet18 --weights resnet18.pth] [--layers A,B] [--onnx-only]
    python benchmarks/export.py SET... --dtype int8

A detector is fitted on train/good in float32 and exported twice, for onnxruntime and for OpenVINO. Scores and maps are
compared with the library's own whose search is in float32 (`scoring.exact`); "as it is" is the largest difference from
`Detector.score`, whose short lists come from whatever is quickest, and which may lose a neighbour to a near tie.
With int8, a second table has the times of every form in onnxruntime, and of torch, of the same images in turn; "held in
floats" is the form that OpenVINO is given. Milliseconds are medians per image from memory, resizing and map included,
one image at a time, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite import Detector
from anomalib_lite.embedding.streaming import embed_source
from anomalib_lite.exporting.building import build
from anomalib_lite.exporting.checking import verdict_of
from anomalib_lite.exporting.writing import by_onnxruntime, by_openvino, to_openvino
from anomalib_lite.images import open_source
from anomalib_lite.locating.maps import anomaly_map
from anomalib_lite.scoring.exact import searching_exactly

FORMS = ("float32", "int8 held in floats", "int8", "torch, float32", "torch, int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, help="category folders in MVTec AD layout")
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights")
    parser.add_argument("--layers", help="of the backbone, where its weights are not all there")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--onnx-only", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        "| set | network | runtime | images | scores, relative | … as it is | other verdicts | maps | ms per image | "
        "torch's ms |\n|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    times = []
    for folder in arguments.sets:
        detector = fitted(folder, arguments, arguments.dtype)
        for name, run in runtimes(detector, arguments.onnx_only or arguments.dtype == "int8"):
            print(row(folder, detector, name, run), flush=True)
        if arguments.dtype == "int8":
            times.append(speeds(folder, fitted(folder, arguments, "float32"), detector))
    if times:
        print("\n| set | network | " + " | ".join(FORMS) + " |\n|" + "---|" * (2 + len(FORMS)))
        print("\n".join(times))


def fitted(folder: Path, arguments: argparse.Namespace, dtype: str) -> Detector:
    """A detector of the good images of a set."""
    return Detector(
        backbone=arguments.backbone,
        weights=arguments.weights,
        layers=arguments.layers,
        dtype=dtype,
        device="cpu",
    ).fit(folder / "train" / "good")


def speeds(folder: Path, in_float32: Detector, in_int8: Detector) -> str:
    """A line of the second table: every form computes one image after the other, so that all see the same hour."""

    def exported(detector: Detector, **form: bool) -> Callable[[np.ndarray], Any]:
        model = build(detector.fitted_, detector.embedder, digest="", **form)
        return by_onnxruntime(model.SerializeToString(), threads=1)

    computed = (
        exported(in_float32),
        exported(in_int8, for_openvino=True),
        exported(in_int8),
        lambda pixels: in_float32.score([pixels]).anomaly_map(0),
        lambda pixels: in_int8.score([pixels]).anomaly_map(0),
    )
    source = in_int8.open(folder / "test")
    times: list[list[float]] = [[] for _ in computed]
    for i in range(len(source)):
        pixels = source.read(i)
        for run, seconds in zip(computed, times, strict=True):
            start = time.perf_counter()
            run(pixels)
            seconds.append(time.perf_counter() - start)
    told = " | ".join(f"{1000 * statistics.median(seconds):.0f}" for seconds in times)
    return f"| {folder.name} | {in_int8.embedder.backbone} | {told} |"


def runtimes(detector: Detector, onnx_only: bool) -> list[tuple[str, Callable[[np.ndarray], dict[str, Any]]]]:
    """What computes the two exports."""
    fitted, embedder = detector.fitted_, detector.embedder
    found = [("onnxruntime", by_onnxruntime(build(fitted, embedder, digest="").SerializeToString(), threads=1))]
    if not onnx_only:
        model = to_openvino(build(fitted, embedder, digest="", for_openvino=True))
        found.append(("OpenVINO", by_openvino(model, threads=1)))
    return found


def row(folder: Path, detector: Detector, name: str, run: Callable[[np.ndarray], dict[str, Any]]) -> str:
    """A line of the table."""
    fitted, calibration = detector.fitted_, detector.fitted_.calibration
    exact = replace(fitted, scorer=searching_exactly(fitted.scorer))
    source = detector.open(folder / "test")
    off, off_as_it_is, maps, verdicts, times, own = 0.0, 0.0, 0.0, 0, [], []
    for i in range(len(source)):
        pixels = source.read(i)
        (image,) = embed_source(detector.embedder, open_source([pixels]), np.arange(1), workers=0)
        expected = exact.score(image)
        start = time.perf_counter()
        found = run(pixels)
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        scores = detector.score([pixels])
        scores.anomaly_map(0)
        own.append(time.perf_counter() - start)
        off = max(off, abs(float(found["score"]) / expected.score - 1))
        off_as_it_is = max(off_as_it_is, abs(float(found["score"]) / scores.scores[0] - 1))
        near = abs(expected.score / calibration.threshold - 1) <= 1e-3
        verdicts += int(found["verdict"]) != verdict_of(calibration, expected.score) and not near
        told = anomaly_map(expected.patch_scores, fitted.frame, image.original_size)
        maps = max(maps, float(np.abs(found["anomaly_map"] - told).max() / told.max()))
    ms, torchs = (1000 * statistics.median(seconds) for seconds in (times, own))
    return (
        f"| {folder.name} | {detector.embedder.backbone} | {name} | {len(source)} | {off:.1e} | {off_as_it_is:.1e} | "
        f"{verdicts} | {maps:.1e} | {ms:.0f} | {torchs:.0f} |"
    )


if __name__ == "__main__":
    main()
