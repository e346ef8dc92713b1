"""From what an image is stored as to uint8 RGB (H, W, 3), or to a mask: range, transparency, what to note.

Pixels go from the decoder (`decoding`) to RGB by bands of rows, so that the only whole pictures in memory are the
decoder's own and the result.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from PIL import Image

from anomalib_lite_runtime.decoding import (
    DEFAULT_READING,
    MEBIBYTE,
    Decoded,
    Reading,
    UnreadableImageError,
    decode,
    name_of,
)

# Transparent pixels are laid on mid-grey: neither a dark nor a bright part vanishes in it, and its edge
# against either is as weak as one fixed ground allows.
ALPHA_GROUND = 128
_LARGE = 1 << 24  # pixels of pictures that are decoded one at a time, and come smaller where less is wanted


def read_image(
    source: Any, *, reading: Reading = DEFAULT_READING, name: str | None = None, notes: list[str] | None = None
) -> np.ndarray:
    """Decode one image to 8-bit RGB.

    The EXIF orientation is applied. More than 8 bits, grey or colour, are scaled by `reading.value_range`, or
    else by the full range of the file (65535 becomes 255), never by the picture's own. Float images are taken
    to span [0, 1]. Transparency is laid on mid-grey (128); alpha that is the same everywhere (a camera's unused
    fourth byte) says nothing, and the colour is shown. Of a file with several pages the first is read.

    Parameters
    ----------
    source : path, bytes or PIL.Image.Image
        One image: PNG, JPEG, BMP, TIFF, WebP or PNM (PPM, PGM, PBM), recognised by content, not by suffix.
    reading : Reading, optional
        Range and limits. Memory at the peak (`benchmarks/reading.py`): 4 bytes per pixel of a grey picture, 8 in
        colour, 12 in colour of 16 bits, 16 of a WebP; and half as much again where it has to be turned.
    name : str, optional
        What to call the image in an error; by default the file's name.
    notes : list of str, optional
        Told what is not shown of the image: clipped values, further pages, alpha that was left out.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        The pixels in RGB order.

    Raises
    ------
    UnreadableImageError
        If `source` is missing, no regular file, empty, truncated, corrupt, too large, too slow or of another format.
    TypeError
        If `source` is none of the types above.

    Examples
    --------
    >>> from PIL import Image
    >>> read_image(Image.new("I;16", (4, 2), 65535))[0, 0]
    array([255, 255, 255], dtype=uint8)
    >>> read_image(Image.new("I;16", (4, 2), 4095), reading=Reading(value_range=(0, 4095)))[0, 0]
    array([255, 255, 255], dtype=uint8)
    """
    return read_reduced(source, None, reading=reading, name=name, notes=notes)[0]


def read_reduced(
    source: Any,
    least: tuple[int, int] | None,
    *,
    reading: Reading = DEFAULT_READING,
    name: str | None = None,
    notes: list[str] | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """As `read_image`, but a JPEG or a large picture may come smaller than it is, and no smaller than `least`.

    Returns
    -------
    pixels : uint8 (h', w', 3)
    size : (H, W) that the image has
    """
    name = name or name_of(source)
    notes = [] if notes is None else notes
    with _Turn() as turn:
        decoded = decode(source, name, reading, least=least, before=turn.wait)
        assert decoded is not None
        notes += decoded.notes
        shrink = 1
        if least is not None and decoded.height * decoded.width > _LARGE:
            shrink = max(1, min(decoded.height // max(1, least[0]), decoded.width // max(1, least[1])))
        pixels = _to_rgb8(decoded, name, reading, notes, shrink)
    return pixels, decoded.original or (decoded.height, decoded.width)


class _Turn:
    """Large pictures are decoded one after another: each takes seven bytes per pixel until it is small."""

    _one = threading.Lock()

    def __init__(self) -> None:
        self._mine = False

    def wait(self, pixels: int) -> None:
        """To be called before a picture of so many pixels is decoded."""
        if pixels > _LARGE and not self._mine:
            self._mine = self._one.acquire()

    def __enter__(self) -> _Turn:
        return self

    def __exit__(self, *error: object) -> None:
        if self._mine:
            self._one.release()


def to_rgb(
    array: np.ndarray, *, reading: Reading = DEFAULT_READING, name: str = "array", notes: list[str] | None = None
) -> np.ndarray:
    """Bring an array to 8-bit RGB.

    Parameters
    ----------
    array : ndarray of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
        bool, uint8, uint16 (scaled by `reading.value_range`, or its full range), other integers if there is a
        `value_range`, or float in [0, 1]. A fourth channel is alpha, as in `read_image`.
    reading : Reading, optional
    name : str, default "array"
        What to call the array in an error.
    notes : list of str, optional
        Told of clipped values and of alpha that was left out.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        A contiguous array; `array` itself, uncopied, where it already is one.

    Raises
    ------
    UnreadableImageError
        For any other shape or dtype, an empty array, or floats that are not finite or leave [0, 1].

    Examples
    --------
    >>> to_rgb(np.array([[0.0, 0.5, 1.0]]))[0, :, 0]
    array([  0, 128, 255], dtype=uint8)
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        hint = "give one image as (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint += "; channels come last in an array: array.transpose(1, 2, 0)"
        raise UnreadableImageError(f"{name}: shape {array.shape} is not an image; {hint}")
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    white = 65535 if array.dtype == np.uint16 else None
    decoded = Decoded(array.shape[0], array.shape[1], lambda top, bottom: array[top:bottom], white)
    return _to_rgb8(decoded, name, reading, [] if notes is None else notes)


def read_mask(
    path: str | os.PathLike[str] | bytes, size: tuple[int, int] | None = None, name: str | None = None
) -> np.ndarray:
    """Read a defect mask: True where a pixel is defective.

    A pixel counts as defective if it is painted and its colour is not black, so masks of 0/1, of 0/255, 1-bit and
    palette masks all read alike. Where grey levels are many (more than 16 values: smoothed edges) or compression
    leaves traces (JPEG, lossy WebP), it has to be above half of the brightest. Where all that is painted on a
    transparent ground has one colour, white or black, what is painted is the defect.

    Parameters
    ----------
    path : path or bytes
        The mask file.
    size : (h, w), optional
        Resize to this many pixels, nearest neighbour. By default the size of the file.
    name : str, optional
        What to call it in an error; by default its file name.

    Returns
    -------
    ndarray of shape (H, W), bool

    Raises
    ------
    UnreadableImageError
        As in `read_image`.
    """
    decoded = decode(path, name or name_of(path), DEFAULT_READING)
    assert decoded is not None
    stored = np.atleast_3d(decoded.rows(0, decoded.height))
    values, painted = stored[..., :3].max(axis=2), np.ones(stored.shape[:2], bool)
    if stored.shape[2] == 4 and stored[..., 3].min() < stored[..., 3].max():
        painted = stored[..., 3] > stored[..., 3].max() / 2
        shown = stored[painted][:, :3]
        if (shown == shown[0]).all():
            values = painted
    brightest, many = values.max(), len(np.unique(values)) > 16
    # A compressed mask of values 0 and 1 is lost: black with traces, in which nothing is marked.
    least = max(brightest / 2, 16) if decoded.lossy else brightest / 2 if many and brightest > 32 else 0
    mask = (values > least) & painted
    if size is not None and mask.shape != size:
        mask = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
    return mask


def deepest_value(item: Any, name: str, reading: Reading) -> int | None:
    """The largest stored value of an image of more than 8 bits that does not declare its range; else None.

    Of a file with 8 bits only the header is read.
    """
    if isinstance(item, np.ndarray):
        return int(np.atleast_3d(item)[..., :3].max()) if item.dtype == np.uint16 and item.size else None
    decoded = decode(item, name, reading, only_deep=True)
    if decoded is None or decoded.white != 65535:
        return None
    return max(int(np.atleast_3d(decoded.rows(*band))[..., :3].max()) for band in _bands(decoded))


def _bands(decoded: Decoded, multiple: int = 1) -> list[tuple[int, int]]:
    step = max(1, MEBIBYTE // decoded.width // multiple) * multiple
    return [(top, min(top + step, decoded.height)) for top in range(0, decoded.height, step)]


def _to_rgb8(decoded: Decoded, name: str, reading: Reading, notes: list[str], shrink: int = 1) -> np.ndarray:
    """Its pixels, uint8 (H, W, 3), or means of `shrink` × `shrink` of them, of fewer at the end."""
    bands = _bands(decoded, shrink)
    first = decoded.rows(*bands[0])
    channels = first.shape[2] if first.ndim == 3 else 1
    if channels == 4:
        ends = [(alpha.min(), alpha.max()) for alpha in (decoded.rows(*band)[..., 3] for band in bands)]
        low, high = min(ends)[0], max(end for _, end in ends)
        # The same everywhere, or 0 and 1 for "no" and "yes" in integers: on the ground, all would be grey.
        if low == high or (high == 1 and first.dtype.kind != "f"):
            channels = 3
            if high < (1 if first.dtype.kind in "bf" else np.iinfo(first.dtype).max):
                notes.append(f"alpha is at most {high}, nearly or wholly transparent; the colour is shown without it")
    pixels = np.empty((-(-decoded.height // shrink), -(-decoded.width // shrink), 3), np.uint8)
    darkest, brightest = np.inf, -np.inf
    for top, bottom in bands:
        values = np.atleast_3d(decoded.rows(top, bottom) if top else first)[..., :channels]
        if reading.value_range and values.dtype.kind in "iu" and values.dtype != np.uint8:
            darkest, brightest = min(darkest, values[..., :3].min()), max(brightest, values[..., :3].max())
        part = _to_uint8(values, decoded.white, name, reading)
        part = _on_ground(part) if channels == 4 else part
        if shrink > 1:
            rgb = np.broadcast_to(part, (*part.shape[:2], 3))
            part = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).reduce(shrink))
        pixels[top // shrink : -(-bottom // shrink)] = part
    if reading.value_range and (darkest < reading.value_range[0] or brightest > reading.value_range[1]):
        low, high = reading.value_range
        notes.append(f"values from {darkest} to {brightest} leave the range {low} to {high}, and are clipped")
    return pixels


def _to_uint8(array: np.ndarray, white: int | None, name: str, reading: Reading) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind in "iu":
        low, high = reading.value_range or (0, white)
        if high is None:
            hint = "give bool, uint8, uint16, float in [0, 1], or value_range"
            raise UnreadableImageError(f"{name}: dtype {array.dtype} has no known range; {hint}")
        # 32-bit and signed TIFFs: their range only their maker knows. Guessing it per image would make the same part
        # bright in one and dark in the next.
        if reading.value_range is None and (array.min() < low or array.max() > high):
            found = f"32-bit or signed integers from {array.min()} to {array.max()}, range unknown"
            raise UnreadableImageError(f"{name}: {found}; save the image with 8 or 16 bits, or give value_range")
        return np.rint((np.clip(array.astype(np.float32), low, high) - low) * (255 / (high - low))).astype(np.uint8)
    if array.dtype.kind != "f":
        raise UnreadableImageError(f"{name}: dtype {array.dtype} is not of pixels; give bool, uint8, uint16 or float")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableImageError(f"{name}: holds NaN or infinity; replace them before (numpy.nan_to_num)")
    # Resizing in floating point overshoots by rounding errors; half a grey level of 16 bits is no more.
    if low < -1e-5 or high > 1 + 1e-5:
        raise UnreadableImageError(
            f"{name}: floats from {low:.4g} to {high:.4g}, not in [0, 1]; divide by the full range "
            "(255 for 8 bits) and give images before any mean is subtracted"
        )
    return np.rint(np.clip(array, 0, 1) * np.float32(255)).astype(np.uint8)


def _on_ground(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)  # (h, W, 1); 255 * 255 fits in 16 bits
    mixed = rgba[..., :3] * alpha + ALPHA_GROUND * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
