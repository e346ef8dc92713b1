"""Where the places of networks' maps lie in a picture: dots are painted on good ones, and changes looked at.

    python benchmarks/places.py --data metal_nut bottle magnetic_tile kolektor elpv_poly --weights FOLDER

Maps are drawn over pictures as cells, the first of which are centred on pixel 3.5 at stride 8 and 7.5 at stride 16.
Printed is where the first place of each network is centred: mean of both axes and all pictures, ± its standard error
over the sets. FOLDER holds state dicts named as those that teach (`resnet18.pth`, …, see `anomalib_lite/pretraining`),
and other weights of the built-in network (`*.safetensors`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.weights import weights_in
from anomalib_lite.pretraining.distillation import TEACHERS, network_of
from anomalib_lite.pretraining.placing import Maps, first_places

SIDE = 256


def shown(path: Path) -> np.ndarray:
    """The middle of a picture whose shorter side has `SIDE` pixels: uint8 (SIDE, SIDE, 3)."""
    picture = Image.open(path).convert("RGB")
    scale = SIDE / min(picture.size)
    width, height = (max(SIDE, round(length * scale)) for length in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))[top : top + SIDE, left : left + SIDE]


def maps_of(embedder: Embedder) -> Maps:
    return lambda pixels: embedder.features(pixels).layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders in MVTec AD layout")
    parser.add_argument("--weights", type=Path, help="folder of weights of other networks")
    parser.add_argument("--each", type=int, default=8, help="pictures of every set")
    arguments = parser.parse_args()
    sets = [
        np.stack([shown(path) for path in sorted((folder / "train" / "good").iterdir())[: arguments.each]])
        for folder in arguments.data
    ]
    networks = {
        name: ("builtin", None, weights) for name, weights in {"builtin": None, "builtin, first": "first"}.items()
    }
    for label, path in ({} if arguments.weights is None else weights_in(arguments.weights)).items():
        if network_of(label) in TEACHERS:
            networks[label] = (network_of(label), TEACHERS[network_of(label)], str(path))
        elif path.suffix == ".safetensors":
            networks[label] = ("builtin", None, str(path))
    print("| network | stride 8 | stride 16 |\n| --- | --- | --- |")
    for name, (backbone, layers, weights) in networks.items():
        embedder = Embedder(backbone, layers=layers, weights=weights, image_size=SIDE, dtype="float32")
        places = np.array([first_places(maps_of(embedder), crops) for crops in sets])
        errors = places.std(axis=0, ddof=1) / np.sqrt(len(places))
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in zip(places.mean(axis=0), errors, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
