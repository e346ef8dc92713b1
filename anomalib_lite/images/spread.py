"""How much images differ already in light, contrast, colour and sharpness: an `ImageSource` in, ranges out.

What good images do not differ in, a detector fitted on them has not seen, and alarms at: `Spread.sentences` says what
may be declared in `Variations`. Images are compared small, as a network sees them, so blur and noise of single pixels
of a large picture do not count.

Where parts lie is not measured. Correlating the gradients of every image with those of the others tells it within 1 %
of the side on metal_nut and 3 % on bottle, but on a surface (magnetic_tile) it is wrong by 5 % with peaks as high, so
it cannot say when it is wrong; correlating phases is worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomalib_lite.images.loading import LoadedImage, load
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.images.variations import Variations

# Images at most, and the side they are resized to: about that at which networks see them.
_IMAGES = 200
_SIDE = 256
# Images that differ so far have shown what would be declared for them: of sharpness, about what blur=1 takes away.
_SEEN = {"brightness": 0.2, "contrast": 0.2, "white_balance": 0.1, "sharpness": 0.5}


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, the 5 % and 95 % quantile of the images, relative to their median: -0.1 is 10 % below."""

    low: float
    high: float

    @property
    def reach(self) -> float:
        """The farther end, without its sign."""
        return max(-self.low, self.high)


@dataclass(frozen=True)
class Spread:
    """How far images differ from one another; None for what they do not have.

    Attributes
    ----------
    n_images : int
        That were looked at.
    side : int
        Median of their longer side in pixels, as they were read.
    brightness : Range, optional
        Of the mean grey. None if they are black.
    contrast : Range, optional
        Of the standard deviation of grey over its mean, which a brighter light leaves as it is. None if they are flat.
    white_balance : Range, optional
        Of red to blue, as the share w by which red is × (1 + w) and blue × (1 - w). None for grey images.
    sharpness : Range, optional
        Of the variance of the Laplacian over that of grey, which contrast leaves as it is; blur takes it down, noise
        up. None if they are flat.
    """

    n_images: int
    side: int
    brightness: Range | None
    contrast: Range | None
    white_balance: Range | None
    sharpness: Range | None

    def sentences(self, declared: Variations | None = None) -> list[str]:
        """Say what the images differ in, and what to declare if more may come.

        Parameters
        ----------
        declared : Variations, optional
            What has been declared already, which is left out.

        Returns
        -------
        list of str
            One sentence for each quantity that they have.
        """
        # A pixel of what was measured, in pixels of the picture.
        blur = min(20, max(1, round(self.side / _SIDE)))
        advice = {
            "brightness": ("Brightness differs", "brightness", 0.2, "the light may change"),
            "contrast": ("Contrast differs", "contrast", 0.2, "exposure or haze may change"),
            "white_balance": ("White balance differs", "white_balance", 0.1, "the colour of the light may change"),
            "sharpness": ("Sharpness differs", "blur", blur, "the focus may change"),
        }
        told = []
        for name, (differs, strength, value, cause) in advice.items():
            found: Range | None = getattr(self, name)
            if found is None or (declared is not None and getattr(declared, strength)):
                continue
            by = f"by {_percent(found.low)} to {_percent(found.high)}" if found.reach >= 0.01 else "by less than 1 %"
            if found.reach >= _SEEN[name]:
                told.append(f"{differs} {by} between the training images: such changes have been seen.")
            else:
                told.append(
                    f"{differs} {by} between the training images; a change of more than that has not been seen: "
                    f"declare it (variations=Variations({strength}={value})) if {cause}."
                )
        return told


def measured_spread(images: ImageSource, *, workers: int | None = None) -> Spread:
    """Measure how much good images differ, over at most 200 of them, evenly picked.

    The middle nine tenths are told, so a few odd images do not count. Decoding takes most of the time.

    Parameters
    ----------
    images : ImageSource
        From `open_source`.
    workers : int, optional
        Decoding threads; default: one per core.

    Returns
    -------
    Spread

    Raises
    ------
    UnreadableImageError
        If fewer than two of those picked can be read.

    Examples
    --------
    >>> from anomalib_lite.images import open_source
    >>> bright = np.linspace(95, 105, 11).astype(np.uint8)
    >>> spread = measured_spread(open_source(np.broadcast_to(bright[:, None, None], (11, 32, 32)).copy()))
    >>> spread.brightness, spread.white_balance
    (Range(low=-0.045, high=0.045), None)
    """
    picked = np.unique(np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).round().astype(int))
    rows, sides = [], []
    for image in load(images, picked.tolist(), size=_SIDE, workers=workers):
        if isinstance(image, LoadedImage):
            rows.append(_measured(image.pixels))
            sides.append(max(image.original_size))
    if len(rows) < 2:
        raise UnreadableImageError(f"{len(rows)} of {len(picked)} images can be read; two are needed to compare them")
    brightness, contrast, warmth, sharpness = np.array(rows).T
    return Spread(
        n_images=len(rows),
        side=int(np.median(sides)),
        brightness=_relative(brightness),
        contrast=_relative(contrast),
        white_balance=None if np.all(np.isnan(warmth)) else _tilted(warmth[~np.isnan(warmth)]),
        sharpness=_relative(sharpness),
    )


def _measured(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Mean grey, deviation over it, log of red over blue (NaN for a grey picture), Laplacian over deviation squared."""
    red, green, blue = (pixels[..., channel].astype(np.float32) for channel in range(3))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    mean, deviation = float(grey.mean()), float(grey.std())
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    coloured = not (np.array_equal(red, green) and np.array_equal(green, blue))
    return (
        mean,
        deviation / max(mean, 1.0),
        float(np.log((red.mean() + 1) / (blue.mean() + 1))) if coloured else np.nan,
        float(laplacian.var()) / max(deviation, 1.0) ** 2,
    )


def _relative(values: np.ndarray) -> Range | None:
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    # A picture without light or structure has nothing that could be more or less.
    return _rounded(low / median - 1, high / median - 1) if median > 1e-6 else None


def _tilted(logarithms: np.ndarray) -> Range:
    """From log ratios r of red to blue to w: (1 + w) / (1 - w) = exp(r)."""
    low, median, high = np.quantile(logarithms, [0.05, 0.5, 0.95])
    return _rounded(np.tanh((low - median) / 2), np.tanh((high - median) / 2))


def _rounded(low: float, high: float) -> Range:
    return Range(round(float(low), 4), round(float(high), 4))


def _percent(share: float) -> str:
    """−3 % or +4 %, with a typographic minus."""
    return f"{100 * share:+.0f} %".replace("-", "−")
