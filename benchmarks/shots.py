"""What several shots of one part do to the promise, and whether it is withheld: on real sets, from good images alone.

    python benchmarks/shots.py --data FOLDER

FOLDER holds sets in the layout of MVTec AD. Per set: eight of its good parts, five shots of each as a fixed camera
takes them (2 pixels of play, 3 % of light, noise of 3 grey levels, JPEG), 5 % asked; how many of 40 other good parts
alarm.
Then plain pictures, 10 to all of them at a time: in how many of 40 draws the promise is withheld for nothing.
"""

import argparse
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image


def shot(pixels, rng):
    """A part as the camera sees it another time, as a JPEG file."""
    moved = np.roll(pixels, rng.integers(-2, 3, size=2), axis=(0, 1)) * rng.uniform(0.97, 1.03)
    buffer = io.BytesIO()
    noisy = np.clip(moved + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sets in MVTec AD layout")
    options = parser.parse_args()
    from anomalib_lite import Detector
    from anomalib_lite.embedding.streaming import embed_whole
    from anomalib_lite.fitted.duplicates import duplicate_groups, too_many_twins
    from anomalib_lite.images.mvtec import good_folders, open_mvtec

    warnings.simplefilter("ignore")  # the warning is what is measured
    print("| set | other good parts that alarm | promise | plain pictures: withheld for nothing |")
    print("| --- | --- | --- | --- |")
    for category in sorted(train.parent for train in options.data.glob("*/train") if good_folders(train)):
        source = open_mvtec(category).train
        rng = np.random.default_rng(1)
        order = rng.permutation(len(source)).tolist()
        shots = [shot(source.read(i), rng) for i in order[:8] for _ in range(5)]
        detector = Detector(false_alarm_rate=0.05, dtype="float32").fit(shots)
        alarms = detector.score([source.read(i) for i in order[8:48]]).alarms.mean()
        vectors, _ = embed_whole(detector.embedder, source)
        draws = [rng.permutation(len(vectors))[:size] for size in (10, 20, 40, len(vectors)) for _ in range(10)]
        withheld = sum(too_many_twins(duplicate_groups(vectors[drawn])) for drawn in draws)
        promise = "given" if detector.fitted_.calibration.guarantee_met else "withheld"
        print(f"| {category.name} | {alarms:.2f} | {promise} | {withheld} of {len(draws)} |", flush=True)


if __name__ == "__main__":
    main()
