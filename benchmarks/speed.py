"""Speed and memory of one machine, as a table: medians, spread, and ratios inside one run.

    python benchmarks/speed.py [--weights resnet18.pth] [--repeats 15] [--calls 2000] [--skip-memory]

1. Both networks in every arithmetic, eight images of 256 px from memory, per image; and torchvision's network as a
   person would truncate it, in float32.
2. Scoring one image in memory with a fitted detector, against the bare pass of its network on one image by the same
   engine: median, and the 99th percentile of many calls against it.
3. Search of 1 024 rows in 4 096 and in 100 000 × 128, against faiss's flat index.
4. The coreset of 200 000 × 384 patches to 2 000, against the plain greedy loop in float32, and both covering radii.
5. Peak memory of a fit on 5 000 images, against one on 500.
6. The time of `import anomalib_lite`, and whether it loads torch.

The machine is named by its features; ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI (AVX2_VNNI, AVX2) makes the networks' kernels
work as on a lesser one. Without weights ResNet18 is random: times do not depend on the values.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
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
    parser.add_argument("--calls", type=int, default=2000, help="of scoring one image")
    parser.add_argument("--skip-memory", action="store_true", help="leave out the fits on 500 and 5 000 images")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        print(peak_of_fit(arguments.fit, arguments.weights))
        return
    results: dict[str, Any] = {"machine": machine()}
    results["import"] = import_time(arguments.repeats)
    results["networks"] = networks(arguments.weights, arguments.repeats)
    results["single"] = [
        single(name, arguments.weights, calls, dtype)
        for dtype, calls in (("auto", arguments.calls), ("float32", arguments.calls // 10))
        for name in ("builtin", "resnet18")
    ]
    results["search"] = [search(rows, arguments.repeats) for rows in (4096, 100_000)]
    results["coreset"] = coreset(max(3, arguments.repeats // 5))
    if not arguments.skip_memory:
        results["memory"] = memory(arguments.weights)
    print(table(results))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def machine() -> str:
    """The processor by what it can do, not by its name."""
    from anomalib_lite.machine.threads import usable_cores

    flags = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                break
    known = {
        "amx_int8": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI",
        "avx512f": "AVX-512", "avx2": "AVX2",
    }  # fmt: skip
    named = ", ".join(name for flag, name in known.items() if flag in flags) or "unknown features"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{usable_cores()} cores, {named}" + (f"; networks limited to {limit}" if limit else "")


def networks(weights: str, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per image, in batches of eight, by network and arithmetic."""
    import torch

    from anomalib_lite.embedding.embedder import Embedder
    from anomalib_lite.machine.integers import onednn_fault

    images = textured(np.random.default_rng(0), 32, 256)
    found = {}
    for name, given in (("builtin", None), ("resnet18", weights)):
        calls: dict[str, Callable[[], Any]] = {}
        for dtype in ("int8", "float32", "bfloat16"):
            if dtype == "int8" and onednn_fault():
                continue
            embedder = Embedder(name, weights=given, dtype=dtype, device="cpu")
            if embedder.awaits_calibration:
                embedder.calibrate(images)
            calls[dtype] = lambda embedder=embedder: embedder.features(images[:8])  # type: ignore[misc]
        if name == "resnet18":
            bare, tensor = bare_network(weights, torch.float32), embedder.preprocess(images[:8]).float()
            calls["torchvision"] = functools.partial(forward, bare, tensor)
        found[name] = {dtype: [ms / 8 for ms in times] for dtype, times in alternate(calls, repeats).items()}
    return found


def forward(network: Any, pixels: Any) -> None:
    import torch

    with torch.inference_mode():
        network(pixels)


def single(name: str, weights: str, calls: int, dtype: str) -> dict[str, Any]:
    """Scoring one image against the bare pass, in turn."""
    from anomalib_lite.detector import Detector

    given = {} if name == "builtin" else {"backbone": name, "weights": weights}
    images = textured(np.random.default_rng(0), 32, 256)
    detector = Detector(**given, dtype=dtype).fit(images, groups="each").warm_up()
    embedder, one = detector.embedder, images[0]
    times = alternate({"bare": lambda: embedder.features(one[None]), "score": lambda: detector.score(one)}, calls)
    return {"name": name, "dtype": embedder.dtype, **times}


def search(rows: int, repeats: int) -> dict[str, Any]:
    """1 024 queries in a bank that has the spectrum and the clusters of patch vectors."""
    import faiss

    from anomalib_lite.scoring.neighbors import NeighborIndex

    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(np.arange(1, 129))
    modes = rng.normal(size=(1000, 128)) * scale

    def drawn(n: int) -> np.ndarray:
        return (modes[rng.integers(1000, size=n)] + 0.5 * rng.normal(size=(n, 128)) * scale).astype(np.float32)

    bank, queries = drawn(rows), drawn(1024)
    flat = faiss.IndexFlatL2(128)
    flat.add(bank)
    index = NeighborIndex(bank, device="cpu")
    ours, expected = index.search(queries, 2), flat.search(queries, 2)
    exact = np.linalg.norm(bank[expected[1]] - queries[:, None], axis=2)
    return {
        "rows": rows,
        "other_neighbours": float((ours[1] != expected[1]).mean()),
        "farther_by": float((ours[0] / np.maximum(exact, 1e-12) - 1).max()),
        **alternate({"faiss": lambda: flat.search(queries, 2), "ours": lambda: index.search(queries, 2)}, repeats),
    }


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


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every call, the calls taking turns so that a noisy minute hits all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 3:  # the first rounds warm up
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def table(results: dict[str, Any]) -> str:
    rows = []
    for name, times in results["networks"].items():
        for dtype, values in times.items():
            what = "torchvision's, float32" if dtype == "torchvision" else f"{name}, {dtype}"
            against = statistics.median(times["float32"]) / statistics.median(values)
            rows.append((f"network per image: {what}", values, f"{against:.1f} × as fast as float32"))
    for found in results["single"]:
        name = found["name"]
        bare, score = (statistics.median(found[key]) for key in ("bare", "score"))
        rows.append((f"one image, bare pass: {name}, {found['dtype']}", found["bare"], ""))
        p99 = float(np.quantile(found["score"], 0.99))
        says = f"{score / bare:.2f} × the bare pass; 99th percentile {p99 / score:.2f} × the median"
        rows.append((f"one image, scored: {name}, {found['dtype']}", found["score"], says))
    for found in results["search"]:
        ratio = statistics.median(found["faiss"]) / statistics.median(found["ours"])
        rows.append((f"search 1 024 × {found['rows']} × 128: faiss Flat", found["faiss"], ""))
        says = (
            f"{ratio:.1f} × as fast as faiss; other neighbours {found['other_neighbours']:.2%}, "
            f"farther by at most {found['farther_by']:.2%}"
        )
        rows.append((f"search 1 024 × {found['rows']} × 128: ours", found["ours"], says))
    lines = [f"On {results['machine']}:", "", "| | ms, median | middle half | |", "| --- | --- | --- | --- |"]
    for what, values, says in rows:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        lines.append(f"| {what} | {middle:.2f} | {low:.2f}–{high:.2f} | {says} |")
    choice = results["coreset"]
    lines += [
        "",
        f"Coreset 200 000 × 384 to 2 000: {choice['ours_s']:.2f} s, plain loop {choice['plain_s']:.2f} s: "
        f"{choice['ratio']:.1f} times faster; radius {choice['ours_radius']:.4f}, plain {choice['plain_radius']:.4f}",
        f"Import: {results['import']['seconds']:.3f} s, loads torch: {results['import']['loads_torch']}",
    ]
    if "memory" in results:
        held = results["memory"]
        lines.append(
            f"Peak memory of a fit: {held['peak_mb_500']:.0f} MB on 500 images, {held['peak_mb_5000']:.0f} MB on "
            f"5 000: ratio {held['ratio']:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
