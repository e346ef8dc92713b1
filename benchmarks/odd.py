"""Whether a smaller bank finds the same odd images, as `diagnose` has them: 40 good ones and a bad one of each kind.

python benchmarks/odd.py metal_nut bottle
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from anomalib_lite import Detector
from anomalib_lite.diagnosis.statistics import suspicious

BANKS = (10_000, 4_096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path, help="folders in MVTec layout")
    print("| data | bank | processor s of a fit | threshold | rank correlation | far out, good and defective |")
    print("| --- | --- | --- | --- | --- | --- |")
    for data in parser.parse_args().data:
        good = sorted((data / "train" / "good").iterdir())[:40]
        kinds = sorted(kind for kind in (data / "test").iterdir() if kind.name != "good")
        bad = [sorted(kind.iterdir())[3] for kind in kinds]
        first: np.ndarray | None = None
        for bank in BANKS:
            start = time.process_time()
            detector = Detector(bank_size=bank).fit([*good, *bad], groups="each", everything_is_good=True)
            taken, scores = time.process_time() - start, detector.decision_scores_
            first = scores if first is None else first
            found = suspicious([str(i) for i in range(len(scores))], scores)
            far = [int(name) >= len(good) for name, out in zip(found.ids, found.outlying, strict=True) if out]
            told = f"{far.count(False)} of {len(good)}, {far.count(True)} of {len(bad)}"
            order = spearmanr(first, scores).statistic
            threshold = detector.fitted_.calibration.threshold
            print(f"| {data.name} | {bank} | {taken:.1f} | {threshold:.3f} | {order:.3f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
