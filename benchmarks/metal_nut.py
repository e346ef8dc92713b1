"""Every backbone × level × scorer on one category folder in MVTec AD layout, as a Markdown table and JSON.

    python benchmarks/metal_nut.py --data metal_nut [--weights-dir weights] [--output results.json]
    python benchmarks/metal_nut.py --data metal_nut --weights-dir weights --shots 8 --seeds 5 --vary turn=180,draws=7

Runs unchanged on any category, the official metal_nut first of all. Backbones without weights here are left out and
named. Every configuration runs in a process of its own, so that its peak memory is its own. Thresholds and
everything else come from good training images; test labels are used to measure only. Beside recall and false alarms, *
marks a rate that the training images are too few to promise, + and - more or fewer false alarms than chance explains.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BACKBONES = (
    "builtin",
    "resnet18",
    "inception_v3",
    "vgg16",
    "mobilenet_v2",
    "squeezenet1_1",
    "resnet50",
    "wide_resnet50_2",
)
LEVELS = ("patch", "global")
SCORERS = ("knn", "kmeans", "dbscan", "subspace")
RATES = (0.01, 0.05)


def main() -> None:
    arguments = parse()
    if arguments.one:  # a configuration in a process of its own
        print(json.dumps(run_one(arguments.data, json.loads(arguments.one))))
        return
    start = time.perf_counter()
    rows, left_out = [], []
    for parameters in configurations(arguments, left_out):
        row = run_apart(arguments.data, parameters)
        rows.append(row)
        print(f"{time.perf_counter() - start:6.0f} s  {row['name']}: {summary(row)}", file=sys.stderr, flush=True)
    result = {
        "data": arguments.data.name,
        "machine": machine(),
        "shots": arguments.shots,
        "rows": rows,
        "left_out": left_out,
        "seconds": time.perf_counter() - start,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(few_shot_table(rows) if arguments.shots else table(rows))
    for text in left_out:
        print(f"\nLeft out: {text}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="category folder in MVTec AD layout")
    parser.add_argument("--weights-dir", type=Path, help="folder of local weights, <backbone>*.pth or .safetensors")
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="comma-separated")
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--scorers", default=",".join(SCORERS))
    parser.add_argument("--shots", type=int, help="fit on this many good images, drawn by seed")
    parser.add_argument("--seeds", type=int, default=5, help="with --shots: number of draws")
    parser.add_argument("--vary", help="how the camera may vary, such as turn=180,draws=7")
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def configurations(arguments: argparse.Namespace, left_out: list[str]) -> list[dict[str, Any]]:
    """The parameters of every detector to run; backbones without weights go to `left_out` with the reason."""
    found = []
    for backbone in arguments.backbones.split(","):
        for level in arguments.levels.split(","):
            for layers, weights in available(backbone, level, arguments.weights_dir, left_out):
                for scorer in arguments.scorers.split(","):
                    found.append(
                        {
                            "backbone": backbone,
                            "level": level,
                            "layers": layers,
                            "weights": weights,
                            "scorer": scorer,
                            "vary": arguments.vary,
                        }
                    )
    seeds = range(arguments.seeds) if arguments.shots else [None]
    return [{**one, "shots": arguments.shots, "seed": seed} for one in found for seed in seeds]


def available(
    backbone: str, level: str, weights_dir: Path | None, left_out: list[str]
) -> list[tuple[str | None, str | None]]:
    """The (layers, weights) of a backbone that can be run here: its default layers, or the deepest a file holds."""
    if backbone == "builtin":
        return [(None, None)]
    from anomalib_lite.embedding.backbones import BACKBONES as KNOWN
    from anomalib_lite.embedding.embedder import Embedder
    from anomalib_lite.embedding.weights import WeightsError

    files = sorted(weights_dir.glob(f"{backbone}*")) if weights_dir else []
    weights = str(files[0]) if files else "imagenet" if cached(backbone) else None
    if weights is None:
        left_out.append(f"{backbone} ({level}): no file {backbone}* in the weights folder, none cached by torchvision")
        return []
    names = list(KNOWN[backbone].layers)
    choices = [None, *(",".join(names[end - 2 : end]) for end in range(len(names), 1, -1))]
    usable: list[tuple[str | None, str | None]] = []
    reason = ""
    for layers in choices:
        try:
            Embedder(backbone, layers=layers, level=level, weights=weights)
        except WeightsError as error:
            reason = reason or str(error)
            continue
        usable.append((layers, weights))
        break
    if level == "global":
        try:
            Embedder(backbone, layers="penultimate", level=level, weights=weights)
            usable.append(("penultimate", weights))
        except WeightsError:
            left_out.append(f"{backbone} penultimate (global): {Path(weights).name} does not reach that far")
    if reason and usable:
        left_out.append(f"{backbone} default layers ({level}): {reason}; ran {usable[0][0]} instead")
    return usable


def cached(backbone: str) -> bool:
    """Whether torchvision's weights are on this machine already; nothing is downloaded for a benchmark."""
    import torch
    from torchvision import models

    name = models.get_model_weights(backbone)["IMAGENET1K_V1"].url.rsplit("/", 1)[-1]
    return (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()


def run_apart(data: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run one configuration in a fresh process; an error becomes a row that says so."""
    command = [sys.executable, __file__, "--data", str(data), "--one", json.dumps(parameters)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row = {"name": name_of(parameters), "parameters": public(parameters)}
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        return {**row, "error": last}
    return {**row, **json.loads(done.stdout.strip().splitlines()[-1])}


def run_one(data: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from anomalib_lite.evaluation.measuring import evaluate
    from anomalib_lite.images.mvtec import open_mvtec
    from anomalib_lite.images.variations import Variations

    shots, seed, vary = (parameters.pop(name) for name in ("shots", "seed", "vary"))
    if vary:
        parameters["variations"] = Variations.parse(vary)
    dataset = open_mvtec(data)
    train = None
    if shots:
        chosen = np.random.default_rng(seed).choice(len(dataset.train), size=shots, replace=False)
        train = [dataset.train.root / dataset.train.ids[i] for i in sorted(chosen)]
    evaluation = evaluate(dataset, train=train, rates=RATES, random_state=seed or 0, **parameters)
    result = evaluation.to_dict()
    result.pop("pairing_problems")
    result["config"].pop("fingerprint")
    return result


def name_of(parameters: dict[str, Any]) -> str:
    layers = f" {parameters['layers'].replace(',', '+')}" if parameters["layers"] else ""
    turned = f" ({parameters['vary']})" if parameters["vary"] else ""
    return f"{parameters['backbone']}{layers} {parameters['level']} {parameters['scorer']}{turned}"


def public(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the weights' file name in place of its path."""
    weights = parameters["weights"]
    return {**parameters, "weights": os.path.basename(weights) if weights else None}


def machine() -> dict[str, Any]:
    import torch

    from anomalib_lite.machine.hardware import pick_device, pick_dtype

    device = pick_device()
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    return {"cores": os.cpu_count(), "device": str(device), "dtype": dtype, "torch": torch.__version__} | {
        "python": platform.python_version()
    }


def summary(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    rates = ", ".join(f"at {100 * rate:g} % {on_the_line(row, rate)}" for rate in RATES)
    return (
        f"recall / false alarms {rates}; image AUROC {text(row['image_auroc'], 4)}, pixel {text(row['pixel_auroc'], 4)}"
    )


def on_the_line(row: dict[str, Any], rate: float) -> str:
    """Recall and false alarms at a rate; * where it is not promised, + or - where false alarms are out of its band."""
    at = next(one for one in row["at_rates"] if one["false_alarm_rate_target"] == rate)
    good, observed = row["n_test_good"], at["false_alarm_rate_observed"]
    counted = "" if observed is None else f" ({round(observed * good)} of {good})"
    marks = "" if at["guarantee_met"] else " *"
    marks += {"above": " +", "below": " -"}.get(at["coverage"], "")
    return f"{text(at['recall_at_threshold'], 3)} / {text(observed, 3)}{counted}{marks}"


def table(rows: list[dict[str, Any]]) -> str:
    """One line per configuration, best image AUROC first."""
    kinds = sorted({kind for row in rows for kind in row.get("per_defect", {})})
    head = [
        "configuration", *(f"{100 * rate:g} %: recall / false alarms" for rate in RATES), "image AUROC (95 % interval)",
        "misordered pairs", "AP", "FPR at full recall", "pixel AUROC", "AUPRO", *kinds, "fit s", "ms per image",
        "model MB", "peak RSS MB",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in sorted(rows, key=lambda row: -(row.get("image_auroc") or 0)):
        if "error" in row:
            lines.append(f"| {row['name']} | {row['error']} |" + " |" * (len(head) - 2))
            continue
        low, high = row["image_auroc_ci"] or (None, None)
        cells = [
            row["name"],
            *(on_the_line(row, rate) for rate in RATES),
            f"{text(row['image_auroc'], 4)} ({text(low, 3)}–{text(high, 3)})",
            text(row["misordered_pairs"], 0),
            text(row["image_ap"], 4),
            text(row["fpr_at_full_recall"], 2),
            text(row["pixel_auroc"], 4),
            text(row["aupro"], 3),
            *(text(row["per_defect"].get(kind), 3) for kind in kinds),
            text(row["fit_seconds"], 1),
            text(1000 * row["seconds_per_image"], 1),
            text(row["model_mb"], 2),
            text(row["peak_rss_mb"], 0),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def few_shot_table(rows: list[dict[str, Any]]) -> str:
    """Mean and spread, over the draws of each configuration, of recall and false alarms at 5 %, and of the AUROCs."""
    import statistics

    promised = all(at["guarantee_met"] for row in rows for at in row.get("at_rates", ())[-1:])
    rate = f"5 %{'' if promised else ' *'}"
    lines = [
        f"| configuration | shots | draws | {rate}: recall | {rate}: false alarms | image AUROC | pixel AUROC |",
        "|" + " --- |" * 7,
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name and "error" not in row]
        cells = []
        at_5 = [at for row in same for at in row["at_rates"] if at["false_alarm_rate_target"] == 0.05]
        for found, key, digits in (
            (at_5, "recall_at_threshold", 3),
            (at_5, "false_alarm_rate_observed", 3),
            (same, "image_auroc", 4),
            (same, "pixel_auroc", 4),
        ):
            values = [row[key] for row in found if row[key] is not None]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}" if values else "n/a")
        shots = same[0]["n_train"] if same else "?"
        lines.append(f"| {name} | {shots} | {len(same)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
