"""What a camera may change about a good part: declared once, and shown to a fit as varied copies of every image.

`Variations` says how far light, colour, focus, noise and place may go. `VariedSource` puts `draws` varied copies behind
every image of a source; each copy has its `Draw`, concrete values that depend on the seed, the image's number and the
copy's alone. `varied` makes one picture of another by a draw, in the order in which a camera does it: place, optics,
light and colour, noise of the sensor, JPEG.

The draws of one image are a Latin hypercube (McKay, Beckman, Conover 1979): every range is cut into as many strata as
there are draws, and each stratum is met once, so that a few draws cover it.
"""

from __future__ import annotations

import difflib
import io
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from anomalib_lite.images.sources import ImageSource

# Where each strength ends, and what it is. Farther out no part is left to be seen, and a value there is a percentage
# or a slip. A picture at half its size and turned is already reflected into one of eight times its pixels.
_BELOW = {
    "brightness": (1, "is a share of the light: 0.2 is a factor between 0.8 and 1.2"),
    "contrast": (1, "is a share of the contrast: 0.2 is a factor between 0.8 and 1.2"),
    "white_balance": (1, "is a share of red and blue: 0.1 is red × 1.1 and blue × 0.9, or the other way"),
    "shift": (0.5, "is a share of the picture's side: 0.02 is 2 % of it, either way"),
}
_UP_TO = {
    "gamma": (3, "widens an exponent: 0.2 is one between 1/1.2 and 1.2"),
    "blur": (20, "is a standard deviation in pixels of the picture as it is read: 1 is slightly out of focus"),
    "noise": (0.5, "is a standard deviation as a share of full scale: 0.02 is 5 grey levels of 255"),
    "turn": (180, "is an angle in degrees, either way: 180 is any angle"),
    "scale": (0.5, "is a share of the part's size: 0.05 is a factor between 0.95 and 1.05"),
}
_EXAMPLES = {"blur": "1", "noise": "0.02", "jpeg": "80", "shift": "0.02", "turn": "5", "scale": "0.05", "draws": "4"}
_MOST_DRAWS = 64
_JPEG_SIDE = 65500  # libjpeg writes no longer one
_AT_ONCE = 2**18  # pixels to which noise is added
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")
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
        _check_jpeg(self.jpeg)


@dataclass(frozen=True)
class Variations:
    """How far good parts' pictures may differ from those that are learnt from: the camera's changes, not the part's.

    A fit that is told so shows itself every image in `draws` varied copies too, and takes as many times longer. What
    a defect may look like must not be among them: blur where edges are inspected, colour where stains are.

    Parameters
    ----------
    brightness : float in [0, 1)
        Of the light: 0.2 is a factor between 0.8 and 1.2.
    contrast : float in [0, 1)
        About the picture's mean grey: 0.2 is a factor between 0.8 and 1.2.
    gamma : float, at most 3
        Exponent between 1 / (1 + gamma) and 1 + gamma.
    white_balance : float in [0, 1)
        Colour temperature: 0.1 is from red × 1.1 and blue × 0.9 to the opposite. Grey pictures stay grey.
    blur : float, at most 20
        Standard deviation of a Gaussian up to this, in pixels of the picture as it is read, before it is resized for
        the network: 1 px of a picture of 4000 is nothing, of one of 200 it is much.
    noise : float, at most 0.5
        Standard deviation up to this, as a share of full scale: 0.02 is 5 grey levels of 255.
    jpeg : int, 1 to 100
        Lowest quality; 100 is no JPEG.
    shift : float in [0, 0.5)
        Share of the picture's side, both directions.
    turn : float, at most 180
        Degrees, either way; 180 is any angle.
    scale : float, at most 0.5
        Of the part's size, about the middle: 0.05 is a factor between 0.95 and 1.05.
    mirror : bool
        Half of the draws exchange left and right. A mirrored part is a defect on many lines (metal_nut's *flip*).
    draws : int, 1 to 64
        Varied copies of every image, besides the image itself.

    Raises
    ------
    ValueError
        For a value out of its range, and if nothing at all varies.

    Examples
    --------
    >>> variations = Variations(brightness=0.2, shift=0.02)
    >>> print(variations.describe())
    brightness ±20 %, shift ±2 %, 4 draws
    >>> Variations.parse("brightness=0.2,shift=0.02") == variations
    True
    >>> [round(draw.brightness, 2) for draw in variations.draws_of(0)]
    [1.01, 0.87, 0.96, 1.16]
    """

    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    white_balance: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 100
    shift: float = 0.0
    turn: float = 0.0
    scale: float = 0.0
    mirror: bool = False
    draws: int = 4

    def __post_init__(self) -> None:
        for name, (limit, meaning) in {**_BELOW, **_UP_TO}.items():
            value = getattr(self, name)
            if not _is_number(value) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r} is no number; it {meaning}")
            if value < 0:
                raise ValueError(f"{name}={value:g} is negative, a strength is not; say {name}={-value:g}")
            if value > limit or (name in _BELOW and value == limit):
                below = "below" if name in _BELOW else "at most"
                raise ValueError(f"{name}={value:g} is too much; it {meaning}, and {below} {limit}")
            # Plain numbers, whatever came in: they are written down in JSON.
            object.__setattr__(self, name, float(value))
        _check_jpeg(self.jpeg)
        if not isinstance(self.mirror, bool | np.bool_):
            raise ValueError(f"mirror={self.mirror!r}; say True or False")
        if not _is_whole(self.draws) or not 1 <= self.draws <= _MOST_DRAWS:
            raise ValueError(
                f"draws={self.draws!r} is the number of varied copies of every image, from 1 to {_MOST_DRAWS}; "
                "every one takes as long as the image"
            )
        for name, kind in (("jpeg", int), ("mirror", bool), ("draws", int)):
            object.__setattr__(self, name, kind(getattr(self, name)))
        if not self._varying():
            raise ValueError("varies nothing; name at least one, such as Variations(brightness=0.2), or leave it out")

    @classmethod
    def parse(cls, text: str) -> Variations:
        """Read them from one line, as the command line takes it.

        Parameters
        ----------
        text : str
            ``name=value`` with commas between; ``mirror`` may stand alone.

        Raises
        ------
        ValueError
            For a name that is not known or there twice, for what is no number, and as the class.

        Examples
        --------
        >>> Variations.parse("turn=180, mirror, draws=8").describe()
        'turned to any angle, half of them mirrored, 8 draws'
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (part.strip() for part in entry.partition("="))
            name = name.lower().replace("-", "_")
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                guess = f"did you mean {close[0]}? " if close else ""
                raise ValueError(f"{name!r} is no variation; {guess}There are {', '.join(known)}")
            if name in values:
                raise ValueError(f"{name} is there twice in {text!r}; say it once")
            values[name] = _parsed(name, value if equals else None)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All values by name, JSON-able; ``Variations(**values)`` is the same again."""
        return asdict(self)

    def describe(self) -> str:
        """All that varies, in one line."""

        def percent(value: float) -> str:
            return f"{100 * value:g} %"

        said = {
            "brightness": f"brightness ±{percent(self.brightness)}",
            "contrast": f"contrast ±{percent(self.contrast)}",
            "gamma": f"gamma {1 / (1 + self.gamma):.2g} to {1 + self.gamma:g}",
            "white_balance": f"white balance ±{percent(self.white_balance)}",
            "blur": f"blur up to {self.blur:g} px",
            "noise": f"noise up to {percent(self.noise)}",
            "jpeg": f"JPEG down to quality {self.jpeg}",
            "shift": f"shift ±{percent(self.shift)}",
            "turn": "turned to any angle" if self.turn == 180 else f"turn ±{self.turn:g}°",
            "scale": f"scale ±{percent(self.scale)}",
            "mirror": "half of them mirrored",
        }
        draws = f"{self.draws} draw{'s' * (self.draws > 1)}"
        return ", ".join([*(text for name, text in said.items() if name in self._varying()), draws])

    def draws_of(self, image: int, random_state: int = 0) -> tuple[Draw, ...]:
        """Draw the changes of one image's copies.

        Parameters
        ----------
        image : int
            Its number in the source.
        random_state : int, default 0
            Not negative.

        Returns
        -------
        tuple of Draw
            `draws` of them. They depend on nothing but the arguments, and one strength's values not on the others.
        """
        rng = np.random.default_rng([random_state, image])
        n = self.draws
        # One row for each strength, whether or not it varies; in each row one value in every n-th of [0, 1).
        strata = rng.permuted(np.tile(np.arange(n), (12, 1)), axis=1)
        share = (strata + rng.random((12, n))) / n  # (12, n)
        seeds = rng.integers(2**32, size=n)
        drawn = []
        for copy in range(n):
            brightness, contrast, gamma, white, blur, noise, jpeg, right, down, turn, scale, mirror = share[:, copy]
            drawn.append(
                Draw(
                    brightness=1 + self.brightness * _either_way(brightness),
                    contrast=1 + self.contrast * _either_way(contrast),
                    gamma=(1 + self.gamma) ** _either_way(gamma),
                    white_balance=self.white_balance * _either_way(white),
                    blur=self.blur * float(blur),
                    noise=self.noise * float(noise),
                    jpeg=round(100 - (100 - self.jpeg) * float(jpeg)),
                    shift=(self.shift * _either_way(right), self.shift * _either_way(down)),
                    turn=self.turn * _either_way(turn),
                    scale=1 + self.scale * _either_way(scale),
                    mirror=self.mirror and bool(mirror < 0.5),
                    seed=int(seeds[copy]),
                )
            )
        return tuple(drawn)

    def _varying(self) -> list[str]:
        """Names of what varies."""
        neutral = {"jpeg": 100}
        return [field.name for field in fields(self)[:-1] if getattr(self, field.name) != neutral.get(field.name, 0)]


class VariedSource:
    """Every image of a source, each followed by its varied copies.

    Copies are made when they are read, so an image is decoded once for each. (Nothing decoded is kept: a fit reads in
    random order, and of 200 images the last four hold the next one in 2 of 100 reads.)

    Parameters
    ----------
    source : ImageSource
    variations : Variations
    random_state : int, default 0

    Attributes
    ----------
    copies : int
        `draws` + 1: copy c of image i has index i × copies + c, and copy 0 is the image itself, untouched.
    ids : list of str
        That of the image, and with ``@1``, ``@2``, ... those of its copies.
    notes : dict of str to str
        Those of the source.

    Raises
    ------
    ValueError
        For a negative `random_state`.

    Examples
    --------
    >>> from anomalib_lite.images import open_source
    >>> source = open_source(np.full((2, 8, 8, 3), 100, np.uint8))
    >>> copies = VariedSource(source, Variations(brightness=0.2, draws=2))
    >>> [(name, int(copies.read(i).mean())) for i, name in enumerate(copies.ids[:3])]
    [('image_0000', 100), ('image_0000@1', 92), ('image_0000@2', 115)]
    """

    def __init__(self, source: ImageSource, variations: Variations, random_state: int = 0):
        if random_state < 0:
            raise ValueError(f"random_state={random_state} is a seed, not negative")
        self.source = source
        self.variations = variations
        self.random_state = random_state
        self.copies = variations.draws + 1
        self.notes: dict[str, str] = getattr(source, "notes", {})
        self.ids = [
            image_id if copy == 0 else f"{image_id}@{copy}" for image_id in source.ids for copy in range(self.copies)
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        """Image or copy `i` as uint8 RGB (H, W, 3), at the size of the image.

        Raises
        ------
        UnreadableImageError
            If the image cannot be read.
        """
        image, copy = divmod(i, self.copies)
        pixels = self.source.read(image)
        return varied(pixels, self.variations.draws_of(image, self.random_state)[copy - 1]) if copy else pixels

    def __repr__(self) -> str:
        return f"VariedSource({self.source!r}, {self.variations.describe()})"


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


def _either_way(share: float) -> float:
    """From [0, 1) to [-1, 1)."""
    return 2 * float(share) - 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_jpeg(quality: object) -> None:
    if not _is_whole(quality) or not 1 <= quality <= 100:  # type: ignore[operator]
        raise ValueError(f"jpeg={quality!r} is a quality; give a whole number from 1 to 100, 100 for no JPEG")


def _parsed(name: str, value: str | None) -> Any:
    """The value of one entry of a line; None where the name stands alone."""
    if name == "mirror":
        if value is None or value.lower() in _YES:
            return True
        if value.lower() in _NO:
            return False
        raise ValueError(f"mirror={value}; say mirror alone, or mirror=0")
    if value is None:
        raise ValueError(f"{name} has no value; give one, such as {name}={_EXAMPLES.get(name, '0.1')}")
    whole = name in ("jpeg", "draws")
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise ValueError(
            f"{name}={value} is no {'whole ' * whole}number; give one, such as {name}={_EXAMPLES.get(name, '0.1')}"
        ) from None
