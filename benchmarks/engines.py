"""What could carry 8-bit integers: torch's own kernels beside onnxruntime and OpenVINO, on one network and machine.

    pip install onnx onnxscript onnxruntime openvino
    python benchmarks/engines.py [--weights resnet18.pth] [--repeats 15]

Milliseconds per image of 256 px, in batches of eight and alone; megabytes that each adds to an installation that has
torch; and how far one quantised model (onnxruntime's static QDQ, per channel, 32 images) lies apart on two engines,
beside how far our two do.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from speed import alternate, machine, textured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random", help="ResNet18 state dict")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(f"On {machine()}, ms per image in batches of eight; alone:\n")
    titles = ("torch int8 (ours)", "torch float32", "onnxruntime float32", "onnxruntime int8", "OpenVINO int8")
    print("| | " + " | ".join(titles) + " | onnxruntime – OpenVINO | our engines |")
    print("| --- |" + " --- |" * (len(titles) + 2))
    for name, weights in (("builtin", None), ("resnet18", arguments.weights)):
        print(row(name, weights, arguments.repeats), flush=True)
    print()
    for package in ("onnxruntime", "openvino", "onnx"):
        print(f"{package}: {size_of(package):.0f} MB installed")


def row(name: str, weights: Any, repeats: int) -> str:
    import onnxruntime
    import openvino
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from anomalib_lite.embedding.embedder import Embedder

    images = textured(np.random.default_rng(0), 40, 256)
    plain = Embedder(name, weights=weights, dtype="float32", device="cpu")
    ours = {}
    for engine in ("onednn", "reference"):
        ours[engine] = Embedder(name, weights=weights, dtype="int8", engine=engine, device="cpu")
        ours[engine].calibrate(images[:32])
    pixels = plain.preprocess(images).float().contiguous()

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"pixels": pixels[i : i + 1].numpy()} for i in range(32)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        written, quantised = Path(folder) / "network.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(
            plain.network, (pixels[:2],), written, input_names=["pixels"], opset_version=18, dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("n")}}, external_data=False,
        )  # fmt: skip
        quantize_static(
            written, quantised, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=False,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or it would slow the others
        sessions = {
            path: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in (written, quantised)
        }
        compiled = openvino.Core().compile_model(openvino.Core().read_model(quantised), "CPU")
    cells = []
    for count in (8, 1):
        batch, raw = pixels[:count].numpy(), images[:count]
        calls = {
            "ours": lambda raw=raw: ours["onednn"].features(raw),
            "torch": lambda raw=raw: plain.features(raw),
            "onnxruntime float32": lambda batch=batch: sessions[written].run(None, {"pixels": batch}),
            "onnxruntime int8": lambda batch=batch: sessions[quantised].run(None, {"pixels": batch}),
            "openvino int8": lambda batch=batch: compiled({"pixels": batch}),
        }
        # One after the other, not in turn: every library has threads of its own, which wait busily for a while.
        times = [alternate({key: call}, repeats)[key] for key, call in calls.items()]
        cells.append([statistics.median(values) / count for values in times])
    batch = pixels[32:].numpy()
    one, other = sessions[quantised].run(None, {"pixels": batch}), list(compiled({"pixels": batch}).values())
    apart = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(one, other, strict=True))
    own = [ours[engine].features(images[32:]).layers for engine in ("onednn", "reference")]
    ours_apart = max(float((a - b).norm() / a.norm()) for a, b in zip(*own, strict=True))
    times_text = " | ".join(f"{eight:.2f}; {alone:.2f}" for eight, alone in zip(*cells, strict=True))
    return f"| {name} | {times_text} | {apart:.2%} apart | {ours_apart:.2%} apart |"


def size_of(package: str) -> float:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0])
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
