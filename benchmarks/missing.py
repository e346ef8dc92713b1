"""Pieces that are missing, doubled or swapped: what patches see of them, and what whole images do.

Draws two kinds of parts, eight loose pieces in a tray (anywhere) and six fixed on a plate (which itself lies
somewhere), fits on good ones and scores good and wrong ones. With sets in the layout of MVTec AD, those too.

    python benchmarks/missing.py
    python benchmarks/missing.py path/to/metal_nut path/to/bottle --seeds 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from anomalib_lite import Detector, evaluate

KINDS = ("missing", "doubled", "swapped")
SIDE, SHOWN, RADIUS = 512, 256, 26
RATE = 0.05


def tray(rng: np.random.Generator, wrong: str | None) -> np.ndarray:
    """Four rings and four screws, loose in a tray."""
    pieces, places = _pieces(rng, 4, wrong, 8), []
    while len(places) < len(pieces):
        place = rng.uniform(45, SIDE - 45, 2)
        if all(np.hypot(*(place - other)) > 2.5 * RADIUS for other in places):
            places.append(place)
    return _drawn(rng, pieces, places, None)


def plate(rng: np.random.Generator, wrong: str | None) -> np.ndarray:
    """Three rings and three screws in two rows on a plate."""
    shift = rng.uniform(-40, 40, 2)
    pieces = _pieces(rng, 3, wrong, 6, lost=None)
    places = [np.array([140 + 130 * (i % 3), 170 + 170 * (i // 3)]) for i in range(6)]
    if wrong == "doubled":
        places.append(np.array([rng.uniform(190, 330), 255]))
    places = [place + shift + rng.uniform(-3, 3, 2) for place in places]
    return _drawn(rng, pieces, places, shift)


def _pieces(rng: np.random.Generator, each: int, wrong: str | None, count: int, lost: str | None = "") -> list[str]:
    pieces: list[str | None] = [*["ring"] * each, *["screw"] * each]
    chosen = int(rng.integers(count))
    if wrong == "missing":
        pieces[chosen] = lost
    if wrong == "swapped":
        pieces[chosen] = "screw" if pieces[chosen] == "ring" else "ring"
    if wrong == "doubled":
        pieces.append(("ring", "screw")[rng.integers(2)])
    return [piece for piece in pieces if piece != ""]  # type: ignore[misc]


def _drawn(
    rng: np.random.Generator, pieces: list[str], places: list[np.ndarray], shift: np.ndarray | None
) -> np.ndarray:
    picture = Image.new("L", (SIDE, SIDE), 60)
    draw = ImageDraw.Draw(picture)
    if shift is not None:
        draw.rectangle([60 + shift[0], 60 + shift[1], 452 + shift[0], 452 + shift[1]], fill=150)
    for (x, y), piece in zip(places, pieces, strict=True):
        box = [x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS]
        if piece == "ring":
            draw.ellipse(box, fill=160, outline=200, width=4)
            draw.ellipse([x - 11, y - 11, x + 11, y + 11], fill=60)
        if piece == "screw":
            draw.ellipse(box, fill=210, outline=90, width=3)
            slot = 20 * np.array([np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)])
            draw.line([x - slot[0], y - slot[1], x + slot[0], y + slot[1]], fill=70, width=6)
    seen = np.asarray(picture.filter(ImageFilter.GaussianBlur(2)).resize((SHOWN, SHOWN), Image.Resampling.BOX))
    noisy = np.clip(seen + rng.normal(0, 2, seen.shape), 0, 255).astype(np.uint8)
    return np.repeat(noisy[..., None], 3, axis=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"recall at a promised {100 * RATE:g} % / false alarms observed; means of {arguments.seeds} seeds\n")
    print(f"| data | level | {' | '.join(KINDS)} | false alarms |")
    print("|---|---|" + "---|" * (len(KINDS) + 1))
    for draw in (tray, plate):
        for level in ("patch", "global", "both"):
            rows = []
            for seed in range(arguments.seeds):
                rng = np.random.default_rng(seed)
                good = [draw(rng, None) for _ in range(200)]
                detector = Detector(level=level, false_alarm_rate=RATE, random_state=seed)
                if level == "global":
                    detector = Detector(level=level, scorer="subspace", false_alarm_rate=RATE, random_state=seed)
                detector.fit(good, groups="each")
                test = [[draw(rng, wrong) for _ in range(100)] for wrong in (*KINDS, None)]
                rows.append([detector.score(some).alarms.mean() for some in test])
            shares = " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0))
            print(f"| {draw.__name__} | {level} | {shares} |", flush=True)
    if arguments.data:
        print("\n| data | level | recall | false alarms | image AUROC |\n|---|---|---|---|---|")
    for data in arguments.data:
        for level in ("patch", "both"):
            rows = []
            for seed in range(arguments.seeds):
                result = evaluate(data, rates=(RATE,), level=level, random_state=seed)
                (point,) = (one for one in result.at_rates if one.false_alarm_rate_target == RATE)
                rows.append((point.recall_at_threshold, point.false_alarm_rate_observed, result.image_auroc))
            recall, observed, auroc = np.mean(rows, axis=0)
            print(f"| {data.name} | {level} | {recall:.3f} | {observed:.3f} | {auroc:.4f} |", flush=True)


if __name__ == "__main__":
    main()
