"""Does the promise hold? Coverage by halves, from good images alone: no test label takes part.

    python benchmarks/coverage.py --data metal_nut bottle magnetic_tile kolektor elpv_poly --draws 20

Per draw a detector is fitted and calibrated on a random half of train/good; p-values of the other half are counted.
Right are 5, 10 and 20 % of them at most that, and a median of 0.5: far fewer small ones give away recall, more of them
break the promise. Only public names are used, so that the same file measures an older version beside this one.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np


class Embedded:
    """Images of a source whose embeddings are kept, so that every draw begins where fitting begins."""

    def __init__(self, source, known, chosen=None):
        self.source, self.known = source, known
        self.chosen = np.arange(len(source)) if chosen is None else chosen
        self.ids = [source.ids[i] for i in self.chosen]

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        return self.source.read(self.chosen[i])

    def embedded(self, embedder, i):
        from dataclasses import replace

        return replace(self.known[self.chosen[i]], index=i)


def main() -> None:
    from anomalib_lite.detector import Detector
    from anomalib_lite.embedding.streaming import embed_source
    from anomalib_lite.images.mvtec import open_mvtec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--scorers", nargs="+", default=["knn"])
    parser.add_argument("--levels", nargs="+", default=["patch"], choices=["patch", "global"])
    parser.add_argument("--calibration", help="cross or split [default: the library's]")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = {"dtype": arguments.dtype}
    if arguments.calibration:
        chosen["calibration"] = arguments.calibration
    print("| data | level, scorer | p ≤ 5 % | p ≤ 10 % | p ≤ 20 % | median p | seconds per fit |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder in arguments.data:
        source = open_mvtec(folder).train
        for level in arguments.levels:
            embedder = Detector(level=level, **chosen).embedder
            known = {image.index: image.stored() for image in embed_source(embedder, source, np.arange(len(source)))}
            for scorer in arguments.scorers:
                p_values, seconds = [], []
                for draw in range(arguments.draws):
                    order = np.random.default_rng(draw).permutation(sorted(known))
                    learnt, new = np.array_split(order, 2)
                    detector = Detector(level=level, scorer=scorer, random_state=draw, **chosen)
                    begin = time.perf_counter()
                    detector.fit(Embedded(source, known, learnt))
                    seconds.append(time.perf_counter() - begin)
                    p_values.append(detector.score(Embedded(source, known, new)).p_values)
                p = np.concatenate(p_values)
                shares = " | ".join(f"{100 * (p <= share).mean():.1f}" for share in (0.05, 0.1, 0.2))
                print(
                    f"| {folder.name} | {level}, {scorer} | {shares} | {np.median(p):.2f} | {np.median(seconds):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
