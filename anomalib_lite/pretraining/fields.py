"""Scalar fields drawn from formulas: what the images that teach the built-in network are made of.

A field is a float32 array (n, n), roughly standardised. Every family takes two generators: `kind` draws what makes
two fields alike (frequencies, exponents, numbers of points), `draw` what differs between two of the same kind
(phases, places, noise). So one seed of `kind` is a class, as in FractalDB and VisualAtom.

Families: random phases under a chosen spectrum, brushed metal among them; waves and lattices, warped; Voronoi cells;
closed contours around a centre (Takashima et al., Visual Atoms, CVPR 2023); iterated function systems (Kataoka et al.,
FractalDB, ACCV 2020); strokes and scratches; print; threads on a shaft; long edges. Any of them may be folded,
sharpened or used as a relief under a lamp.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Random = np.random.Generator
Field = Callable[[Random, Random, int], np.ndarray]


def spectral(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Noise of random phases: a power law or a band of frequencies, isotropic or stretched along one direction."""
    across, down = _frequencies(n)
    angle = kind.uniform(0, np.pi)
    stretch = kind.choice(
        [1.0, kind.uniform(1, 3), kind.uniform(3, 20), kind.uniform(20, 150)], p=[0.32, 0.3, 0.28, 0.1]
    )
    u = across * np.cos(angle) + down * np.sin(angle)
    v = (down * np.cos(angle) - across * np.sin(angle)) * stretch
    radius = np.hypot(u, v) + 1 / n
    if kind.random() < 0.5:
        amplitude = radius ** -kind.uniform(0.3, 2.5)
    else:  # a band: spots, worms, ripples
        center = np.exp(kind.uniform(np.log(2 / n), np.log(0.25)))
        amplitude = np.exp(-((np.log(radius / center) / kind.uniform(0.08, 0.6)) ** 2))
    noise = draw.standard_normal((n, n)).astype(np.float32)
    return _standardised(np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(n, n)))


def waves(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Stripes, grids, checks and lattices of dots, straight or warped."""
    x, y = _coordinates(n)
    angle = kind.uniform(0, np.pi) + draw.normal(0, 0.05)
    if kind.random() < 0.5:
        warp = _smooth(draw, n, kind.uniform(0.05, 0.5)) * kind.uniform(0, 0.15)
        x, y = x + warp, y + warp[::-1, ::-1]
    frequency = np.exp(kind.uniform(np.log(1.5), np.log(n / 6)))  # periods per image
    profile = _PROFILES[kind.integers(len(_PROFILES))]
    duty = kind.uniform(0.1, 0.9)
    first = profile(frequency * (x * np.cos(angle) + y * np.sin(angle)) + draw.random(), duty)
    manner = kind.integers(4)
    if manner == 0:
        return _standardised(first)
    other = angle + (np.pi / 2 if kind.random() < 0.6 else kind.uniform(0.3, 2.8))
    ratio = 1 if kind.random() < 0.5 else kind.uniform(0.4, 2.5)
    second = profile(ratio * frequency * (x * np.cos(other) + y * np.sin(other)) + draw.random(), duty)
    return _standardised([first + second, first * second, np.maximum(first, second)][manner - 1])


def cells(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Voronoi cells of random or nearly regular points: grains, pebbles, foam, bricks, cracks."""
    count = int(np.exp(kind.uniform(np.log(4), np.log(900))))
    if kind.random() < 0.5:
        points = draw.random((count, 2)) * 1.2 - 0.1
    else:
        side = max(2, round(count**0.5))
        grid = np.stack(np.meshgrid(np.arange(-1, side + 1), np.arange(-1, side + 1)), -1).astype(float)
        grid[1::2, :, 0] += kind.choice([0.0, 0.5])  # a square lattice or running bond
        points = (grid.reshape(-1, 2) + kind.uniform(0, 0.4) * draw.standard_normal(((side + 2) ** 2, 2))) / side
        points = points + draw.random(2) / side
    stretch = np.array([1.0, kind.choice([1.0, kind.uniform(1, 4)])])
    x, y = _coordinates(n)
    if kind.random() < 0.4:
        warp = _smooth(draw, n, 0.15) * kind.uniform(0, 0.06)
        x, y = x + warp, y - warp.T
    where = np.stack([x.ravel(), y.ravel()], 1) + 0.5
    distances, nearest = cKDTree(points * stretch).query(where * stretch, k=2)
    first, second = distances.reshape(n, n, 2).transpose(2, 0, 1)
    manner = kind.integers(4)
    if manner == 0:
        field = first
    elif manner == 1:
        field = second - first
    elif manner == 2:  # flat cells
        field = draw.random(len(points))[nearest[:, 0].reshape(n, n)]
    else:  # joints between cells
        field = np.minimum((second - first) * len(points) ** 0.5 / kind.uniform(0.1, 0.6), 1)
    return _standardised(field)


def contours(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Rings around a centre whose radius varies with the angle: gears, flowers, washers, ripples."""
    x, y = _coordinates(n)
    center = draw.uniform(-0.3, 0.3, 2)
    dx, dy = x - center[0], y - center[1]
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx) + draw.uniform(0, 2 * np.pi)
    outline = np.ones_like(radius)
    for _ in range(kind.integers(1, 4)):
        lobes = kind.integers(1, 24)
        outline += kind.uniform(0, 0.25) * np.sin(lobes * angle + kind.uniform(0, 2 * np.pi))
    rings = np.exp(kind.uniform(np.log(1), np.log(25)))
    profile = _PROFILES[kind.integers(len(_PROFILES))]
    return _standardised(profile(rings * radius / np.maximum(outline, 0.1) + draw.random(), kind.uniform(0.1, 0.9)))


def fractal(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Density of the attractor of two to four random contractions, by the chaos game."""
    count = kind.integers(2, 5)
    maps = kind.uniform(-1, 1, (count, 2, 2))
    norms = np.linalg.norm(maps, ord=2, axis=(1, 2))
    maps *= (kind.uniform(0.4, 0.9, count) / norms)[:, None, None]
    shifts = kind.uniform(-1, 1, (count, 2))
    points = draw.standard_normal((3000, 2))
    trail = []
    for step in range(28):
        which = draw.integers(count, size=len(points))
        points = np.einsum("nij,nj->ni", maps[which], points) + shifts[which]
        if step >= 10:
            trail.append(points)
    cloud = np.concatenate(trail)
    low, high = np.percentile(cloud, [1, 99], axis=0)
    cloud = (cloud - (low + high) / 2) / max(1e-6, (high - low).max()) * draw.uniform(0.6, 1.2)
    turn = draw.uniform(0, 2 * np.pi)
    cloud = cloud @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) + draw.uniform(-0.2, 0.2, 2)
    density = np.histogram2d(cloud[:, 0], cloud[:, 1], bins=n, range=[[-0.5, 0.5]] * 2)[0]
    return _standardised(gaussian_filter(np.log1p(density), kind.uniform(0.4, 1.2)))


def strokes(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Lines: straight, bent or wandering; few or many; in one direction or in all."""
    canvas = Image.new("L", (2 * n, 2 * n), 0)
    pen = ImageDraw.Draw(canvas)
    direction, spread = kind.uniform(0, np.pi), kind.choice([0.05, 0.4, np.pi])
    bend, length = kind.choice([0.0, 0.02, 0.15, 0.5]), np.exp(kind.uniform(np.log(0.05), np.log(1.5)))
    width = max(1, round(2 * np.exp(kind.uniform(np.log(0.5), np.log(8)))))
    for _ in range(int(np.exp(kind.uniform(np.log(1), np.log(120))))):
        turns = direction + draw.normal(0, spread) + np.cumsum(draw.normal(0, bend, 24))
        steps = np.stack([np.cos(turns), np.sin(turns)], 1) * (length * draw.uniform(0.4, 1.6) / 24)
        path = (draw.random(2) + np.cumsum(steps, 0)) * 2 * n
        pen.line([tuple(point) for point in path], fill=int(draw.integers(90, 256)), width=width)
    field = np.asarray(canvas.resize((n, n), Image.Resampling.BOX), np.float32)
    return _standardised(field)


def print_(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Lines of signs, each a few strokes between points of a grid of three by five, of an alphabet of its own."""
    alphabet = [[kind.integers(0, (3, 5), (2, 2)) for _ in range(kind.integers(2, 5))] for _ in range(12)]
    tall = np.exp(kind.uniform(np.log(0.05), np.log(0.4))) * 2 * n
    wide, gap = 0.6 * tall, kind.uniform(1.1, 1.8)
    canvas = Image.new("L", (2 * n, 2 * n), 0)
    pen = ImageDraw.Draw(canvas)
    width = max(1, round(tall * kind.uniform(0.05, 0.2)))
    left, top = draw.uniform(-wide, wide), draw.uniform(-tall, tall)
    for line in np.arange(top, 2 * n, gap * tall):
        for across in np.arange(left, 2 * n, 1.3 * wide):
            if draw.random() < 0.15:
                continue
            for stroke in alphabet[draw.integers(len(alphabet))]:
                ends = stroke / (2, 4) * (wide, tall) + (across, line)
                pen.line([tuple(end) for end in ends], fill=255, width=width)
    turn = kind.choice([0.0, 90.0, kind.uniform(0, 360)])
    turned = canvas.rotate(turn, Image.Resampling.BILINEAR)
    return _standardised(np.asarray(turned.resize((n, n), Image.Resampling.BOX), np.float32))


def threads(kind: Random, draw: Random, n: int) -> np.ndarray:
    """The relief of a shaft with a thread, a spring or a knurl upon it: slanted ridges on a bulge."""
    x, y = _coordinates(n)
    angle = draw.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    half = kind.uniform(0.15, 0.7)
    bulge = np.sqrt(np.clip(1 - ((across - draw.uniform(-0.2, 0.2)) / half) ** 2, 0, 1))
    frequency, slant = np.exp(kind.uniform(np.log(4), np.log(max(5, n / 5)))), kind.uniform(-0.5, 0.5)
    ridges = np.abs(((along + slant * across) * frequency + draw.random()) % 1 - 0.5)
    if kind.random() < 0.3:  # a knurl
        ridges = np.minimum(ridges, np.abs(((along - slant * across) * frequency + draw.random()) % 1 - 0.5))
    sharp = kind.uniform(1, 4)
    return _standardised(bulge * (1 + kind.uniform(0.1, 0.6) * np.tanh(sharp * ridges)))


def edges(kind: Random, draw: Random, n: int) -> np.ndarray:
    """Flat areas between edges that go through the whole image, sharp or soft, alone or in parallel pairs."""
    x, y = _coordinates(n)
    values = np.zeros((n, n), np.float32)
    first = draw.uniform(0, np.pi)
    for _ in range(kind.integers(1, 5)):
        angle = first + kind.choice([0.0, np.pi / 2, kind.uniform(0, np.pi)])
        distance = x * np.cos(angle) + y * np.sin(angle) - draw.uniform(-0.4, 0.4)
        if kind.random() < 0.4:  # a band
            distance = np.abs(distance) - kind.uniform(0.005, 0.2)
        values += kind.uniform(-1, 1) * np.tanh(distance * n * kind.choice([1.0, 0.3, 0.05]))
    return _standardised(values)


FAMILIES: tuple[Field, ...] = (spectral, waves, cells, contours, fractal, strokes, print_, threads, edges)
# Surfaces are mostly grain and regular patterns; fractals and strokes are spice.
_SHARES = (0.29, 0.17, 0.15, 0.09, 0.06, 0.08, 0.06, 0.05, 0.05)


def field(kind: Random, draw: Random, n: int) -> np.ndarray:
    """A field of any family, as it is, folded or sharpened, alone or with finer detail upon it."""
    values = FAMILIES[kind.choice(len(FAMILIES), p=_SHARES)](kind, draw, n)
    manner = kind.random()
    if manner < 0.15:
        values = np.abs(values)
    elif manner < 0.4:
        values = np.tanh(kind.uniform(1, 8) * (values - kind.uniform(-1, 1)))
    elif manner < 0.5:
        values = np.sin(kind.uniform(1, 5) * values)
    if kind.random() < 0.35:
        values = _standardised(values) + kind.uniform(0.1, 0.6) * spectral(kind, draw, n)
    return _standardised(values)


def lit(relief: np.ndarray, kind: Random, draw: Random) -> np.ndarray:
    """A relief (n, n) under a lamp: diffuse and specular light (n, n), about 1 where it is flat (Blinn 1977)."""
    down, across = np.gradient(relief)
    steep = kind.uniform(0.3, 3)
    normal = np.stack([-steep * across, -steep * down, np.ones_like(relief)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    azimuth, height = draw.uniform(0, 2 * np.pi), kind.uniform(0.4, 1.3)
    lamp = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
    viewer = np.array([0.0, 0.0, 1.0])
    diffuse = np.clip(normal @ lamp, 0, None) / lamp[2]
    halfway = (lamp + viewer) / np.linalg.norm(lamp + viewer)
    glint = np.clip(normal @ halfway, 0, 1) ** np.exp(kind.uniform(np.log(4), np.log(80)))
    return (diffuse + kind.choice([0.0, kind.uniform(0, 1.5)]) * glint).astype(np.float32)


def _sine(phase: np.ndarray, duty: float) -> np.ndarray:
    return np.sin(2 * np.pi * phase)


def _bars(phase: np.ndarray, duty: float) -> np.ndarray:
    return np.tanh(12 * (np.abs(phase % 1 - 0.5) - duty / 2))


def _saw(phase: np.ndarray, duty: float) -> np.ndarray:
    return phase % 1


_PROFILES = (_sine, _bars, _saw)


def _smooth(draw: Random, n: int, scale: float) -> np.ndarray:
    """Standardised noise smooth over `scale` of the image."""
    coarse = draw.standard_normal((16, 16))
    blurred = gaussian_filter(coarse, max(0.5, 16 * scale), mode="wrap").astype(np.float32)
    large = Image.fromarray(blurred).resize((n, n), Image.Resampling.BICUBIC)
    return _standardised(np.asarray(large))


def _coordinates(n: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, -0.5 to 0.5."""
    line = ((np.arange(n) + 0.5) / n - 0.5).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


def _frequencies(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Cycles per pixel of the real Fourier transform, across and down."""
    down, across = np.meshgrid(np.fft.fftfreq(n), np.fft.rfftfreq(n), indexing="ij")
    return across.astype(np.float32), down.astype(np.float32)


def _standardised(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float32)
    return (values - values.mean()) / (values.std() + 1e-6)
