"""From a fitted detector to a file: an ONNX graph or OpenVINO's, compared with the library before it is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.detector import Detector
from anomalib_lite.exporting.building import OPSETS, OUTPUTS, build, check_exportable
from anomalib_lite.exporting.checking import BOUND, Check, Running, compare, drawn_images
from anomalib_lite.files.atomic import saved_to, write_atomically
from anomalib_lite.images.decoding import UnreadableImageError

ONNX, OPENVINO = ".onnx", ".xml"


def export(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    check: Any = None,
    opset: int = OPSETS[0],
    bound: float = BOUND,
) -> Check:
    """Write a fitted detector as one graph from uint8 RGB (H, W, 3) of any size to score, p-value, verdict and map.

    The graph is compared with the library before it is written; see `docs/how-to/export.md` for its inputs and outputs.

    Parameters
    ----------
    detector : Detector, fitted
        In float32 or int8; the graph computes in float32, of int8 with the same steps and the same scores.
    path : path
        "….onnx", or "….xml" for OpenVINO, which puts the weights beside it as "….bin".
    check : images to compare by, as for `Detector.score`; default: drawn ones, of several sizes
    opset : version of ONNX's operators, 18 to 20
    bound : relative difference of scores that is borne

    Returns
    -------
    Check
        The largest differences.

    Raises
    ------
    ImportError
        If the extra ``[export]`` (of OpenVINO ``[openvino]`` too) is not installed.
    ExportMismatchError
        If the graph scores otherwise than the library.
    ValueError
        If the suffix is unknown, something of the detector cannot be exported, or the opset lacks an operator.
    OSError
        If the file cannot be written; an older one is left as it was.
    RuntimeError
        If the detector is not fitted.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (ONNX, OPENVINO):
        raise ValueError(f"{path}: an export is called ….onnx, or ….xml for OpenVINO; choose one of these suffixes")
    fitted, embedder = detector.fitted_, detector.embedder
    check_exportable(fitted, embedder, opset)
    saved_to(path)
    require("onnx", "onnxruntime", *["openvino"] * (suffix == OPENVINO))
    model = build(
        fitted,
        embedder,
        digest=detector.digest,
        opset=opset,
        pixel_size=detector.pixel_size,
        for_openvino=suffix == OPENVINO,
    )
    frame = embedder.frame if fitted.frame is None else fitted.frame
    images = drawn_images(frame) if check is None else _read(detector, check)
    if suffix == ONNX:
        content = model.SerializeToString()
        found = compare(by_onnxruntime(content), fitted, embedder, images, bound=bound)
        write_atomically(path, content)
        return found
    translated = to_openvino(model)
    found = compare(by_openvino(translated), fitted, embedder, images, bound=bound)
    _write_openvino(translated, path)
    return found


def require(*packages: str) -> None:
    """Raise ImportError where a package is missing, with what to install."""
    import importlib

    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            extra = "openvino" if package == "openvino" else "export"
            raise ImportError(
                f"an export needs {package}, which is not installed: pip install 'anomalib_lite[{extra}]'"
            ) from error


def by_onnxruntime(content: bytes, *, threads: int = 0) -> Running:
    """What computes a graph by onnxruntime on the CPU; `threads` of 0 are as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # else it warns that the input with a default is no constant
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(names, {"image": pixels}), strict=True))


def to_openvino(model: Any) -> Any:
    """The graph as OpenVINO's, with the same metadata in its ``rt_info`` under "anomalib_lite"."""
    import openvino

    translated = openvino.Core().read_model(model.SerializeToString(), b"")
    for entry in model.metadata_props:
        translated.set_rt_info(entry.value, ["anomalib_lite", entry.key])
    return translated


def by_openvino(model: Any, *, threads: int = 0) -> Running:
    """What computes OpenVINO's graph on the CPU, in float32: on some processors it would take bf16 by itself."""
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    # A tensor has several names there, of which any may come first.
    names = [next(name for name in OUTPUTS if name in port.names) for port in model.outputs]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = request.infer({"image": pixels})
        return {name: np.array(found[i]) for i, name in enumerate(names)}

    return run


def _write_openvino(model: Any, path: Path) -> None:
    import openvino

    weights = path.with_suffix(".bin")
    saved_to(weights)
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, Path(folder, "model.xml"), compress_to_fp16=False)
        # The weights first: a graph beside none is refused when it is opened.
        write_atomically(weights, Path(folder, "model.bin").read_bytes())
        write_atomically(path, Path(folder, "model.xml").read_bytes())


def _read(detector: Detector, images: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and pixels of all that can be read."""
    source = detector.open(images)
    for i, name in enumerate(source.ids):
        try:
            yield name, source.read(i)
        except UnreadableImageError:
            continue
