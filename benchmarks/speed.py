"""Speed and memory as ratios inside one run, medians over repeats.

    python benchmarks/speed.py [--weights resnet18.pth] [--repeats 15] [--skip-memory]

1. Embedding images in memory, against the bare truncated forward pass of torchvision's network in the same dtype.
2. Scoring one image in memory with a loaded detector, against that bare pass on one image.
3. The coreset of 200 000 × 384 patches to 2 000, against the plain greedy loop in float32, and both covering radii.
4. Peak memory of a fit on 5 000 images, against one on 500.
5. The time of `import anomalib_lite`, and whether it loads torch.
6. Embedding images in memory with the built-in network, against ResNet18 down to layer3 in the same dtype.

Without weights the network is random: times do not depend on the values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random", help="ResNet18 state dict")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--skip-memory", action="store_true", help="leave out the fits on 500 and 5 000 images")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        print(peak_of_fit(arguments.fit, arguments.weights))
        return
    results: dict[str, Any] = {}
    results["import"] = import_time(arguments.repeats)
    results["embedding"], results["single"] = passes(arguments.weights, arguments.repeats)
    results["coreset"] = coreset(max(3, arguments.repeats // 5))
    if not arguments.skip_memory:
        results["memory"] = memory(arguments.weights)
    for line in lines(results):
        print(line)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def passes(weights: str, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    import torch

    from anomalib_lite.detector import Detector
    from anomalib_lite.embedding.embedder import Embedder

    rng = np.random.default_rng(0)
    detector = Detector(backbone="resnet18", weights=weights, workers=0)
    size = detector.embedder.image_size
    images = textured(rng, 32, size)
    detector.fit(images)
    bare = bare_network(weights, detector.embedder.dtype)
    batch, one = images[:8], images[0]
    tensor = detector.embedder.preprocess(batch)
    single = tensor[:1].contiguous(memory_format=torch.channels_last)

    def forward(x: Any) -> None:
        with torch.inference_mode():
            bare(x)

    small = Embedder(image_size=size)
    eight = alternate(
        {
            "bare": lambda: forward(tensor),
            "embed": lambda: detector.embedder.embed(batch),
            "builtin": lambda: small.embed(batch),
        },
        repeats,
    )
    ones = alternate({"bare": lambda: forward(single), "score": lambda: detector.score(one)}, 2 * repeats)
    dtype = str(detector.embedder.dtype).removeprefix("torch.")
    return (
        {
            "bare_ms": eight["bare"] / 8,
            "embed_ms": eight["embed"] / 8,
            "builtin_ms": eight["builtin"] / 8,
            "ratio": eight["bare"] / eight["embed"],
            "builtin_ratio": eight["embed"] / eight["builtin"],
        }
        | {"dtype": dtype},  # type: ignore[dict-item]
        {"bare_ms": ones["bare"], "score_ms": ones["score"], "ratio": ones["score"] / ones["bare"]},
    )


def bare_network(weights: str, dtype: Any) -> Callable[[Any], Any]:
    """torchvision's ResNet18 down to layer3, as a person would truncate it: channels last, in `dtype`."""
    import torch
    from torchvision import models

    network = models.resnet18(weights=None)
    if weights != "random":
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    network = network.eval().to(dtype=dtype, memory_format=torch.channels_last)
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    return torch.nn.Sequential(*(getattr(network, part) for part in parts))


def coreset(repeats: int) -> dict[str, float]:
    import torch

    from anomalib_lite.scoring import greedy_k_center

    rng = np.random.default_rng(0)
    # Spectrum and clusters of patch vectors: variance falls as 1/i, a thousand modes.
    scale = 1 / np.sqrt(np.arange(1, 385))
    modes = rng.normal(size=(1000, 384)) * scale
    X = (modes[rng.integers(1000, size=200_000)] + 0.5 * rng.normal(size=(200_000, 384)) * scale).astype(np.float32)

    def plain() -> float:
        rows = torch.from_numpy(X)
        norms = (rows**2).sum(dim=1)
        nearest = torch.full((len(rows),), torch.inf)
        centre = int(np.random.default_rng(0).integers(len(rows)))
        for _ in range(2000):
            squared = torch.addmv(norms + norms[centre], rows, rows[centre], alpha=-2)
            torch.minimum(nearest, squared, out=nearest)
            centre = int(nearest.argmax())
        return float(nearest.max().clamp(min=0).sqrt())

    start = time.perf_counter()
    plain_radius = plain()
    plain_seconds = time.perf_counter() - start
    seconds, radius = [], 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        radius = greedy_k_center(X, 2000)[1]
        seconds.append(time.perf_counter() - start)
    ours = statistics.median(seconds)
    return {
        "plain_s": plain_seconds, "ours_s": ours, "ratio": plain_seconds / ours,
        "plain_radius": plain_radius, "ours_radius": radius,
    }  # fmt: skip


def memory(weights: str) -> dict[str, float]:
    peaks = {}
    for count in (500, 5000):
        command = [sys.executable, __file__, "--fit", str(count), "--weights", weights]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[count] = float(done.stdout.strip().splitlines()[-1])
    return {"peak_mb_500": peaks[500], "peak_mb_5000": peaks[5000], "ratio": peaks[5000] / peaks[500]}


def peak_of_fit(count: int, weights: str) -> float:
    from anomalib_lite.detector import Detector
    from anomalib_lite.machine.memory import peak_rss_mb

    Detector(backbone="resnet18", weights=weights).fit(GeneratedSource(count))
    return peak_rss_mb() or 0.0


class GeneratedSource:
    """Images made when they are read, so that only the fit's own memory is measured."""

    def __init__(self, count: int):
        self.ids = [f"{i:05d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        return textured(np.random.default_rng(i), 1, 256)[0]


def textured(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Images of blurred noise, uint8 (count, size, size, 3): not flat, so that no step is cut short."""
    coarse = rng.normal(size=(count, size // 8, size // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    fine = rng.normal(size=(count, size, size, 3))
    return np.clip(128 + 30 * coarse + 10 * fine, 0, 255).astype(np.uint8)


def import_time(repeats: int) -> dict[str, float]:
    code = "import time; t = time.perf_counter(); import anomalib_lite, sys; print(time.perf_counter() - t, 'torch' in sys.modules)"  # noqa: E501
    seconds, loaded = [], False
    for _ in range(repeats):
        output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds.append(float(output.split()[0]))
        loaded |= output.split()[1] == "True"
    return {"seconds": statistics.median(seconds), "loads_torch": loaded}


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of every call, the calls taking turns so that a noisy minute hits all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 2:  # the first rounds warm up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def lines(results: dict[str, Any]) -> list[str]:
    embedding, single, choice = results["embedding"], results["single"], results["coreset"]
    found = [
        f"import: {results['import']['seconds']:.3f} s, loads torch: {results['import']['loads_torch']}",
        f"embedding from memory ({embedding['dtype']}): {embedding['embed_ms']:.2f} ms per image, bare pass "
        f"{embedding['bare_ms']:.2f} ms: {embedding['ratio']:.2f} of its speed",
        f"embedding with the built-in network: {embedding['builtin_ms']:.2f} ms per image, "
        f"{embedding['builtin_ratio']:.2f} times the images per second of ResNet18",
        f"scoring one image: {single['score_ms']:.2f} ms, bare pass {single['bare_ms']:.2f} ms: "
        f"{single['ratio']:.2f} times as long",
        f"coreset 200 000 × 384 to 2 000: {choice['ours_s']:.2f} s, plain loop {choice['plain_s']:.2f} s: "
        f"{choice['ratio']:.1f} times faster; radius {choice['ours_radius']:.4f}, plain {choice['plain_radius']:.4f}",
    ]
    if "memory" in results:
        held = results["memory"]
        found.append(
            f"peak memory of a fit: {held['peak_mb_500']:.0f} MB on 500 images, {held['peak_mb_5000']:.0f} MB on "
            f"5 000: ratio {held['ratio']:.3f}"
        )
    return found


if __name__ == "__main__":
    main()
