"""A made-up set of metal nuts with defects and masks, in the layout of MVTec AD: a seed in, a folder out.

The part is drawn by formula: a turned hub with a hole and four lobes that lean one way, so that its mirror
image is another part ("flip"). Position, angle, light, tint, ground and sensor noise change from image to
image as they do before a camera. For the demo and the tests; it says nothing about accuracy on real parts.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Defect = Literal["scratch", "bent", "color", "flip"]

# One period of the outline: (turn within the lobe, radius). Steep on one side, sloping on the other; that is
# what makes the part chiral.
OUTLINE = (
    (0.0, 0.66),
    (0.05, 0.80),
    (0.09, 0.97),
    (0.13, 1.0),
    (0.30, 1.0),
    (0.36, 0.97),
    (0.93, 0.66),
    (1.0, 0.66),
)
LOBES = 4
HUB = 0.60
CHAMFER = 0.36
HOLE = 0.28


def make_metal_nut(
    folder: str | os.PathLike[str],
    *,
    n_train: int = 40,
    n_good: int = 20,
    n_defect: int = 10,
    size: int = 256,
    random_state: int = 0,
) -> Path:
    """Write a set of drawn metal nuts in the layout of MVTec AD.

    Every image depends on `random_state`, its kind and its number alone: a larger set begins with the
    images of a smaller one.

    Parameters
    ----------
    folder : path
        A new or an empty folder.
    n_train : int
        Good images to fit on (``train/good``).
    n_good : int
        Good images to test on (``test/good``).
    n_defect : int
        Test images of each kind of defect: scratch, bent, color, flip. Each has a mask.
    size : int, default 256
        Width and height in pixels; an image takes about 30 ms at 256, drawing and writing.
    random_state : int, default 0
        Not negative.

    Returns
    -------
    Path
        `folder`, ready for `open_mvtec`.

    Raises
    ------
    FileExistsError
        If `folder` holds anything: images of two sets would mix.

    Examples
    --------
    >>> import tempfile
    >>> root = make_metal_nut(tempfile.mkdtemp(), n_train=2, n_good=1, n_defect=1, size=32)
    >>> sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))[:3]
    ['ground_truth/bent', 'ground_truth/color', 'ground_truth/flip']
    """
    root = Path(folder)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root}: not empty; give a new folder, or empty this one")
    _write(root, "train", None, n_train, size, random_state)
    _write(root, "test", None, n_good, size, random_state)
    for defect in get_args(Defect):
        _write(root, "test", defect, n_defect, size, random_state)
    return root


def render_part(
    rng: np.random.Generator, size: int = 256, defect: Defect | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one part.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides everything that varies.
    size : int, default 256
        Width and height in pixels.
    defect : {"scratch", "bent", "color", "flip"}, optional
        By default a good part.

    Returns
    -------
    image : ndarray of shape (size, size, 3), uint8
    mask : ndarray of shape (size, size), bool
        True where the part is defective.

    Raises
    ------
    ValueError
        For another `defect`.

    Examples
    --------
    >>> image, mask = render_part(np.random.default_rng(0), 64, "scratch")
    >>> image.shape, image.dtype, bool(mask.any())
    ((64, 64, 3), dtype('uint8'), True)
    """
    if defect is not None and defect not in get_args(Defect):
        raise ValueError(f"defect={defect!r}: give one of {', '.join(get_args(Defect))}, or None for a good part")
    # Defects draw from their own stream, so that the good and the spoilt part of one seed are the same part.
    defect_rng = np.random.default_rng(rng.integers(2**63))
    scale = 0.40 * size * rng.uniform(0.97, 1.03)
    centre = size / 2 + rng.uniform(-0.025, 0.025, 2) * size
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    x, y = (x - centre[0]) / scale, (y - centre[1]) / scale  # outer radius 1, in the frame of the image

    # Into the frame of the part.
    u = (np.cos(angle) * x + np.sin(angle) * y).astype(np.float32)
    v = (np.cos(angle) * y - np.sin(angle) * x).astype(np.float32)
    light = rng.uniform(0, 2 * np.pi)
    towards = (np.cos(light) * x + np.sin(light) * y).astype(np.float32)  # how far on the side of the light
    light_on_part = light - angle
    if defect == "flip":
        v, light_on_part = -v, -light_on_part
    bend = np.zeros_like(u)
    straight = _coverage(u, v, scale)
    if defect == "bent":
        u, v, bend = _bent(u, v, defect_rng)
    part = _coverage(u, v, scale)  # (size, size), share of each pixel that the part fills

    metal = _metal(u, v, towards, light_on_part, rng) * (1 + 0.9 * bend)
    metal = metal[..., None] * _tint(rng)  # (size, size, 3)

    mask = np.zeros((size, size), bool)
    if defect == "scratch":
        metal, mask = _scratched(metal, part, x, y, scale, centre, defect_rng)
    elif defect == "color":
        metal, mask = _stained(metal, part, x, y, defect_rng)
    elif defect == "bent":
        mask = (np.abs(bend) > 0.06) & (np.maximum(part, straight) > 0.5)
    elif defect == "flip":
        mask = part > 0.5

    ground = _ground(part, x, y, towards, light, scale, rng)
    scene = ground + part[..., None] * (metal - ground)
    return _photographed(scene, rng), mask


def _write(root: Path, split: str, defect: Defect | None, n: int, size: int, random_state: int) -> None:
    kind = defect or "good"
    images, masks = root / split / kind, root / "ground_truth" / kind
    images.mkdir(parents=True, exist_ok=True)
    if defect:
        masks.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        # zlib.crc32 and not hash(), which differs from one run of Python to the next.
        rng = np.random.default_rng([random_state, zlib.crc32(f"{split}/{kind}".encode()), i])
        image, mask = render_part(rng, size, defect)
        Image.fromarray(image).save(images / f"{i:03d}.png")
        if defect:
            Image.fromarray(mask).save(masks / f"{i:03d}_mask.png")


def _bent(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Push the part aside around the tip of one lobe; returns the coordinates and how much light changes."""
    tip = 2 * np.pi * (rng.integers(LOBES) + rng.uniform(0.12, 0.5)) / LOBES
    at_u, at_v = 0.95 * np.cos(tip), 0.95 * np.sin(tip)
    reach = rng.uniform(0.18, 0.30)
    near = np.exp(-((u - at_u) ** 2 + (v - at_v) ** 2) / (2 * reach**2))
    push = rng.uniform(0.12, 0.32)
    direction = tip + rng.choice([0, np.pi / 2, -np.pi / 2]) + rng.uniform(-0.4, 0.4)
    # Sampling further out draws the lobe further in.
    u = u + near * push * np.cos(direction)
    v = v + near * push * np.sin(direction)
    tilt = rng.choice([-1, 1]) * rng.uniform(0.25, 0.5)
    return u.astype(np.float32), v.astype(np.float32), (near * tilt).astype(np.float32)


def _coverage(u: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Return the share of each pixel that the part fills, the hole left out."""
    r, outline, slope = _polar(u, v)
    # The gap along the radius, turned into a distance across the edge; one pixel of ramp is antialiasing.
    edge = (outline - r) / np.sqrt(1 + (slope / np.maximum(r, 0.3)) ** 2)
    return np.clip(edge * scale + 0.5, 0, 1) * np.clip((r - HOLE) * scale + 0.5, 0, 1)


def _polar(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return radius, radius of the outline in that direction, and the outline's slope per radian."""
    r = np.hypot(u, v)
    turn = np.arctan2(v, u) * (LOBES / (2 * np.pi)) % 1.0
    place = (turn * len(_OUTLINE)).astype(np.intp) % len(_OUTLINE)
    return r, _OUTLINE[place], _SLOPE[place]


def _metal(u: np.ndarray, v: np.ndarray, towards: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    """Return the brightness of the metal under a light from the angle `light`, in the part's frame."""
    r, outline, slope = _polar(u, v)
    phi = np.arctan2(v, u)
    facing = np.cos(phi - light)  # of a face that looks outwards
    inside = (outline - r) / np.sqrt(1 + (slope / np.maximum(r, 0.3)) ** 2)  # to the edge

    # A turned face shines in two opposite sectors, where its grooves stand across the light.
    bow = np.cos(2 * (phi - light)) * 0.5 + 0.5
    grooves = _noise(rng, 400)[(r * 160).astype(np.intp)]
    hub = 0.36 + 0.16 * bow**3 + (0.03 + 0.04 * bow) * grooves

    # The lobes are brushed along one direction and fall away outwards.
    strokes = rng.standard_normal((256, 24)).astype(np.float32)
    long_way = ((u + 1.5) * 8).astype(np.intp) % 24
    across = ((v + 1.5) * 85).astype(np.intp) % 256
    lobes = 0.40 + 0.10 * facing + 0.03 * strokes[across, long_way] - 0.12 * np.clip(r - 0.8, 0, 1)
    # Two bands left by the press; they run outwards on one side, so they turn with the outline.
    turn = np.arctan2(v, u) * (LOBES / (2 * np.pi)) % 1.0
    for radius in (0.72, 0.84):
        lobes += 0.10 * _ridge(r - radius - 0.10 * turn, 0.012) * (0.5 + facing)

    metal = np.where(r < HUB, hub, lobes)
    metal += 0.20 * facing * (_ridge(r - HUB, 0.014) - _ridge(r - HUB - 0.03, 0.014))
    metal += -0.30 * facing * _ridge(r - (HOLE + CHAMFER) / 2, 0.03)  # the chamfer looks inwards
    metal += 0.10 * _ridge(r - CHAMFER, 0.010) + 0.16 * _ridge(r - HOLE, 0.008)
    metal += (0.16 + 0.22 * np.cos(phi - light)) * _ridge(inside, 0.018)  # the rounded rim
    grains = rng.standard_normal(u.shape).astype(np.float32)
    metal *= 1 + 0.06 * grains + 0.06 * np.clip(grains - 1.2, 0, None)
    metal *= 1 + rng.uniform(0.04, 0.16) * towards  # the light is near, so it falls off
    return np.clip(metal * rng.uniform(0.9, 1.1), 0.02, 1.2)


def _noise(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n).astype(np.float32)


def _ridge(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-0.5 * (distance / width) ** 2)


def _tint(rng: np.random.Generator) -> np.ndarray:
    """Return the zinc's colour as a factor per channel, (3,)."""
    return np.array([0.88, 1.02, 0.98], np.float32) * (1 + rng.uniform(-0.03, 0.03, 3)).astype(np.float32)


def _spot(part: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose a point on the metal, clear of the hole; a defect beside the part would have an empty mask."""
    on_metal = np.flatnonzero((part > 0.99) & (np.hypot(x, y) > CHAMFER + 0.06))
    chosen = rng.choice(on_metal)
    return np.array([x.flat[chosen], y.flat[chosen]])


def _scratched(
    metal: np.ndarray,
    part: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    scale: float,
    centre: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one to three near-parallel curved lines, bright or dark, over the hub and the lobes."""
    size = len(part)
    canvas = Image.new("L", (4 * size, 4 * size))  # four times as fine, for antialiasing
    draw = ImageDraw.Draw(canvas)
    start = _spot(part, x, y, rng)
    heading, length, curve = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9), rng.uniform(-0.6, 0.6)
    t = np.linspace(-0.5, 0.5, 24)
    for _ in range(rng.integers(1, 4)):
        turned = heading + curve * t + rng.normal(0, 0.05)
        line = start + rng.normal(0, 0.03, 2) + length * t[:, None] * np.column_stack([np.cos(turned), np.sin(turned)])
        width = max(1, round(4 * scale * rng.uniform(0.012, 0.030)))
        draw.line([tuple(p) for p in 4 * (centre + scale * line)], fill=255, width=width, joint="curve")
    cover = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32) / 255 * part
    change = rng.choice([-1, 1]) * rng.uniform(0.20, 0.60)
    return metal + change * cover[..., None], cover > 0.2


def _stained(
    metal: np.ndarray, part: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lay a stain with a ragged outline over the metal: paint, rust, oil or soot."""
    at_x, at_y = _spot(part, x, y, rng)
    dx, dy = x - at_x, y - at_y
    around, reach = np.arctan2(dy, dx), rng.uniform(0.07, 0.20)
    ragged = 1 + sum(rng.normal(0, 0.16) * np.cos(k * around + rng.uniform(0, 6.3)) for k in range(2, 7))
    ragged = np.maximum(ragged, 0.5)
    cover = np.clip((reach * ragged - np.hypot(dx, dy)) / 0.025 + 0.5, 0, 1) * part
    colours = ((0.75, 0.10, 0.14), (0.45, 0.24, 0.10), (0.18, 0.30, 0.62), (0.05, 0.05, 0.05))
    colour = np.array(colours[rng.integers(len(colours))], np.float32)
    # A thin stain lets the metal through.
    alpha = (rng.uniform(0.4, 0.9) * cover)[..., None]
    return metal * (1 - alpha) + alpha * colour * (0.4 + metal), cover > 0.5


def _ground(
    part: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    towards: np.ndarray,
    light: float,
    scale: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the dark ground with the part's soft shadow on it, (size, size, 3)."""
    level = rng.uniform(0.09, 0.14) * (1 + 0.10 * towards)
    blurred = Image.fromarray((part * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.05 * scale))
    shift = np.rint(-0.06 * scale * np.array([np.sin(light), np.cos(light)])).astype(int)
    shadow = np.roll(np.asarray(blurred, np.float32) / 255, shift, axis=(0, 1))
    # The hole shows the ground, deep in shadow.
    depth = np.where(np.hypot(x, y) < HOLE + 0.02, 0.45, 1 - 0.55 * shadow)
    return (level * depth)[..., None] * np.array([0.92, 0.94, 1.15], np.float32)


def _photographed(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur as a lens does, add shot and read noise, and round to uint8."""
    levels = Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8))
    lens = np.asarray(levels.filter(ImageFilter.GaussianBlur(rng.uniform(0.35, 0.6))), np.float32)
    noise = rng.standard_normal(scene.shape).astype(np.float32) * (1.0 + 0.12 * np.sqrt(lens))
    return np.clip(np.rint(lens + noise), 0, 255).astype(np.uint8)


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Tabulate one lobe's outline and its slope per radian, corners rounded."""
    n = 720
    at, radius = np.array(OUTLINE).T
    outline = np.interp(np.arange(n) / n, at, radius)
    window = np.hanning(25) / np.hanning(25).sum()
    outline = np.convolve(np.pad(outline, 12, mode="wrap"), window, mode="valid")
    slope = np.gradient(np.pad(outline, 1, mode="wrap"))[1:-1] * n * LOBES / (2 * np.pi)
    return outline.astype(np.float32), slope.astype(np.float32)


_OUTLINE, _SLOPE = _tables()
