"""This library beside anomalib's PatchCore: same machine, images, ResNet18 weights, size and bank.

    pip install -e '.[peers]'
    python benchmarks/peers.py --data metal_nut --weights resnet18.pth [--repeats 1]

Both read the same files; with ResNet18 both resize to 256 px, take layer2 + layer3 of the same weights, and fill a bank
of about 2 000 vectors by greedy k-center. Beside them stands the built-in network as it comes, at each quality. All
score the test images, decoding included, each in a process of its own. anomalib's model is driven directly (its Engine
adds time and its data module fits a threshold on the test set); it promises no false-alarm rate, so it has no recall at
one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZE = 256
RATE = 0.05
BANK = 2000
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="category folder in MVTec AD layout")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet18 state dict, down to layer3 at least")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has anomalib, if another")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", choices=list(RUNNERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(RUNNERS[arguments.run](arguments.data, arguments.weights)))
        return
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNNERS}
    for _ in range(arguments.repeats):
        for name in RUNNERS:  # in turn, so that a noisy minute hits both
            python = sys.executable if name.startswith("ours") else arguments.peer_python
            command = [python, __file__, "--data", arguments.data, "--weights", arguments.weights, "--run", name]
            done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print(table(arguments.data.name, results))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def run_ours(data: Path, weights: Path | None, **parameters: Any) -> dict[str, Any]:
    from anomalib_lite.detector import Detector
    from anomalib_lite.images.mvtec import open_mvtec

    dataset = open_mvtec(data)
    network = {} if weights is None else {"backbone": "resnet18", "weights": weights, "image_size": SIZE}
    detector = Detector(**network, **{"false_alarm_rate": RATE, **parameters})
    start = time.perf_counter()
    detector.fit(dataset.train)
    fit_seconds = time.perf_counter() - start
    start = time.perf_counter()
    scores = detector.score(dataset.test)
    maps = [scores.anomaly_map(i) for i in range(len(scores))]
    score_seconds = time.perf_counter() - start
    single = [timed(lambda i=i: detector.score(dataset.test.root / dataset.test.ids[i])) for i in range(30)]
    return report(dataset, scores.scores, maps, fit_seconds, score_seconds, single, scores.alarms)


def run_anomalib(data: Path, weights: Path) -> dict[str, Any]:
    import numpy as np
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    from anomalib_lite.images.framing import resize
    from anomalib_lite.images.mvtec import open_mvtec

    dataset = open_mvtec(data)
    torch.manual_seed(0)
    model = PatchcoreModel(backbone="resnet18", layers=["layer2", "layer3"], pre_trained=False)
    network = model.feature_extractor.feature_extractor
    state = torch.load(weights, map_location="cpu", weights_only=True)
    missing = network.load_state_dict(state, strict=False).missing_keys
    if [key for key in missing if not key.startswith(("layer4", "fc")) and "num_batches" not in key]:
        raise ValueError(f"{weights.name} lacks {missing[0]} of ResNet18 down to layer3")
    network.eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def batch(source: Any, indices: range) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([resize(source.read(i), SIZE) for i in indices])).float() / 255
        return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()

    def batches(source: Any) -> Any:
        for begin in range(0, len(source), BATCH):
            yield batch(source, range(begin, min(begin + BATCH, len(source))))

    start = time.perf_counter()
    model.train()
    network.eval()
    with torch.no_grad():
        for images in batches(dataset.train):
            model(images)
        n_patches = sum(len(part) for part in model.embedding_store)
        model.subsample_embedding(min(1.0, BANK / n_patches))
    fit_seconds = time.perf_counter() - start

    model.eval()
    scores, maps = [], []
    start = time.perf_counter()
    with torch.inference_mode():
        for images in batches(dataset.test):
            output = model(images)
            scores += output.pred_score.flatten().tolist()
            maps += [resized_map(one) for one in output.anomaly_map.squeeze(1)]
    score_seconds = time.perf_counter() - start

    def score_one(i: int) -> None:
        with torch.inference_mode():
            model(batch(dataset.test, range(i, i + 1)))

    single = [timed(lambda i=i: score_one(i)) for i in range(30)]
    sizes = [dataset.test.read(i).shape[:2] for i in range(len(dataset.test))]
    maps = [enlarged(one, size) for one, size in zip(maps, sizes, strict=True)]
    return report(dataset, np.array(scores), maps, fit_seconds, score_seconds, single)


def resized_map(anomaly_map: Any) -> Any:
    return anomaly_map.cpu().numpy()


def enlarged(anomaly_map: Any, size: tuple[int, int]) -> Any:
    """Bring anomalib's 256-px map to the mask's size, outside the timed part."""
    import torch

    if anomaly_map.shape == size:
        return anomaly_map
    tensor = torch.from_numpy(anomaly_map)[None, None]
    return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def report(
    dataset: Any,
    scores: Any,
    maps: list[Any],
    fit_seconds: float,
    score_seconds: float,
    single: list[float],
    alarms: Any = None,
) -> dict[str, Any]:
    from anomalib_lite.evaluation.metrics import auroc
    from anomalib_lite.evaluation.pixel_metrics import PixelCurves
    from anomalib_lite.machine.memory import peak_rss_mb

    peak = peak_rss_mb() or 0.0  # before the metrics, which are not part of it
    curves = PixelCurves()
    for i, anomaly_map in enumerate(maps):
        if dataset.has_mask[i]:
            curves.update(anomaly_map, dataset.read_mask(i))
    pixel = curves.result()
    return {
        "recall": None if alarms is None else float(alarms[dataset.labels].mean()),
        "false_alarms": None if alarms is None else float(alarms[~dataset.labels].mean()),
        "image_auroc": auroc(dataset.labels, scores),
        "pixel_auroc": pixel.pixel_auroc,
        "aupro": pixel.aupro,
        "fit_seconds": fit_seconds,
        "score_seconds": score_seconds,
        "total_seconds": fit_seconds + score_seconds,
        "ms_per_image": 1000 * score_seconds / len(maps),
        "ms_single": 1000 * statistics.median(single),
        "peak_rss_mb": peak,
    }


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def table(name: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over the repeats; the last column is how many times faster than the peer, fit and score together."""
    keys = [
        ("recall", f"{100 * RATE:g} %: recall", 3), ("false_alarms", f"{100 * RATE:g} %: false alarms", 3),
        ("image_auroc", "image AUROC", 4), ("pixel_auroc", "pixel AUROC", 4), ("aupro", "AUPRO", 4),
        ("fit_seconds", "fit s", 1), ("ms_per_image", "ms per image", 1), ("ms_single", "ms single image", 1),
        ("peak_rss_mb", "peak RSS MB", 0), ("total_seconds", "fit + score s", 1),
    ]  # fmt: skip
    lines = [
        f"| {name} | " + " | ".join(title for _, title, _ in keys) + " | times faster in all |",
        "| --- |" + " --- |" * (len(keys) + 1),
    ]
    peer = statistics.median(run["total_seconds"] for run in results["anomalib PatchCore"])
    for runner, runs in results.items():
        medians = {key: statistics.median(run[key] for run in runs) for key, _, _ in keys if runs[0][key] is not None}
        cells = [f"{medians[key]:.{digits}f}" if key in medians else "n/a" for key, _, digits in keys]
        lines.append(f"| {runner} | " + " | ".join(cells) + f" | {peer / medians['total_seconds']:.1f} |")
    return "\n".join(lines)


RUNNERS: dict[str, Any] = {
    "ours, ResNet18, bank 2000": lambda data, weights: run_ours(data, weights, bank_size=BANK),
    "ours, built-in, fast": lambda data, weights: run_ours(data, None, quality="fast"),
    "ours, built-in": lambda data, weights: run_ours(data, None),
    "ours, built-in, best": lambda data, weights: run_ours(data, None, quality="best"),
    "anomalib PatchCore": run_anomalib,
}


if __name__ == "__main__":
    main()
