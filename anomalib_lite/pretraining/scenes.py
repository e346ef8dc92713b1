"""Images drawn from formulas: coloured fields, objects with edges and shade on a ground, seen by a camera.

`scene(seed, n)` is what the built-in network is distilled on: any number of objects, from none (a surface) and one
(a part on a plain ground) to a heap. `texture(label, seed, n)` is a labelled image for training by formula class.
Colour follows the kind of a thing, but half the images are grey or nearly so, and light and gamma vary: colour
tells something, and is never enough.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from anomalib_lite.pretraining.fields import Random, field, lit

# What is in the frame: nothing but a surface, one object, a few, a heap.
_COUNTS = ((0, 1), (1, 2), (2, 5), (5, 25))
_COUNT_SHARES = (0.34, 0.3, 0.22, 0.14)


def scene(seed: int, n: int) -> np.ndarray:
    """A composed image, uint8 (n, n, 3), a function of its seed."""
    random = np.random.default_rng([seed, 0])
    image = _ground(random, n)
    fewest, most = _COUNTS[random.choice(4, p=_COUNT_SHARES)]
    kinds = random.integers(2**32, size=2)  # a heap is made of one or two kinds of things
    for _ in range(random.integers(fewest, most)):
        kind = np.random.default_rng(kinds[random.integers(2)] if most > 5 else random.integers(2**32))
        size = random.uniform(0.25, 0.95) if most == 2 else random.uniform(0.08, 0.5)
        _place(image, kind, random, size)
    return _photographed(image, random, faint=0.2)


def texture(label: int, seed: int, n: int) -> np.ndarray:
    """An image of formula class `label`, uint8 (n, n, 3): its surface, filling the frame or an object."""
    kind, random = np.random.default_rng([label, 1]), np.random.default_rng([seed, 2])
    image = _surface(kind, random, n)
    if random.random() < 0.4:
        mask = np.clip(_outline(random, random, n, random.uniform(0.5, 0.9)) * n / 2 + 0.5, 0, 1)[..., None]
        image = mask * image + (1 - mask) * _ground(random, n)
    return _photographed(image, random)


def _ground(random: Random, n: int) -> np.ndarray:
    if random.random() < 0.45:
        return _surface(random, random, n)
    plain = np.broadcast_to(_colors(random, 1)[0], (n, n, 3)).copy()  # a table, a conveyor belt, a light box
    if random.random() < 0.5:
        plain = plain * (1 + random.uniform(0, 0.08) * field(random, random, n)[..., None])
    return plain.astype(np.float32)


def _surface(kind: Random, draw: Random, n: int) -> np.ndarray:
    """A material (n, n, 3): colours along a field, a relief under a lamp, or both."""
    palette = _colors(kind, int(kind.integers(2, 6)))
    values = field(kind, draw, n)
    if kind.random() < 0.3:  # one colour, told by relief alone: cast metal, leather, plaster
        image = np.broadcast_to(palette[0], (n, n, 3)) * (1 + kind.uniform(0, 0.2) * np.clip(values, -2, 2)[..., None])
    else:
        at = np.clip(values * kind.uniform(0.15, 0.35) + 0.5, 0, 1)
        image = np.stack([np.interp(at, np.linspace(0, 1, len(palette)), palette[:, c]) for c in range(3)], -1)
    if kind.random() < 0.5:
        relief = values if kind.random() < 0.6 else field(kind, draw, n)
        image = image * lit(relief * kind.uniform(0.3, 2), kind, draw)[..., None]
    return image.astype(np.float32)


def _place(image: np.ndarray, kind: Random, draw: Random, size: float) -> None:
    """Put an object onto the image: outline, material, rounded edge under a lamp, shadow."""
    n = len(image)
    depth = _outline(kind, draw, n, size)  # > 0 inside, in image widths
    mask = np.clip(depth * n * kind.choice([1.0, 0.5]) + 0.5, 0, 1)[..., None]  # a sharp edge or one out of focus
    if kind.random() < 0.5:
        offset = tuple(int(step) for step in draw.normal(0, 0.03 * n, 2))
        shadow = gaussian_filter(np.roll(mask[..., 0], offset, (0, 1)), kind.uniform(0.005, 0.05) * n)
        image *= 1 - kind.uniform(0.1, 0.7) * shadow[..., None]
    material = _surface(kind, draw, n)
    if kind.random() < 0.3:
        material = np.broadcast_to(material.mean((0, 1)), material.shape)
    if kind.random() < 0.6:
        width = kind.uniform(0.01, 0.15)
        edge = np.sqrt(np.clip(1 - (1 - np.clip(depth / width, 0, 1)) ** 2, 0, 1)) * width * n  # a quarter circle
        material = material * lit(gaussian_filter(edge, 0.7), kind, draw)[..., None]
    image *= 1 - mask
    image += mask * material


def _outline(kind: Random, draw: Random, n: int, size: float) -> np.ndarray:
    """Depth inside a shape (n, n), positive inside, in image widths near the edge: discs, polygons, gears, bars, blobs,
    any of them with holes."""
    line = ((np.arange(n) + 0.5) / n - 0.5).astype(np.float32)
    x, y = np.meshgrid(line, line)
    reach = max(0.05, 0.5 - size / 2)
    x, y = x - draw.uniform(-reach, reach), y - draw.uniform(-reach, reach)
    turn = draw.uniform(0, 2 * np.pi)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    half = size / 2
    manner = kind.integers(5)
    if manner == 0:  # bar or rounded rectangle
        round_ = kind.uniform(0, 0.4) * half
        long = kind.uniform(0.05, 0.3) if kind.random() < 0.5 else kind.uniform(0.3, 1)
        qx, qy = np.abs(x) - half + round_, np.abs(y) - half * long + min(round_, half * long)
        outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0)
        depth = min(round_, half * long) - outside
    elif manner == 1:  # regular polygon
        sides = kind.integers(3, 9)
        angle = np.arctan2(y, x)
        wedge = np.pi / sides
        depth = half * np.cos(wedge) - np.hypot(x, y) * np.cos((angle + wedge) % (2 * wedge) - wedge)
    else:  # disc, ellipse, gear, flower, blob: a radius that varies with the angle
        flat = kind.choice([1.0, kind.uniform(0.3, 1)])
        radius, angle = np.hypot(x, y / flat), np.arctan2(y / flat, x)
        outline = np.ones_like(radius)
        if manner == 3:
            teeth, sharp = kind.integers(3, 30), kind.uniform(1, 6)
            outline += kind.uniform(0.02, 0.3) * np.tanh(sharp * np.sin(teeth * angle))
        elif manner == 4:
            for lobes in range(1, 6):
                outline += kind.normal(0, 0.25 / lobes) * np.sin(lobes * angle + kind.uniform(0, 2 * np.pi))
        depth = half * np.clip(outline, 0.2, 1.6) - radius
    if kind.random() < 0.35:  # holes: one in the middle, or a wreath
        holes = 1 if kind.random() < 0.5 else int(kind.integers(2, 9))
        ring = 0.0 if holes == 1 else half * kind.uniform(0.4, 0.7)
        bore = half * (kind.uniform(0.2, 0.7) if holes == 1 else kind.uniform(0.05, 0.2))
        for i in range(holes):
            at = 2 * np.pi * i / holes
            depth = np.minimum(depth, np.hypot(x - ring * np.cos(at), y - ring * np.sin(at)) - bore)
    return depth.astype(np.float32)


def _colors(kind: Random, count: int) -> np.ndarray:
    """`count` colours (count, 3) in [0, 1] that belong together; grey in half of all kinds."""
    base = kind.uniform(0.08, 0.95)
    light = np.clip(base + kind.normal(0, kind.choice([0.05, 0.15, 0.35]), count), 0.01, 1)
    saturation = kind.choice([0.0, kind.uniform(0, 0.15), kind.uniform(0.1, 0.9)], p=[0.3, 0.2, 0.5])
    hue = kind.random() + kind.normal(0, kind.choice([0.03, 0.3]), count)
    tint = np.stack([np.cos(2 * np.pi * (hue + third / 3)) for third in range(3)], -1)
    return np.clip(light[:, None] * (1 + saturation * tint), 0, 1)


def _photographed(image: np.ndarray, random: Random, *, faint: float = 0.0) -> np.ndarray:
    """Uneven light, exposure, defocus, noise and compression; float (n, n, 3) to uint8.

    A share `faint` has little contrast, beyond which a class could not be told.
    """
    n = len(image)
    if random.random() < 0.5:  # light falls off across the image
        line = np.linspace(-1, 1, n, dtype=np.float32)
        x, y = np.meshgrid(line, line)
        image = image * np.exp(random.normal(0, 0.2) * x + random.normal(0, 0.2) * y)[..., None]
    if random.random() < 0.8:  # exposed so that something is to be seen
        image = image * (random.uniform(0.5, 1.1) / max(0.02, np.percentile(image, random.uniform(80, 99.5))))
    image = np.clip(image, 0, 1.2) ** np.exp(random.normal(0, 0.25)) * np.exp(random.normal(0, 0.15))
    # Little contrast: X-rays, cells that shine by themselves, one colour on the same.
    if faint and random.random() < faint:
        level = image.mean()
        image = level + random.uniform(0.1, 0.5) * (image - level)
    if random.random() < 0.25:
        image = np.broadcast_to(image.mean(-1, keepdims=True), image.shape)
    if random.random() < 0.5:
        blur = random.uniform(0.3, 1.2)
        image = gaussian_filter(image, (blur, blur, 0))
    image = image + random.normal(0, random.choice([0, 0.01, 0.03]), (n, n, 3 if random.random() < 0.5 else 1))
    pixels = np.clip(image * 255, 0, 255).astype(np.uint8)
    if random.random() < 0.2:
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(random.integers(40, 96)))
        pixels = np.asarray(Image.open(buffer, formats=["JPEG"]))
    return pixels
