"""What a camera must show (`images.sight`): test pictures refused, as they are, blurred, dark and overexposed.

python benchmarks/sight.py --data metal_nut bottle elpv_poly magnetic_tile kolektor
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from anomalib_lite.images.sight import Sight


def opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    radii = (1, 2, 3, 4, 6)
    print(f"| data | refused | {' | '.join(f'blurred by {radius} px' for radius in radii)} | at 5 % of the light |")
    print("|---|---|" + "---|" * (len(radii) + 1))
    for data in parser.parse_args().data:
        good = sorted((data / "train" / "good").iterdir())
        picked = np.unique(np.linspace(0, len(good) - 1, min(len(good), 64)).round().astype(int))
        sight = Sight.learn(np.asarray(opened(good[i])) for i in picked)
        assert sight is not None
        test = sorted((data / "test").rglob("*.*"))
        refused = sum(sight.fault(np.asarray(opened(path))) is not None for path in test)
        few = test[:: max(1, len(test) // 40)]
        shares = []
        for radius in radii:
            blurred = (np.asarray(opened(path).filter(ImageFilter.GaussianBlur(radius))) for path in few)
            shares.append(np.mean([sight.fault(pixels) is not None for pixels in blurred]))
        dark = np.mean([sight.fault((0.05 * np.asarray(opened(path))).astype(np.uint8)) is not None for path in few])
        told = " | ".join(f"{share:.2f}" for share in (*shares, dark))
        print(f"| {data.name} | {refused} of {len(test)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
