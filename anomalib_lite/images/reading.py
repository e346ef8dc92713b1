"""Decode one image: a file, bytes, a PIL image or an array in; uint8 RGB (H, W, 3) out.

Whatever is wrong with a file - truncated, empty, no image, a decompression bomb, a decoder kept busy for
minutes - ends in one error, `UnreadableImageError`, whose text names the file, the reason and the way out.
What is read but not wholly shown - clipped values, further pages - is noted.

Pixels go from the decoder to RGB by bands of rows, so that the only whole pictures in memory are the
decoder's own and the result.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# The decoders a file may be handed to, by how it begins, whatever its suffix says. Not PIL's Image.open: that
# knows formats that start other programs (EPS runs Ghostscript), and warns by a pixel limit of its own.
DECODERS: dict[bytes, Any] = {
    b"\x89PNG": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"BM": BmpImageFile,
    b"II": TiffImageFile,
    b"MM": TiffImageFile,
    b"RIFF": WebPImageFile,
    **{b"P%d" % kind: PpmImageFile for kind in range(1, 7)},
}
DEEP_PNM = re.compile(rb"P([56])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})" + rb"\s")

# Transparent pixels are laid on mid-grey: neither a dark nor a bright part vanishes in it, and its edge
# against either is as weak as one fixed ground allows.
ALPHA_GROUND = 128

PAGES = "holds several pages, of which only the first was looked at; save each as a file of its own"

MEBIBYTE = 1 << 20
# What stands before the pixels (tags, profiles, comments) is read into memory; no camera writes more.
MAX_HEADER_BYTES = 8 * MEBIBYTE
# PIL decodes run-length coded BMPs in Python, some 100 ns per pixel, and may do so without a read in between.
MAX_RLE_PIXELS = 16_000_000
# Reading the orientation takes time and memory by the square of the block; a JPEG's has at most 65533 bytes.
MAX_EXIF_BYTES = 100_000


class UnreadableImageError(ValueError):
    """An image that cannot be turned into pixels; the text names it, the reason and the way out."""


@dataclass(frozen=True)
class Reading:
    """How files and arrays are read: what white is beyond 8 bits, and the limits.

    Attributes
    ----------
    value_range : (low, high), optional
        The stored values that become black and white in pictures of more than 8 bits: (0, 4095) for a camera's
        12 bits in a 16-bit file. What lies outside is clipped, and noted. By default the whole range of the file:
        65535, or what it declares (the maximum of a PGM, a TIFF of 12 bits).
    max_pixels : int, default 100_000_000
        Larger images are refused from their header, before anything is decoded. See `read_image` for the memory.
    max_seconds : float, default 3
        Processor time of one picture's decoding. A camera's takes 10 to 30 ms per megapixel.
    """

    value_range: tuple[int, int] | None = None
    max_pixels: int = 100_000_000
    max_seconds: float = 3.0

    def __post_init__(self) -> None:
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range={self.value_range}: give (black, white), black below white")
        if self.max_pixels < 1 or not self.max_seconds > 0:
            raise ValueError(f"max_pixels={self.max_pixels}, max_seconds={self.max_seconds}: both are above 0")

    @property
    def max_bytes(self) -> int:
        """Of a file: no format takes more than 8 bytes per pixel (colour and alpha in 16 bits) and its header."""
        return 8 * self.max_pixels + MAX_HEADER_BYTES


DEFAULT_READING = Reading()


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
    name = name or _name_of(source)
    decoded = _decode(source, name, reading)
    assert decoded is not None
    notes = [] if notes is None else notes
    notes += decoded.notes
    return _to_rgb8(decoded, name, reading, notes)


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
    decoded = _Decoded(array.shape[0], array.shape[1], lambda top, bottom: array[top:bottom], white)
    return _to_rgb8(decoded, name, reading, [] if notes is None else notes)


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a defect mask: True where a pixel is defective.

    A pixel counts as defective if it is painted and its colour is not black, so masks of 0/1, of 0/255, 1-bit and
    palette masks all read alike. Where grey levels are many (more than 16 values: smoothed edges) or compression
    leaves traces (JPEG, lossy WebP), it has to be above half of the brightest. Where all that is painted on a
    transparent ground has one colour, white or black, what is painted is the defect.

    Parameters
    ----------
    path : path
        The mask file.
    size : (h, w), optional
        Resize to this many pixels, nearest neighbour. By default the size of the file.

    Returns
    -------
    ndarray of shape (H, W), bool

    Raises
    ------
    UnreadableImageError
        As in `read_image`.
    """
    name = _name_of(path)
    decoded = _decode(path, name, DEFAULT_READING)
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


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the size (H, W) of an image file, upright, from its header alone.

    Raises
    ------
    UnreadableImageError
        If the file has no readable header, or the image is refused as too large.
    """
    name = _name_of(path)
    with _named_errors(name, path), _opened(path, DEFAULT_READING) as file:
        image = _parsed(file, DEFAULT_READING)
        # PIL turns a TIFF by itself, some versions when it is opened, others when it is decoded.
        if isinstance(image, TiffImageFile) and _orientation(image) != 1:
            image.load()
        turned = _orientation(image) >= 5  # 5 to 8 stand the picture on its side
        return (image.width, image.height) if turned else (image.height, image.width)


def deepest_value(item: Any, name: str, reading: Reading) -> int | None:
    """The largest stored value of an image of more than 8 bits that does not declare its range; else None.

    Of a file with 8 bits only the header is read.
    """
    if isinstance(item, np.ndarray):
        return int(np.atleast_3d(item)[..., :3].max()) if item.dtype == np.uint16 and item.size else None
    decoded = _decode(item, name, reading, only_deep=True)
    if decoded is None or decoded.white != 65535:
        return None
    return max(int(np.atleast_3d(decoded.rows(*band))[..., :3].max()) for band in _bands(decoded))


class _Decoded(NamedTuple):
    """A decoded image, handed on by bands of rows in the values it was stored with."""

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]  # (top, bottom) -> (h, W) or (h, W, C), any dtype
    white: int | None  # the value of white in integers of more than 8 bits
    lossy: bool = False
    notes: tuple[str, ...] = ()


def _name_of(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return Path(os.fsdecode(source)).name or str(source)
    if isinstance(source, Image.Image):
        return Path(os.fsdecode(getattr(source, "filename", ""))).name or "PIL image"
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    raise TypeError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}; for arrays see to_rgb")


class _RefusedError(Exception):
    """Becomes an `UnreadableImageError` with the name before it."""


def _decode(source: Any, name: str, reading: Reading, only_deep: bool = False) -> _Decoded | None:
    """Load an image upright, in the values it was stored with; None if `only_deep` and it has 8 bits."""
    with _named_errors(name, source):
        if isinstance(source, Image.Image):
            _check_pixels(source.size, reading)
            if only_deep and not source.mode.startswith("I"):
                return None
            source.load()
            return _from_pil(source, name)
        with _opened(source, reading) as file:
            image = _parsed(file, reading)
            if (pnm := DEEP_PNM.match(file.head)) and int(pnm[4]) > 255:
                return None if only_deep and int(pnm[4]) < 65535 else _read_deep_pnm(file, pnm)
            deep, low_mode = image.mode.startswith("I"), _low_byte_mode(image)
            if only_deep and not deep and not low_mode:
                return None
            halved = not deep and not low_mode and ";16" in _rawmode(image)
            notes = ("16 bits of which PIL keeps the high ones (grey with alpha, CMYK); save as grey or RGB",) * halved
            lossy = isinstance(image, JpegImageFile | WebPImageFile) and b"VP8L" not in file.head
            _load(image, file)
            low = None
            if low_mode:
                low = _parsed(file, reading)
                _load(low, file, low_mode)
            return _from_pil(image, name, low, notes, lossy or image.info.get("compression") == "jpeg")


class _Watched:
    """A file that ends a decoder which takes too long or reads too much, between two of its reads."""

    def __init__(self, file: IO[bytes], size: int, reading: Reading) -> None:
        self._file, self.size, self._reading = file, size, reading
        self.head, self.bytes_left = b"", 0
        # Time of this thread on a processor: waiting for a slow disk or a busy machine is no fault of the picture.
        self._end = time.thread_time() + reading.max_seconds

    def read(self, size: int = -1) -> bytes:
        if time.thread_time() > self._end:
            limit = f"{self._reading.max_seconds:g} s"
            raise _RefusedError(f"takes longer than {limit} to decode; save it again as PNG, or raise max_seconds")
        # Decoders ask in small blocks, for which it is quicker to count what they got.
        small = 0 <= size <= MEBIBYTE
        data = self._file.read(size) if small else b""
        available = len(data) if small else max(0, self.size - self._file.tell())
        self.bytes_left -= available if size < 0 else min(size, available)
        if self.bytes_left < 0:
            limit = f"{MAX_HEADER_BYTES >> 20} MiB"
            raise _RefusedError(f"too large, more than {limit} beside its pixels; save it again without metadata")
        return data if small else self._file.read(size)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._file, attribute)


@contextlib.contextmanager
def _opened(source: Any, reading: Reading) -> Iterator[_Watched]:
    if isinstance(source, bytes | bytearray | memoryview):
        size = len(source)
    else:
        info = os.stat(source)
        if stat.S_ISDIR(info.st_mode):
            raise _RefusedError("is a folder; name the images in it or open the folder as a source")
        # Opening a pipe or a device would wait or read for ever.
        if not stat.S_ISREG(info.st_mode):
            raise _RefusedError("is not a regular file; copy the image to one")
        size = info.st_size
    if size == 0:
        raise _RefusedError("empty (0 bytes); copy or record the image again")
    if size > reading.max_bytes:
        limit = f"{reading.max_bytes / 1e6:.0f} MB are allowed, 8 bytes for each of max_pixels"
        raise _RefusedError(f"too large, {size / 1e6:.0f} MB, but only {limit}; save the image again")
    # Opened here and not by PIL: from a path, PIL maps uncompressed files into memory, and garbles a TIFF
    # that is to be turned (Pillow 13).
    with io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else open(source, "rb") as file:
        yield _Watched(file, size, reading)


def _parsed(file: _Watched, reading: Reading) -> Any:
    """Parse the header; the pixels are not yet decoded."""
    file.seek(0)
    file.bytes_left = MAX_HEADER_BYTES
    file.head = file.read(4096)
    decoder = next((decoder for start, decoder in DECODERS.items() if file.head.startswith(start)), None)
    if decoder is None:
        raise Image.UnidentifiedImageError
    if decoder is WebPImageFile:
        file.bytes_left += file.size  # PIL reads all of it to see its header
    file.seek(0)
    try:
        image = decoder(file)
    except SyntaxError as error:
        if decoder is TiffImageFile:
            raise ValueError(f"a kind of TIFF that is not read: {error}") from error  # 10 bits, for one
        raise Image.UnidentifiedImageError from error
    _check_pixels(image.size, reading)
    _check_pixels(_stored_size(image), reading)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(284) == 2 and (_bits_per_sample(image) or 0) > 8:
        raise _RefusedError("16-bit colour in separate planes; save it as PNG")  # PIL garbles it
    if image.tile and image.tile[0][0] == "bmp_rle" and image.width * image.height > MAX_RLE_PIXELS:
        raise _RefusedError("too large, run-length coded with more than 16 million pixels; save it as PNG")
    if max(len(image.info.get(key, b"")) for key in ("exif", "Raw profile type exif")) > MAX_EXIF_BYTES:
        raise _RefusedError(f"EXIF block of more than {MAX_EXIF_BYTES} bytes; save the image without it")
    return image


def _stored_size(image: Any) -> tuple[int, int]:
    """Size (W, H) of what is decoded: a TIFF is stored before it is turned, and in tiles larger than itself."""
    return getattr(image, "_tile_size", image.size)


def _load(image: Any, file: _Watched, rawmode: str | None = None) -> None:
    """Decode the pixels, as `rawmode` instead of the file's own if given."""
    width, height = _stored_size(image)
    file.bytes_left = 8 * width * height + MAX_HEADER_BYTES
    if rawmode is not None:
        image.tile = [_as_rawmode(tile, rawmode) for tile in image.tile]
    if isinstance(image, JpegImageFile):
        # One block may hold hundreds of scans, each a pass over all pixels; between two blocks the time is looked at.
        image.decodermaxblock = 2048
    elif isinstance(image, TiffImageFile):
        image.im = Image.core.new(image.mode, (width, height))  # else PIL warns by a pixel limit of its own
    image.load()


def _as_rawmode(tile: Any, rawmode: str) -> Any:
    args = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _rawmode(image: Any) -> str:
    """How PIL takes the pixels from the file, like ``RGB;16B``."""
    args = image.tile[0][3] if image.tile else ""
    return str(args if isinstance(args, str) else args[0])


def _low_byte_mode(image: Any) -> str | None:
    """The raw mode that gives the low bytes of colour in 16 bits, of which PIL keeps the high ones; else None."""
    colours, _, order = _rawmode(image).partition(";16")
    if colours not in ("RGB", "RGBA", "RGBX") or order not in ("B", "L", "N"):
        return None
    high_first = order == "B" or (order == "N" and sys.byteorder == "big")
    return f"{colours};16{'L' if high_first else 'B'}"


def _from_pil(image: Any, name: str, low: Any = None, notes: tuple[str, ...] = (), lossy: bool = False) -> _Decoded:
    """Hand on a loaded image, upright; `low` holds the low bytes of colour in 16 bits."""
    if getattr(image, "is_animated", False):
        notes += (PAGES,)
    twelve_bit = image.mode == "I;16" and _bits_per_sample(image) == 12
    upright, low = _upright(image), None if low is None else _upright(low)

    def rows(top: int, bottom: int) -> np.ndarray:
        box = (0, top, upright.width, bottom)
        part = upright if bottom - top == upright.height else upright.crop(box)
        # PIL refuses some pairs of modes, LAB to RGB for one, with a ValueError.
        with _named_errors(name, image):
            if low is not None:
                return np.asarray(part).astype(np.uint16) << 8 | np.asarray(low.crop(box))
            if part.mode.startswith("I") or (part.mode in ("1", "L", "F") and not part.has_transparency_data):
                return np.asarray(part)
            mode = "RGBA" if part.has_transparency_data else "RGB"
            return np.asarray(part if part.mode == mode else part.convert(mode))

    return _Decoded(upright.height, upright.width, rows, 4095 if twelve_bit else 65535, lossy, notes)


def _bits_per_sample(image: Image.Image) -> int | None:
    bits = getattr(image, "tag_v2", {}).get(258)  # only TIFF has them
    return bits[0] if isinstance(bits, tuple) else bits


def _check_pixels(size: tuple[int, int], reading: Reading) -> None:
    width, height = size
    if width * height > reading.max_pixels:
        raise _RefusedError(
            f"too large, {width} x {height} = {width * height / 1e6:.0f} million pixels, but only "
            f"{reading.max_pixels / 1e6:g} million are allowed; make the image smaller, or raise max_pixels"
        )


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    # A damaged EXIF block says nothing about the pixels: show them as stored, as viewers do.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(0x0112, 1)
        if orientation in range(1, 9):
            return int(orientation)
    return 1


def _read_deep_pnm(file: _Watched, header: re.Match[bytes]) -> _Decoded:
    """Read a PGM or PPM of more than 8 bits: PIL takes a microsecond for each value, and keeps 8 bits of colour."""
    width, height, white = (int(field) for field in header.groups()[1:])
    shape = (height, width) if header[1] == b"5" else (height, width, 3)
    file.seek(header.end())
    file.bytes_left = size = 2 * math.prod(shape)
    data = file.read(size)
    if len(data) < size:
        raise OSError("image file is truncated")
    values = np.frombuffer(data, ">u2").reshape(shape)
    return _Decoded(height, width, lambda top, bottom: values[top:bottom], white)


def _bands(decoded: _Decoded) -> list[tuple[int, int]]:
    step = max(1, MEBIBYTE // decoded.width)
    return [(top, min(top + step, decoded.height)) for top in range(0, decoded.height, step)]


def _to_rgb8(decoded: _Decoded, name: str, reading: Reading, notes: list[str]) -> np.ndarray:
    bands = _bands(decoded)
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
    pixels = np.empty((decoded.height, decoded.width, 3), np.uint8)
    darkest, brightest = np.inf, -np.inf
    for top, bottom in bands:
        values = np.atleast_3d(decoded.rows(top, bottom) if top else first)[..., :channels]
        if reading.value_range and values.dtype.kind in "iu" and values.dtype != np.uint8:
            darkest, brightest = min(darkest, values[..., :3].min()), max(brightest, values[..., :3].max())
        part = _to_uint8(values, decoded.white, name, reading)
        pixels[top:bottom] = _on_ground(part) if channels == 4 else part
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


@contextlib.contextmanager
def _named_errors(name: str, source: Any) -> Iterator[None]:
    """Turn whatever PIL raises into UnreadableImageError."""
    try:
        yield
    except UnreadableImageError:
        raise
    # A hostile file makes PIL's decoders raise nearly anything: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, OverflowError, KeyError. A list of types would always lack one.
    except Exception as error:
        raise UnreadableImageError(f"{name}: {_reason(source, error)}") from error


def _reason(source: Any, error: Exception) -> str:
    text = str(error) or type(error).__name__
    known = {
        _RefusedError: text,
        FileNotFoundError: f"no such file: {source}; check the path",
        PermissionError: f"permission denied; make the file readable: {source}",
        Image.UnidentifiedImageError: "not an image, or its header is damaged; save it as PNG, JPEG, BMP, TIFF or WebP",
        # For WebP only, whose size PIL checks itself while opening it.
        Image.DecompressionBombError: f"too large ({text}); make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS",
        MemoryError: "too large for the memory; make the image smaller",
    }
    for kind, reason in known.items():
        if isinstance(error, kind):
            return reason
    if "truncated" not in text.lower():
        return f"corrupt ({text}); copy or record the image again"
    if isinstance(source, Image.Image):
        return f"truncated ({text}); copy or record the image again"
    size = len(source) if isinstance(source, bytes | bytearray | memoryview) else os.path.getsize(source)
    return f"truncated after {size / 1000:.3g} kB; copy or record the image again"
