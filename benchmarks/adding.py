"""Good images that come later: `Detector.add` beside a fit on all of them.

    python benchmarks/adding.py --data metal_nut --seeds 3

Half of the training images are fitted, the others added, at once and ten by ten. Then what a false alarm teaches: the
good test images that alarm are added as such (`calibrating=False`), and scored again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np

from anomalib_lite import Detector
from anomalib_lite.evaluation.metrics import auroc

RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    Detector(image_size=64).fit(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))  # warm
    print("| data | how | recall at 5 % | false alarms | image AUROC | seconds |\n|---|---|---|---|---|---|")
    for data in arguments.data:
        train = sorted(str(path) for path in (data / "train" / "good").iterdir())
        test = sorted(str(path) for path in (data / "test").rglob("*.*"))
        good = np.array([Path(path).parent.name == "good" for path in test])
        rows: dict[str, list[tuple[float, ...]]] = {}
        cured = []
        for seed in range(arguments.seeds):
            order = np.random.default_rng(seed).permutation(len(train))
            first, later = (np.array(train)[part].tolist() for part in np.array_split(order, 2))

            def fit(paths: list[str], seed: int = seed) -> Detector:
                return Detector(false_alarm_rate=RATE, random_state=seed).fit(paths, groups="each")

            def add_all(detector: Detector, steps: int, later: list[str] = later) -> Detector:
                for some in np.array_split(np.array(later), steps):
                    detector = detector.add(some.tolist(), groups="each")
                return detector

            start = time.perf_counter()
            half = fit(first)
            found = {"half": (half, time.perf_counter() - start)}
            for name, steps in (("half, the rest added", 1), ("half, the rest added in ten steps", 10)):
                start = time.perf_counter()
                found[name] = add_all(half, steps), time.perf_counter() - start
            start = time.perf_counter()
            found["all"] = fit(first + later), time.perf_counter() - start
            for name, (detector, seconds) in found.items():
                scores = detector.score(test)
                recall, observed = scores.alarms[~good].mean(), scores.alarms[good].mean()
                rows.setdefault(name, []).append((recall, observed, auroc(~good, scores.scores), seconds))
            scores = half.score(test)
            alarms = [path for path, alarm, fine in zip(test, scores.alarms, good, strict=True) if alarm and fine]
            if alarms:
                taught = half.add(alarms, groups="each", calibrating=False)
                after = taught.score(test)
                still = int(taught.score(alarms).alarms.sum())
                lost = int((scores.alarms & ~after.alarms & ~good).sum())
                cured.append((len(alarms), len(alarms) - still, lost, int((~good).sum())))
        for name, figures in rows.items():
            recall, observed, area, seconds = np.mean(figures, axis=0)
            print(f"| {data.name} | {name} | {recall:.3f} | {observed:.3f} | {area:.4f} | {seconds:.1f} |", flush=True)
        if cured:
            alarms, cures, lost, defects = np.sum(cured, axis=0)
            print(f"\n{data.name}: {cures} of {alarms} false alarms cured, {lost} of {defects} defects lost\n")


if __name__ == "__main__":
    main()
