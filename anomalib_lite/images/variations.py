"""What a camera may change about a good part: declared once, and shown to a fit as varied copies of every image.

`Variations` says how far light, colour, focus, noise and place may go. `VariedSource` puts `draws` varied copies behind
every image of a source; each copy has its `Draw`, concrete values that depend on the seed, the image's number and the
copy's alone. How one picture is made of another is the business of `varying`.

The draws of one image are a Latin hypercube (McKay, Beckman, Conover 1979): every range is cut into as many strata as
there are draws, and each stratum is met once, so that a few draws cover it.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.images.varying import Draw, check_jpeg, is_whole, varied

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
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


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
        check_jpeg(self.jpeg)
        if not isinstance(self.mirror, bool | np.bool_):
            raise ValueError(f"mirror={self.mirror!r}; say True or False")
        if not is_whole(self.draws) or not 1 <= self.draws <= _MOST_DRAWS:
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
            If the image cannot be read, or not be varied so.
        """
        image, copy = divmod(i, self.copies)
        pixels = self.source.read(image)
        if not copy:
            return pixels
        try:
            return varied(pixels, self.variations.draws_of(image, self.random_state)[copy - 1])
        except ValueError as error:  # one picture does not stop a run
            raise UnreadableImageError(f"{self.ids[i]}: {error}") from error

    def __repr__(self) -> str:
        return f"VariedSource({self.source!r}, {self.variations.describe()})"


def _either_way(share: float) -> float:
    """From [0, 1) to [-1, 1)."""
    return 2 * float(share) - 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


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
