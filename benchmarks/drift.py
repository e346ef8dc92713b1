"""How soon drift is seen, and how seldom without one: drawn p-values, then real pictures in another light.

    python benchmarks/drift.py --data metal_nut bottle magnetic_tile kolektor elpv_poly

Drawn: normal scores of n good images calibrate; runs of 2000 pictures. Real: good test images in random order again and
again (500 pictures), as they are and at 80 % of their light, and with a tenth of the set's defects among them.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np


def main() -> None:
    from anomalib_lite import Detector
    from anomalib_lite.fitted.calibration import Calibration
    from anomalib_lite.fitted.drift import DriftMonitor, watch
    from anomalib_lite.images.mvtec import open_mvtec
    from anomalib_lite.images.varying import Draw, varied

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="category folders in MVTec AD layout")
    parser.add_argument("--runs", type=int, default=100)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    def drawn(rng: np.random.Generator, n: int, shift: float, before: int, after: int) -> np.ndarray:
        calibration = Calibration(rng.normal(size=n), 0.05)
        return calibration.p_values(np.append(rng.normal(size=before), rng.normal(size=after) + shift))

    print(
        "| calibrated on | alarms without drift | with 10 % defects | pictures until 1, 2, 3 σ are seen | after 2000 |"
    )
    print("| --- | --- | --- | --- | --- |")
    for n in (20, 60, 200, 1000):
        quiet = defects = 0
        for run in range(arguments.runs):
            rng = np.random.default_rng(run)
            p = drawn(rng, n, 0.0, 2000, 0)
            quiet += watch(p, n).alarm
            p[rng.random(2000) < 0.1] = 1 / (n + 1)
            defects += watch(p, n).alarm
        delays = {}
        for before in (0, 2000):
            for shift in (1.0, 2.0, 3.0):
                times = [
                    watch(drawn(np.random.default_rng(run), n, shift, before, 1000), n).alarmed_at or np.inf
                    for run in range(20)
                ]
                delays[before, shift] = np.median(times) - before
        early, late = (", ".join(f"{delays[before, s]:.0f}" for s in (1.0, 2.0, 3.0)) for before in (0, 2000))
        shares = f"{quiet} of {arguments.runs} | {defects} of {arguments.runs}"
        print(f"| {n} | {shares} | {early} | {late} |", flush=True)

    print("\n| set | as they are | at 80 % light: median picture of the alarm | with 10 % real defects |")
    print("| --- | --- | --- | --- |")
    for folder in arguments.data:
        dataset = open_mvtec(folder)
        detector = Detector(dtype="float32").fit(dataset.train)
        n = detector.fitted_.calibration.n
        p = detector.score(dataset.test).p_values
        good, bad = p[~dataset.labels], p[dataset.labels]
        darker = [varied(dataset.test.read(i), Draw(brightness=0.8)) for i in np.flatnonzero(~dataset.labels)]
        dark = detector.score(darker).p_values
        quiet, seen, mixed = 0, [], 0
        for run in range(20):
            rng = np.random.default_rng(run)
            again = np.concatenate([rng.permutation(good) for _ in range(-(-500 // len(good)))])[:500]
            quiet += watch(again, n).alarm
            monitor = DriftMonitor(n)
            for value in np.concatenate([rng.permutation(dark) for _ in range(-(-100 // len(dark)))])[:100]:
                monitor.update(value)
            seen.append(monitor.alarmed_at or np.inf)
            defective = rng.random(500) < 0.1
            again[defective] = rng.choice(bad, size=int(defective.sum()))
            mixed += watch(again, n).alarm
        when = np.median(seen)
        text = f"{when:.0f}" if np.isfinite(when) else "none within 100"
        print(f"| {folder.name} | {quiet} of 20 alarm | {text} | {mixed} of 20 alarm |", flush=True)


if __name__ == "__main__":
    main()
