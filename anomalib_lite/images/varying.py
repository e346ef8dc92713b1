"""Make one picture of another as a camera would: a picture (H, W, 3) and concrete values in, one of that size out.

In the order in which a camera does it: place, optics, light and colour, noise of the sensor, JPEG.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

_JPEG_SIDE = 65500  # libjpeg writes no longer one
_AT_ONCE = 2**18  # pixels to which noise is added
# Weights of red, green and blue in grey, ITU-R BT.601.
_GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Draw:
    """One change of a picture, in concrete values; the defaults change nothing.

    Attributes
    ----------
    brightness : float
        Factor of the light.
    contrast : float
        Factor of the distance from the picture's mean grey.
    gamma : float
        Exponent of the values, black being 0 and white 1: above 1 is darker.
    white_balance : float in [-1, 1]
        Colour temperature: red × (1 + w), blue × (1 - w). Nothing happens to a grey picture.
    blur : float
        Standard deviation of a Gaussian, in pixels of the picture.
    noise : float
        Standard deviation, share of full scale; alike in all channels of a grey picture.
    jpeg : int, 1 to 100
        Quality, with halved colour as cameras write it; 100 is no JPEG.
    shift : (right, down)
        Shares of width and height.
    turn : float
        Degrees, counter-clockwise, about the middle.
    scale : float
        Factor of the part's size, about the middle.
    mirror : bool
        Left and right exchanged, before all else.
    seed : int
        Of the noise.

    Raises
    ------
    ValueError
        For values that no picture can be made with.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    white_balance: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 100
    shift: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    scale: float = 1.0
    mirror: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "blur", "noise", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}; give a finite number, not below 0")
        for name in ("gamma", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}; give a finite number above 0, 1 for no change")
        if not abs(self.white_balance) <= 1:
            raise ValueError(f"white_balance={self.white_balance}; give a share from -1 to 1, 0 for no change")
        if not all(map(math.isfinite, (self.turn, *self.shift))):
            raise ValueError(f"turn={self.turn}, shift={self.shift}; give finite numbers")
        check_jpeg(self.jpeg)


def varied(pixels: np.ndarray, draw: Draw) -> np.ndarray:
    """Change a picture as a camera would.

    Place in one resampling, bilinear, the picture reflected at its border (nothing black is added); then blur; light,
    contrast about the mean grey, gamma and colour in one table per channel; noise; JPEG. Values stay within 0 and 255
    after each. Right angles of a square picture, half turns, and mirroring move pixels without resampling.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
        RGB. It is not changed.
    draw : Draw

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        At the same size; `pixels` itself where nothing changes.

    Raises
    ------
    ValueError
        If JPEG is asked for, and a side is longer than it can hold.

    Examples
    --------
    >>> varied(np.full((1, 1, 3), 100, np.uint8), Draw(brightness=0.8)).tolist()
    [[[80, 80, 80]]]
    """
    grey = (draw.white_balance or draw.noise) and _is_grey(pixels)
    pixels = _moved(pixels, draw)
    if draw.blur:
        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(float(draw.blur))))
    pixels = _lit(pixels, draw, 0.0 if grey else draw.white_balance)
    if draw.noise:
        pixels = _noisy(pixels, draw, channels=1 if grey else 3)
    return _compressed(pixels, int(draw.jpeg)) if draw.jpeg < 100 else pixels


def _moved(pixels: np.ndarray, draw: Draw) -> np.ndarray:
    """Mirror, turn and scale about the middle, then shift."""
    height, width = pixels.shape[:2]
    if draw.mirror:
        pixels = pixels[:, ::-1]
    if draw.scale == 1 and draw.shift == (0, 0):
        quarters = draw.turn / 90
        if quarters % 2 == 0 or (quarters % 1 == 0 and height == width):
            return np.ascontiguousarray(np.rot90(pixels, round(quarters) % 4))
    # From places in the copy to places in the picture, both about the middle.
    angle = math.radians(draw.turn)
    cosine, sine = math.cos(angle) / draw.scale, math.sin(angle) / draw.scale
    inverse = np.array([[cosine, -sine], [sine, cosine]])
    middle = np.array([width, height]) / 2
    offset = middle - inverse @ (middle + np.array(draw.shift) * (width, height))
    # As much border as the copy's corners need, and a pixel to interpolate with; that may be more than the picture is
    # wide, which is then reflected again and again.
    corners = inverse @ np.array([[0, width, 0, width], [0, 0, height, height]]) + offset[:, None]
    left, top = (max(0, math.ceil(-least) + 1) for least in corners.min(axis=1))
    right, bottom = (max(0, math.ceil(most) + 1) for most in corners.max(axis=1) - (width, height))
    padded = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="reflect")
    (a, b), (d, e) = inverse
    c, f = offset + np.array([left, top])
    moved = Image.fromarray(padded).transform(
        (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), resample=Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _lit(pixels: np.ndarray, draw: Draw, white_balance: float) -> np.ndarray:
    """Light and its colour, where the sensor clips; then what the camera makes of it, contrast and gamma."""
    if (draw.brightness, draw.contrast, draw.gamma, white_balance) == (1, 1, 1, 0):
        return pixels
    light = draw.brightness * np.array([1 + white_balance, 1, 1 - white_balance])  # (3,)
    table = np.clip(np.arange(256) / 255 * light[:, None], 0, 1)  # (3, 256)
    if draw.contrast != 1:
        counts = np.array(Image.fromarray(pixels).histogram()).reshape(3, 256)
        mean = _GREY @ (table * counts).sum(axis=1) / (pixels.shape[0] * pixels.shape[1])
        table = np.clip(mean + draw.contrast * (table - mean), 0, 1)
    if draw.gamma != 1:
        table = table**draw.gamma
    return np.asarray(Image.fromarray(pixels).point(np.rint(255 * table).astype(int).ravel().tolist()))


def _noisy(pixels: np.ndarray, draw: Draw, channels: int) -> np.ndarray:
    rng = np.random.default_rng(draw.seed)
    height, width = pixels.shape[:2]
    noisy = np.empty_like(pixels)
    # Some rows at a time: as floats, a picture of 12 million pixels takes 140 MB, in every thread that reads.
    rows = max(1, _AT_ONCE // width)
    for top in range(0, height, rows):
        clean = pixels[top : top + rows]
        values = rng.standard_normal((*clean.shape[:2], channels), dtype=np.float32)
        values *= 255 * draw.noise
        values = values + clean
        noisy[top : top + rows] = np.clip(np.rint(values, out=values), 0, 255, out=values)
    return noisy


def _compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    if max(pixels.shape[:2]) > _JPEG_SIDE:
        height, width = pixels.shape[:2]
        raise ValueError(
            f"a JPEG holds at most {_JPEG_SIDE} pixels a side, this picture has {width} × {height}; leave jpeg out"
        )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether a picture has no colours at all: a camera that sees none changes none."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return bool(np.array_equal(red, green) and np.array_equal(green, blue))


def check_jpeg(quality: object) -> None:
    """Raise ValueError for what is no quality."""
    if not is_whole(quality) or not 1 <= quality <= 100:  # type: ignore[operator]
        raise ValueError(f"jpeg={quality!r} is a quality; give a whole number from 1 to 100, 100 for no JPEG")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
