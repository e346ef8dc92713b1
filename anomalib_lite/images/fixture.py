"""A fixture: every picture is shifted, and turned where asked, so that the part lies as in a template.

For regions of interest and tiles that are to stay on the part. The template is the first of the good pictures, on which
a region is drawn, small, by the gradients of its brightness. A picture is laid over it by phase correlation
(scikit-image's, without the normalisation of magnitudes; Guizar-Sicairos, Thurman and Fienup, Optics Letters 33 (2008))
for every turn that is allowed. How well they agree is the height of the correlation, from 0 to 1. A picture that agrees
far less than good ones do is not registered: it is left as it is, and said to be.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalib_lite.images.decoding import UnreadableImageError
from anomalib_lite.images.proportions import same_proportions
from anomalib_lite.images.sources import ImageSource, ReadsReduced

_SIDE = 128  # of the template, the longer one
_BLUR = 1.5  # standard deviation before gradients are taken, in its pixels
_LOOKED_AT = 100  # good pictures that tell how well they agree
_STEP, _FINE_STEP = 3.0, 0.5  # degrees from turn to turn, at first and at last
_FINER = 8  # parts of a pixel of the template that shifts are found to
# What is enough: below the worst of good ones by this share of how far that lies below their median, and below this
# share of the median. A part with a defect is to be registered; metal_nut's mirrored ones (0.39 of 0.78) are not.
_SPARE, _MOST = 0.5, 0.75
_POOR = 0.4  # where good pictures agree no better there is little to hold on to: kolektor's, 0.15; metal_nut's, 0.78

Size = tuple[int, int]
Plane = NDArray[Any]


@dataclass(frozen=True)
class Pose:
    """How the part lies in a picture, against the template.

    Attributes
    ----------
    turn : degrees that it is turned by, counter-clockwise
    down, right : shares of the picture's height and width that it is shifted by
    agreement : with the template, 0 to 1
    found : whether that is enough; else it is taken to lie as in the template
    needed : what would have been enough; None where it could not be compared
    """

    turn: float = 0.0
    down: float = 0.0
    right: float = 0.0
    agreement: float = 1.0
    found: bool = True
    needed: float | None = None

    @property
    def reason(self) -> str:
        """Why it was not found, in words."""
        if self.needed is None:
            return "it has other proportions than the template"
        return f"it agrees with the template by {self.agreement:.2f}, and {self.needed:.2f} are needed"

    def applied(self, pixels: np.ndarray) -> np.ndarray:
        """The picture uint8 (H, W, 3) with its part as in the template; what comes in from outside is mirrored."""
        from scipy import ndimage

        if not (self.turn or self.down or self.right):
            return pixels
        matrix, offset = self._from_template((pixels.shape[0], pixels.shape[1]))
        laid = np.empty_like(pixels)
        for channel in range(pixels.shape[2]):
            ndimage.affine_transform(
                pixels[..., channel], matrix, offset, order=1, mode="mirror", output=laid[..., channel]
            )
        return laid

    def undone(self, values: np.ndarray) -> np.ndarray:
        """A map (H, W) of the laid picture, brought back to the picture as it came; 0 where it was not looked at."""
        from scipy import ndimage

        if not (self.turn or self.down or self.right):
            return values
        matrix, offset = self._from_template((values.shape[0], values.shape[1]))
        back = np.linalg.inv(matrix)
        # The outermost half pixel is not outside.
        padded = np.pad(values, 1, mode="edge")
        return ndimage.affine_transform(
            padded, back, 1 - back @ offset, output_shape=values.shape, order=1, mode="constant", output=np.float32
        )

    def box_undone(self, box: tuple[int, int, int, int], size: Size) -> tuple[int, int, int, int]:
        """A box (left, top, right, bottom) of the laid picture: the one around it in the picture as it came."""
        matrix, offset = self._from_template(size)
        left, top, right, bottom = box
        corners = np.array([(y - 0.5, x - 0.5) for y in (top, bottom) for x in (left, right)])  # of pixels' outer edges
        laid = corners @ matrix.T + offset + 0.5
        low = np.clip(np.floor(laid.min(axis=0) + 1e-6), 0, np.array(size) - 1).astype(int)
        high = np.clip(np.ceil(laid.max(axis=0) - 1e-6), low + 1, size).astype(int)
        return int(low[1]), int(low[0]), int(high[1]), int(high[0])

    def _from_template(self, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and offset from places (row, column) in the laid picture to those in the picture as it came."""
        shift = np.array([self.down * size[0], self.right * size[1]])
        matrix, offset = _turned(self.turn, size)
        return matrix, offset + shift


@dataclass(frozen=True, eq=False)
class Fixture:
    """The template, and how it is looked for.

    Attributes
    ----------
    template : uint8 (h, w), a good picture, small and grey
    turn : degrees, 0 to 180, by which parts may be turned either way
    least : agreement that a picture needs
    """

    template: np.ndarray
    turn: float
    least: float
    _seen: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        template = self.template.view()
        template.flags.writeable = False
        object.__setattr__(self, "template", template)
        object.__setattr__(self, "_seen", lru_cache(maxsize=512)(self._spectrum))

    def __reduce__(self) -> tuple[Any, ...]:
        return Fixture, (np.array(self.template), self.turn, self.least)

    def pose(self, pixels: np.ndarray) -> Pose:
        """Find how the part lies in a picture uint8 (H, W, 3)."""
        if not same_proportions((pixels.shape[0], pixels.shape[1]), self._size):
            return Pose(agreement=0.0, found=False)
        spectrum = np.fft.fft2(_contours(_small(pixels, self._size)))
        agreement, turn, down, right = max(self._at(spectrum, turn) for turn in self._turns())
        near = [turn + step for step in np.arange(-_STEP, _STEP + 1e-9, _FINE_STEP)] if self.turn else [turn]
        near = [other for other in near if abs(other) <= self.turn]
        agreement, turn, down, right = max(self._at(spectrum, other, _FINER) for other in near)
        if agreement < self.least:
            return Pose(agreement=agreement, found=False, needed=self.least)
        return Pose(float(turn), down / self._size[0], right / self._size[1], agreement)

    def to_dict(self) -> dict[str, Any]:
        """All but the template, JSON-able."""
        return {"turn": self.turn, "least": self.least}

    @classmethod
    def read(cls, values: Any, template: np.ndarray) -> Fixture:
        """What `to_dict` told, with its template; ValueError if that is none."""
        turn, least = values["turn"], values["least"]
        sound = all(isinstance(value, float) and math.isfinite(value) for value in (turn, least))
        if not sound or not 0 <= turn <= 180 or not 0 <= least <= 1:
            raise ValueError(f"{values} is no fixture")
        if template.dtype != np.uint8 or template.ndim != 2 or max(template.shape) != _SIDE or min(template.shape) < 1:
            raise ValueError(f"a template {template.dtype} {template.shape} is none")
        return cls(template, turn, least)

    @property
    def _size(self) -> Size:
        return self.template.shape[0], self.template.shape[1]

    def _turns(self) -> list[float]:
        steps = math.ceil(self.turn / _STEP)
        return [0.0] if not steps else np.linspace(-self.turn, self.turn, 2 * steps + 1).tolist()

    def _spectrum(self, turn: float) -> np.ndarray:
        """Of the template's contours, turned by degrees."""
        from scipy import ndimage

        matrix, offset = _turned(turn, self._size)
        back = np.linalg.inv(matrix)
        turned = ndimage.affine_transform(
            self.template.astype(np.float32), back, -back @ offset, order=1, mode="nearest"
        )
        return np.fft.fft2(_contours(turned))

    def _at(self, spectrum: np.ndarray, turn: float, parts: int = 1) -> tuple[float, float, float, float]:
        """Agreement with the template turned by so much, the turn, and the shift (down, right) in its pixels."""
        template = self._seen(turn)
        if not (np.abs(spectrum).max() > 0 and np.abs(template).max() > 0):  # without contours it agrees with nothing
            return 0.0, turn, 0.0, 0.0
        correlate = phase_correlation()
        shift, error, _ = correlate(spectrum, template, space="fourier", upsample_factor=parts, normalization=None)
        return math.sqrt(max(0.0, 1 - float(error) ** 2)), turn, float(shift[0]), float(shift[1])


class RegisteredSource:
    """An image source whose pictures are laid as in the template.

    `poses` are what was found so far, by index.
    """

    def __init__(self, source: ImageSource, fixture: Fixture):
        self.source, self.fixture, self.ids = source, fixture, source.ids
        self.poses: dict[int, Pose] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def notes(self) -> dict[str, str]:
        """Those of the source."""
        return dict(getattr(self.source, "notes", {}))

    def read(self, i: int) -> np.ndarray:
        """Picture `i`, laid."""
        return self._laid(i, self.source.read(i))

    def read_reduced(self, i: int, least: Size) -> tuple[np.ndarray, Size]:
        """Picture `i`, laid, see `ReadsReduced`."""
        if isinstance(self.source, ReadsReduced):
            pixels, original = self.source.read_reduced(i, least)
            return self._laid(i, pixels), original
        pixels = self.read(i)
        return pixels, (pixels.shape[0], pixels.shape[1])

    def turns_and_shifts(self) -> np.ndarray:
        """float32 (n, 3): turn, shifts down and right, 0 of pictures that were not read."""
        found = np.zeros((len(self), 3), dtype=np.float32)
        for i, pose in self.poses.items():
            found[i] = pose.turn, pose.down, pose.right
        return found

    def _laid(self, i: int, pixels: np.ndarray) -> np.ndarray:
        self.poses[i] = pose = self.fixture.pose(pixels)
        return pose.applied(pixels)


def check_turn(turn: Any) -> float:
    """The degrees a fixture was asked for, or ValueError; ImportError where it cannot be had."""
    if isinstance(turn, bool) or not isinstance(turn, int | float) or not 0 <= turn <= 180:
        raise ValueError(f"fixture={turn!r}: degrees that parts may be turned by, 0 to 180; 0 for a shift alone")
    phase_correlation()
    return float(turn)


def phase_correlation() -> Any:
    """scikit-image's, or an error that says how it is had."""
    try:
        from skimage.registration import phase_cross_correlation
    except ImportError as error:
        raise ImportError("a fixture needs scikit-image: pip install 'anomalib_lite[fixture]'") from error
    return phase_cross_correlation


def make_fixture(source: ImageSource, turn: float, size: Size) -> Fixture:
    """A fixture from good pictures.

    Parameters
    ----------
    source : ImageSource
    turn : degrees by which parts may be turned either way
    size : (H, W) of the pictures; those of other proportions are passed over

    Warns
    -----
    UserWarning
        If pictures agree so little with one another that there is nothing to hold on to.

    Raises
    ------
    ValueError
        If none of the pictures looked at can be read.
    """
    scale = _SIDE / max(size)
    small = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    picked = np.unique(np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).round().astype(int)).tolist()
    greys = [grey for grey in (_grey(source, i, size, small) for i in picked) if grey is not None]
    if not greys:
        raise ValueError("fixture: none of the training images looked at can be read")
    first = Fixture(np.rint(greys[0]).astype(np.uint8), turn, 0.0)
    agreements = np.array([first.pose(_colour(grey)).agreement for grey in greys[1:]] or [1.0])
    median, worst = float(np.median(agreements)), float(agreements.min())
    if median < _POOR:
        warnings.warn(
            f"good pictures agree with the fixture's template by {median:.2f} only (1 is all): they show too little to "
            "hold on to, and may be laid anywhere; leave the fixture out",
            stacklevel=5,
        )
    return Fixture(first.template, turn, max(0.0, min(worst - _SPARE * (median - worst), _MOST * median)))


def _turned(degrees: float, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset that take a place (row, column) to where it lies when turned around the middle."""
    angle = math.radians(degrees)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = (np.array(size) - 1) / 2
    return matrix, middle - matrix @ middle


def _grey(source: ImageSource, i: int, size: Size, small: Size) -> np.ndarray | None:
    """Picture `i` small and grey; None of one that has other proportions, or cannot be read, which is said later."""
    try:
        if isinstance(source, ReadsReduced):
            pixels = source.read_reduced(i, (2 * _SIDE, 2 * _SIDE))[0]
        else:
            pixels = source.read(i)
    except UnreadableImageError:
        return None
    return _small(pixels, small) if same_proportions((pixels.shape[0], pixels.shape[1]), size) else None


def _small(pixels: np.ndarray, size: Size) -> np.ndarray:
    """A picture (H, W, 3) in grey, float32 (h, w)."""
    if pixels.shape[:2] == size:
        return pixels.mean(axis=2, dtype=np.float32)
    shrunk = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(shrunk).mean(axis=2, dtype=np.float32)


def _colour(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def _contours(grey: np.ndarray) -> np.ndarray:
    """Gradients of brightness (h, w), fading towards the border, which has no neighbour on the other side."""
    from scipy import ndimage

    down, right = np.gradient(ndimage.gaussian_filter(grey, _BLUR)) if min(grey.shape) > 1 else (grey, grey)
    steep = np.hypot(down, right)
    fading = [np.hanning(length + 2)[1:-1] ** 0.5 for length in grey.shape]
    return (steep - steep.mean()) * fading[0][:, None] * fading[1]
