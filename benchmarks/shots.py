"""What several shots of one part do to the promise: on real sets, from good images alone.

    python benchmarks/shots.py --data metal_nut bottle magnetic_tile kolektor elpv_poly

Per set and number of parts: five shots of each, as a fixed camera takes them (2 pixels of play, 3 % of light, noise of
3 grey levels, JPEG), are learnt at the smallest rate that so many parts support, and shots of other good parts are
scored: how many alarm when nothing is said (shots are looked for), and with ``groups=``. "withheld" is a threshold that
promises nothing. Then plain pictures, 10 to all of them at a time: in how many of 40 draws the promise is withheld for
nothing.
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
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--parts", type=int, nargs="+", default=[8, 20, 40])
    parser.add_argument("--draws", type=int, default=4)
    options = parser.parse_args()
    from anomalib_lite import Detector
    from anomalib_lite.embedding.streaming import embed_whole
    from anomalib_lite.fitted.coverage import binomial_band
    from anomalib_lite.fitted.duplicates import duplicate_groups, too_many_twins
    from anomalib_lite.images.mvtec import open_mvtec

    warnings.simplefilter("ignore")  # the warning is what is measured
    print("| set | parts × shots | promised | alarms of new parts, nothing said | with groups= | band of chance |")
    print("| --- | --- | --- | --- | --- | --- |")
    lines = []
    for folder in options.data:
        source = open_mvtec(folder).train
        for parts in options.parts:
            rate = max(1 / (parts + 1), 0.05)
            alarms, seen, promised = {False: 0, True: 0}, 0, 0
            for draw in range(options.draws):
                rng = np.random.default_rng(draw)
                order = rng.permutation(len(source)).tolist()
                shots = [shot(source.read(i), rng) for i in order[:parts] for _ in range(5)]
                new = [shot(source.read(i), rng) for i in order[parts : parts + 40]]
                seen += len(new)
                for grouped in (False, True):
                    detector = Detector(false_alarm_rate=rate, dtype="float32", random_state=draw)
                    detector.fit(shots, groups=np.repeat(np.arange(parts), 5) if grouped else None)
                    alarms[grouped] += int(detector.score(new).alarms.sum())
                    promised += not grouped and detector.fitted_.calibration.guarantee_met
            low, high = binomial_band(rate, seen)
            given = f"{alarms[False] / seen:.3f} (promised in {promised} of {options.draws})"
            print(
                f"| {folder.name} | {parts} × 5 | {rate:.3f} | {given} | {alarms[True] / seen:.3f} | "
                f"{low / seen:.3f} to {high / seen:.3f} |",
                flush=True,
            )
        vectors, _ = embed_whole(Detector(dtype="float32").embedder, source)
        rng = np.random.default_rng(1)
        draws = [rng.permutation(len(vectors))[:size] for size in (10, 20, 40, len(vectors)) for _ in range(10)]
        withheld = sum(too_many_twins(duplicate_groups(vectors[drawn])) for drawn in draws)
        lines.append(f"{folder.name}: plain pictures, withheld for nothing in {withheld} of {len(draws)} draws")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
