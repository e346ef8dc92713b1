"""Defects of known size and contrast, painted onto pictures of good parts.

Brushes draw on a square around the place of the defect: uint8 in and out, and lengths in pixels of the picture. They
are what a line sees most, not any defect: a spot (dirt, a hole), a scratch, a dent (a soft shade, light on one side and
dark on the other) and a missing piece (nothing of the part there, but its ground or its mean colour).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

Kind = Literal["spot", "scratch", "dent", "missing"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SCRATCH = 10  # times as long as wide
_EDGE = 0.7  # pixels over which an edge fades, as a lens makes it


def paint(
    pixels: np.ndarray,
    kind: Kind,
    *,
    at: tuple[float, float],
    size: float,
    contrast: float,
    angle: float = 0.0,
    ground: np.ndarray | None = None,
) -> np.ndarray:
    """Paint one defect onto a copy of a picture.

    Parameters
    ----------
    pixels : uint8 (H, W, 3)
    kind : "spot", "scratch", "dent" or "missing"
    at : (y, x), its middle
    size : pixels: the diameter, of a scratch the length
    contrast : share of the range from black to white by which it is darker, or lighter where the part is dark
    angle : radians, of a scratch, and of the light that falls on a dent
    ground : (3,), the colour that is behind the part; default: the mean colour of the picture

    Returns
    -------
    uint8 (H, W, 3)

    Examples
    --------
    >>> grey = np.full((32, 32, 3), 200, np.uint8)
    >>> paint(grey, "spot", at=(16, 16), size=8, contrast=0.5)[16, 16]
    array([72, 72, 72], dtype=uint8)
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; choose one of {', '.join(KINDS)}")
    if size <= 0 or not 0 < contrast <= 1:
        raise ValueError(f"size={size}, contrast={contrast}: pixels above 0, and a share of the range in (0, 1]")
    height, width = pixels.shape[:2]
    reach = int(np.ceil(1.5 * size + 3))
    top, left = max(0, int(at[0]) - reach), max(0, int(at[1]) - reach)
    bottom, right = min(height, int(at[0]) + reach + 1), min(width, int(at[1]) + reach + 1)
    found = pixels.copy()
    under = pixels[top:bottom, left:right].astype(np.float32)
    if not under.size:
        raise ValueError(f"at={at} lies outside a picture of {height} × {width} pixels")
    y = np.arange(top, bottom)[:, None] + 0.5 - at[0] - 0.5
    x = np.arange(left, right)[None] + 0.5 - at[1] - 0.5
    near = under[(np.abs(y) <= size) & (np.abs(x) <= size)]
    sign = -1.0 if (near.mean() if near.size else under.mean()) >= 128 else 1.0
    weight = _WEIGHTS[kind](y, x, size, angle)[..., None]
    if kind == "missing":
        behind = pixels.reshape(-1, 3).mean(axis=0) if ground is None else np.asarray(ground, dtype=np.float32)
        painted = under + weight * (behind - under)
    else:
        painted = under + 255 * contrast * sign * weight
    found[top:bottom, left:right] = np.clip(np.rint(painted), 0, 255).astype(np.uint8)
    return found


def _disc(y: np.ndarray, x: np.ndarray, size: float, angle: float) -> np.ndarray:
    return _fading(size / 2 - np.hypot(y, x))


def _scratch(y: np.ndarray, x: np.ndarray, size: float, angle: float) -> np.ndarray:
    along = x * np.cos(angle) + y * np.sin(angle)
    # A little bent, as no tool goes straight: two pixels in a hundred.
    across = y * np.cos(angle) - x * np.sin(angle) + 0.08 * size * (1 - (2 * along / size) ** 2)
    width = max(1.5, size / _SCRATCH)
    return np.minimum(_fading(size / 2 - np.abs(along)), _fading(width / 2 - np.abs(across)))


def _dent(y: np.ndarray, x: np.ndarray, size: float, angle: float) -> np.ndarray:
    """The slope of a bump of Gaussian shape towards the light, between -1 and 1."""
    sigma = size / 5
    along = (x * np.cos(angle) + y * np.sin(angle)) / sigma
    return along * np.exp(0.5 - 0.5 * (x**2 + y**2) / sigma**2)


def _fading(inside: np.ndarray) -> np.ndarray:
    """1 where a distance to an edge, in pixels, is inside and 0 where it is outside."""
    return np.clip(0.5 + inside / (2 * _EDGE), 0, 1)


_WEIGHTS: dict[str, Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]] = {
    "spot": _disc,
    "scratch": _scratch,
    "dent": _dent,
    "missing": _disc,
}
