"""Choices without labels: defects painted on half of the good images, found by a detector fitted on the other half.

    python benchmarks/painted.py --data metal_nut bottle magnetic_tile kolektor elpv_poly
    python benchmarks/painted.py --data … --weights first.safetensors second.safetensors

A thin line, a soft spot or a patch of the picture elsewhere, small and faint, so that no detector finds them all.
Compared are the values of `KNNScorer.local`, or weights of the built-in network; no picture of a real defect takes
part. Pixels are those that the paint has changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CHANGED = 8


def painted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture (H, W, 3) with one small defect where it is not darkest."""
    height, width = pixels.shape[:2]
    scale = min(height, width) / 256
    grey = pixels.mean(axis=2)
    places = np.argwhere(grey > np.quantile(grey, 0.35))
    y, x = places[rng.integers(len(places))].tolist()
    kind = rng.choice(["line", "spot", "elsewhere"])
    if kind == "elsewhere":
        side = int(rng.uniform(8, 18) * scale)
        top, left = (int(rng.integers(0, length - side)) for length in (height, width))
        y, x = min(y, height - side), min(x, width - side)
        changed = pixels.copy()
        changed[y : y + side, x : x + side] = pixels[top : top + side, left : left + side]
        return changed
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    if kind == "line":
        angle, half = rng.uniform(0, np.pi), rng.uniform(5, 17) * scale
        right, down = half * np.cos(angle), half * np.sin(angle)
        draw.line([x - right, y - down, x + right, y + down], fill=255, width=max(1, int(rng.uniform(1, 3) * scale)))
    else:
        radius = rng.uniform(3, 8) * scale
        draw.ellipse([x - radius, y - 0.7 * radius, x + radius, y + 0.7 * radius], fill=255)
    weight = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32)[..., None] / 255
    grown = pixels + weight * rng.choice([-1, 1]) * rng.uniform(20, 50)
    return np.clip(grown, 0, 255).astype(np.uint8)


class Painted:
    """An image source that paints a defect on every picture, the same one every time."""

    def __init__(self, source, seed):
        self.source, self.ids, self.seed = source, source.ids, seed

    def __len__(self):
        return len(self.source)

    def read(self, i):
        return painted(self.source.read(i), np.random.default_rng((self.seed, i)))

    def mask(self, i):
        """Bool (H, W): what was changed by more than a few grey values."""
        return np.abs(self.read(i).astype(np.int16) - self.source.read(i)).max(axis=2) > CHANGED


def main() -> None:
    from coverage import Embedded

    from anomalib_lite import Detector, KNNScorer
    from anomalib_lite.embedding.streaming import embed_source
    from anomalib_lite.evaluation.metrics import auroc
    from anomalib_lite.evaluation.pixel_metrics import PixelCurves
    from anomalib_lite.images.mvtec import open_mvtec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--local", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--weights", nargs="+", help="weights of the built-in network to compare, at the usual `local`")
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args()
    given = arguments.weights or [None]
    scorers = [{}] if arguments.weights else [{"local": local} for local in arguments.local]
    names = [Path(path).stem for path in given] if arguments.weights else [f"local {x:g}" for x in arguments.local]
    print("| data | " + " | ".join(f"{name}: recall at 5 %, AUROC, pixel AUROC / AUPRO" for name in names) + " |")
    print("| --- |" + " --- |" * len(names))
    for folder in arguments.data:
        source = open_mvtec(folder).train
        every = np.arange(len(source))
        found: list[list[tuple[float, ...]]] = [[] for _ in names]
        for number, weights in enumerate(given):
            embedder = Detector(dtype="float32", weights=weights).embedder
            plain = {image.index: image.stored() for image in embed_source(embedder, source, every)}
            for draw in range(arguments.draws):
                paint = Painted(source, draw)
                bad = {image.index: image.stored() for image in embed_source(embedder, paint, every)}
                learnt, new = np.array_split(np.random.default_rng(draw).permutation(sorted(plain)), 2)
                for place, options in enumerate(scorers, start=number * len(scorers)):
                    scorer = KNNScorer(random_state=draw, **options)
                    detector = Detector(dtype="float32", weights=weights, scorer=scorer, random_state=draw)
                    detector.fit(Embedded(source, plain, learnt), groups="each")
                    results = [detector.score(Embedded(source, known, new)) for known in (plain, bad)]
                    good, worse = (result.scores for result in results)
                    curves = PixelCurves()
                    for i, number_of_image in enumerate(new.tolist()):
                        curves.update(results[1].anomaly_map(i), paint.mask(number_of_image))
                    pixels = curves.result()
                    labels = np.repeat([False, True], [len(good), len(worse)])
                    recall = float((worse > np.quantile(good, 0.95)).mean())
                    area = auroc(labels, np.append(good, worse))
                    found[place].append((recall, area, pixels.pixel_auroc, pixels.aupro))
        means = [np.mean(values, axis=0) for values in found]
        print(
            f"| {folder.name} | " + " | ".join(f"{r:.3f}, {a:.4f}, {p:.4f} / {o:.3f}" for r, a, p, o in means) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
