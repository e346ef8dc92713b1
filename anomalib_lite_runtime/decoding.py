"""From a file, bytes or a PIL image to its stored values, upright, by bands of rows; within limits.

Whatever is wrong with a file - truncated, empty, no image, a decompression bomb, a decoder kept busy for
minutes - ends in one error, `UnreadableImageError`, whose text names the file, the reason and the way out.
What is read but not wholly handed on, such as further pages, is noted.
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

PAGES = "holds several pages, of which only the first was looked at; save each as a file of its own"

MEBIBYTE = 1 << 20
# What stands before the pixels (tags, profiles, comments) is read into memory; no camera writes more.
MAX_HEADER_BYTES = 8 * MEBIBYTE
# PIL decodes run-length coded BMPs in Python, some 100 ns per pixel, and may do so without a read in between.
MAX_RLE_PIXELS = 16_000_000
# Reading the orientation takes time and memory by the square of the block; a JPEG's has at most 65533 bytes.
MAX_EXIF_BYTES = 100_000


class UnreadableImageError(ValueError):
    """An image that cannot be turned into pixels; the text names it, the reason and the way out.

    Examples
    --------
    >>> from anomalib_lite import Detector
    >>> Detector().fit([b"no image"], on_unreadable="raise")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    anomalib_lite_runtime.decoding.UnreadableImageError: ...
    """


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


def image_size(path: str | os.PathLike[str] | bytes, name: str | None = None) -> tuple[int, int]:
    """Read the size (H, W) of an image file or its bytes, upright, from its header alone; errors call it by its `name`.

    Raises
    ------
    UnreadableImageError
        If the file has no readable header, or the image is refused as too large.
    """
    with _named_errors(name or name_of(path), path), _opened(path, DEFAULT_READING) as file:
        image = _parsed(file, DEFAULT_READING)
        # PIL turns a TIFF by itself, some versions when it is opened, others when it is decoded.
        if isinstance(image, TiffImageFile) and _orientation(image) != 1:
            image.load()
        turned = _orientation(image) >= 5  # 5 to 8 stand the picture on its side
        return (image.width, image.height) if turned else (image.height, image.width)


class Decoded(NamedTuple):
    """A decoded image, handed on by bands of rows in the values it was stored with."""

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]  # (top, bottom) -> (h, W) or (h, W, C), any dtype
    white: int | None  # the value of white in integers of more than 8 bits
    lossy: bool = False
    notes: tuple[str, ...] = ()
    original: tuple[int, int] | None = None  # (H, W) it is stored with, where it was decoded smaller


def name_of(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return Path(os.fsdecode(source)).name or str(source)
    if isinstance(source, Image.Image):
        return Path(os.fsdecode(getattr(source, "filename", ""))).name or "PIL image"
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    raise TypeError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}; for arrays see to_rgb")


class _RefusedError(Exception):
    """Becomes an `UnreadableImageError` with the name before it."""


def decode(
    source: Any,
    name: str,
    reading: Reading,
    only_deep: bool = False,
    least: tuple[int, int] | None = None,
    before: Callable[[int], None] = lambda pixels: None,
) -> Decoded | None:
    """Load an image upright, in the values it was stored with; None if `only_deep` and it has 8 bits.

    With `least` (h, w) a JPEG may come smaller than it is stored, but no smaller than that. `before` is called with the
    number of pixels when they are about to be decoded.
    """
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
            stored, turned = image.size, _orientation(image) >= 5
            _shrink(image, least, turned)
            before(image.width * image.height)
            _load(image, file, stored)
            low = None
            if low_mode:
                low = _parsed(file, reading)
                _load(low, file, stored, low_mode)
            decoded = _from_pil(image, name, low, notes, lossy or image.info.get("compression") == "jpeg")
            if image.size == stored:
                return decoded
            return decoded._replace(original=stored if turned else (stored[1], stored[0]))


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


def _shrink(image: Any, least: tuple[int, int] | None, turned: bool) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth of its sides, to no less than `least` (h, w).

    Its blocks of 8 × 8 frequencies are then turned into 4 × 4, 2 × 2 or one pixel, which is quicker by as much.
    """
    if least is not None and isinstance(image, JpegImageFile):
        image.draft(image.mode, least if turned else (least[1], least[0]))


def _load(image: Any, file: _Watched, stored: tuple[int, int], rawmode: str | None = None) -> None:
    """Decode the pixels of an image `stored` as (W, H), as `rawmode` instead of the file's own if given."""
    width, height = _stored_size(image)
    file.bytes_left = 8 * max(width * height, stored[0] * stored[1]) + MAX_HEADER_BYTES
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


def _from_pil(image: Any, name: str, low: Any = None, notes: tuple[str, ...] = (), lossy: bool = False) -> Decoded:
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

    return Decoded(upright.height, upright.width, rows, 4095 if twelve_bit else 65535, lossy, notes)


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


def _read_deep_pnm(file: _Watched, header: re.Match[bytes]) -> Decoded:
    """Read a PGM or PPM of more than 8 bits: PIL takes a microsecond for each value, and keeps 8 bits of colour."""
    width, height, white = (int(field) for field in header.groups()[1:])
    shape = (height, width) if header[1] == b"5" else (height, width, 3)
    file.seek(header.end())
    file.bytes_left = size = 2 * math.prod(shape)
    data = file.read(size)
    if len(data) < size:
        raise OSError("image file is truncated")
    values = np.frombuffer(data, ">u2").reshape(shape)
    return Decoded(height, width, lambda top, bottom: values[top:bottom], white)


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
