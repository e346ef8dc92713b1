"""Regions against masks: how many defects a region hits, how many regions good images have, and how large they are.

    python benchmarks/regions.py --data metal_nut bottle magnetic_tile kolektor --froc froc.png
    python benchmarks/regions.py --data … --weights first

At the pixel threshold for the promised rate, and as a curve over other rates (FROC: free-response receiver operating
characteristic, Bunch et al., Journal of Applied Photographic Engineering 4 (1978)). A defect is a connected part of a
mask; area is that of all regions of an image over that of its mask, where a region hits it. In common is what regions
and masks share, of all pixels that either covers in pictures with a mask.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def measure(detector, scores, data) -> dict[str, float]:
    """Of one set, at the threshold of the detector's rate."""
    hit = defects = false = alarmed = good = shared = covered = 0
    ratios = []
    position = {name: i for i, name in enumerate(data.test.ids)}
    for i, name in enumerate(scores.ids):
        at = position[name]
        if not data.labels[at]:
            found = scores.regions(i)
            good, false, alarmed = good + 1, false + len(found), alarmed + bool(found)
            continue
        try:
            mask = data.read_mask(at, scores.image_sizes[i]) if data.has_mask[at] else None
        except ValueError:  # nothing is marked, or all
            continue
        if mask is None:
            continue
        painted = scores.defect_mask(i)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        reached = np.unique(labels[painted])
        hit, defects = hit + int((reached > 0).sum()), defects + count
        shared, covered = shared + int((painted & mask).sum()), covered + int((painted | mask).sum())
        if (painted & mask).any():
            ratios.append(painted.sum() / mask.sum())
    return {
        "hit": hit / max(defects, 1),
        "defects": defects,
        "false": false / good,
        "alarmed": alarmed / good,
        "common": shared / max(covered, 1),
        "good": good,
        "low": float(np.quantile(ratios, 0.25)) if ratios else np.nan,
        "area": float(np.median(ratios)) if ratios else np.nan,
        "high": float(np.quantile(ratios, 0.75)) if ratios else np.nan,
    }


def main() -> None:
    from anomalib_lite import Detector
    from anomalib_lite.images.mvtec import open_mvtec
    from anomalib_lite.plotting.style import axes_of, new_figure

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--rate", type=float, default=0.05, help="promised false-alarm rate")
    parser.add_argument("--weights", help="of the built-in network, as `Detector` takes them")
    parser.add_argument("--froc", type=Path, help="file of the curves")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = ("data", "good images with a region (promised)", "defects hit", "regions per good image", "area / mask")
    print(f"| {' | '.join(columns)} | in common |\n{'| --- ' * 6}|")
    figure = new_figure(height=3.4)
    (axis,) = axes_of(figure, 1, 1)
    for folder in arguments.data:
        data = open_mvtec(folder)
        detector = Detector(false_alarm_rate=arguments.rate, weights=arguments.weights).fit(data.train)
        found = measure(detector, detector.score(data.test), data)
        print(
            f"| {folder.name} | {found['alarmed']:.3f} ({arguments.rate:g}) of {found['good']} | {found['hit']:.3f} of "
            f"{found['defects']} | {found['false']:.3f} | "
            f"{found['area']:.2f} (half: {found['low']:.2f} to {found['high']:.2f}) | {found['common']:.3f} |",
            flush=True,
        )
        if arguments.froc:
            curve = [measure(other, other.score(data.test), data) for other in map(detector.at_rate, RATES)]
            axis.plot([at["false"] for at in curve], [at["hit"] for at in curve], marker="o", label=folder.name)
            print(f"  {folder.name}: " + ", ".join(f"{at['hit']:.2f} at {at['false']:.2f}" for at in curve), flush=True)
    if arguments.froc:
        axis.set_xlabel("regions per good image")
        axis.set_ylabel("share of defects hit")
        axis.legend(frameon=False)
        figure.savefig(arguments.froc)


if __name__ == "__main__":
    main()
