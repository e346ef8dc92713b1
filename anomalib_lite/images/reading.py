"""Decode one image: a file, bytes, a PIL image or an array in; uint8 RGB (H, W, 3) out.

Whatever is wrong with a file - truncated, empty, no image, a decompression bomb - ends in one error,
`UnreadableImageError`, whose text names the file, the reason and the way out.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# The decoders a file may be handed to, whatever its suffix says. A list, because PIL's full set holds formats
# that start other programs (EPS runs Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")

# Transparent pixels are laid on mid-grey: neither a dark nor a bright part vanishes in it, and its edge
# against either is as weak as one fixed ground allows.
ALPHA_GROUND = 128


class UnreadableImageError(ValueError):
    """An image that cannot be turned into pixels; the text names it, the reason and the way out."""


def read_image(source: Any, *, max_pixels: int = 100_000_000, name: str | None = None) -> np.ndarray:
    """Decode one image to 8-bit RGB.

    The EXIF orientation is applied. 16-bit greyscale is scaled by its full range (65535 becomes 255), never
    clipped; a camera's 12 bits in a 16-bit file therefore come out dark, but alike in every image. 16-bit
    colour is brought to 8 bits by PIL, which keeps the high byte. Float images are taken to span [0, 1].
    Transparency is laid on mid-grey (128). Of a file with several pages the first is read.

    Parameters
    ----------
    source : path, bytes or PIL.Image.Image
        One image: PNG, JPEG, BMP, TIFF, WebP or PPM/PGM, recognised by content, not by suffix.
    max_pixels : int, default 100_000_000
        Larger images are refused from their header alone, before anything is decoded. Decoding takes about
        8 bytes per pixel. PIL's own limit (``PIL.Image.MAX_IMAGE_PIXELS``, twice 89 million) stays in force.
    name : str, optional
        What to call the image in an error; by default the file's name.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        The pixels in RGB order.

    Raises
    ------
    UnreadableImageError
        If `source` is missing, no regular file, empty, truncated, corrupt, too large or of another format.
    TypeError
        If `source` is none of the types above.

    Examples
    --------
    >>> from PIL import Image
    >>> read_image(Image.new("I;16", (4, 2), 65535))[0, 0]
    array([255, 255, 255], dtype=uint8)
    """
    name = name or _name_of(source)
    return _to_rgb8(_decode(source, name, max_pixels), name)


def to_rgb(array: np.ndarray, *, name: str = "array") -> np.ndarray:
    """Bring an array to 8-bit RGB.

    Parameters
    ----------
    array : ndarray of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
        bool, uint8, uint16 (scaled by its full range) or float in [0, 1]. A fourth channel is alpha, laid on
        mid-grey (128).
    name : str, default "array"
        What to call the array in an error.

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
    array = _to_uint8(array, name)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    elif array.shape[2] == 4:
        array = _on_ground(array)
    return np.ascontiguousarray(array)


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a defect mask: True where a pixel is defective.

    A pixel counts as defective if its colour is not black, so masks of 0/1, of 0/255, 1-bit and palette masks
    all read alike. In a JPEG, whose compression leaves traces around every edge, it has to be above half.

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
    image = _decode(path, name, max_pixels=100_000_000)
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.NEAREST)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        values = np.asarray(image)
    else:
        values = _converted(image, "RGB", name).max(axis=2)
    return values > (127 if image.format == "JPEG" else 0)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the size (H, W) of an image file, upright, from its header alone.

    Raises
    ------
    UnreadableImageError
        If the file has no readable header.
    """
    name = _name_of(path)
    with _named_errors(name, path), _opened(path, name) as image:
        # PIL turns a TIFF by itself, some versions when it is opened, others when it is decoded.
        if image.format == "TIFF" and _orientation(image) != 1:
            image.load()
        turned = _orientation(image) >= 5  # 5 to 8 stand the picture on its side
        return (image.width, image.height) if turned else (image.height, image.width)


def _name_of(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return Path(os.fsdecode(source)).name or str(source)
    if isinstance(source, Image.Image):
        return Path(os.fsdecode(getattr(source, "filename", ""))).name or "PIL image"
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    raise TypeError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}; for arrays see to_rgb")


def _decode(source: Any, name: str, max_pixels: int) -> Image.Image:
    """Return the loaded, upright image in the mode it was stored in."""
    if isinstance(source, Image.Image):
        with _named_errors(name, source):
            _check_pixels(source, name, max_pixels)
            source.load()
            return _upright(source)
    with _named_errors(name, source), _opened(source, name) as image:
        _check_pixels(image, name, max_pixels)
        image.load()
        upright = _upright(image)
        upright.format = image.format  # lost when the image is turned
        return upright


@contextlib.contextmanager
def _opened(source: Any, name: str) -> Iterator[Image.Image]:
    """Open an image lazily: its header is parsed, its pixels are not yet decoded."""
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) == 0:
            raise UnreadableImageError(f"{name}: empty (0 bytes); write the image again")
        with Image.open(io.BytesIO(source), formats=FORMATS) as image:
            yield image
        return
    info = os.stat(source)
    if stat.S_ISDIR(info.st_mode):
        raise UnreadableImageError(f"{name}: is a folder; name the images in it or open the folder as a source")
    # Opening a pipe or a device would wait or read for ever.
    if not stat.S_ISREG(info.st_mode):
        raise UnreadableImageError(f"{name}: is not a regular file; copy the image to one")
    if info.st_size == 0:
        raise UnreadableImageError(f"{name}: empty (0 bytes); copy or record the image again")
    # Opened here and not by PIL: from a path, PIL maps uncompressed files into memory, and garbles a TIFF
    # that is to be turned (Pillow 13).
    with open(source, "rb") as file, Image.open(file, formats=FORMATS) as image:
        yield image


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise UnreadableImageError(
            f"{name}: {image.width} x {image.height} = {pixels / 1e6:.0f} million pixels, but only "
            f"{max_pixels / 1e6:g} million are allowed; make the image smaller, or raise max_pixels"
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


@contextlib.contextmanager
def _named_errors(name: str, source: Any) -> Iterator[None]:
    """Turn whatever PIL raises into UnreadableImageError."""
    try:
        yield
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{name}: no such file: {source}; check the path") from error
    except PermissionError as error:
        raise UnreadableImageError(f"{name}: permission denied; make the file readable: {source}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"{name}: not an image, or its header is damaged; {', '.join(FORMATS)} can be read"
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{name}: too large ({error}); make the image smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except MemoryError as error:
        raise UnreadableImageError(f"{name}: too large for the memory; make the image smaller") from error
    # A hostile file makes PIL's decoders raise nearly anything: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, OverflowError, KeyError. A list of types would always lack one.
    except Exception as error:
        raise UnreadableImageError(f"{name}: {_reason(source, error)}; copy or record the image again") from error


def _reason(source: Any, error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "truncated" not in text.lower():
        return f"corrupt ({text})"
    size = None
    if isinstance(source, str | os.PathLike):
        size = os.path.getsize(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        size = len(source)
    return f"truncated ({text})" if size is None else f"truncated after {size / 1000:.3g} kB"


def _to_rgb8(image: Image.Image, name: str) -> np.ndarray:
    if image.has_transparency_data:
        return _on_ground(_converted(image, "RGBA", name))
    if image.mode == "F":
        return to_rgb(np.asarray(image), name=name)
    if image.mode.startswith("I"):
        return to_rgb(_full_range(image, name), name=name)
    return _converted(image, "RGB", name)


def _full_range(image: Image.Image, name: str) -> np.ndarray:
    """Return 16-bit greyscale as uint16 that uses all 16 bits."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    # Mode I is what PIL makes of a 16-bit PGM, but also of 32-bit and of signed TIFFs, whose range only their
    # maker knows. Guessing it per image would make the same part bright in one and dark in the next.
    if low < 0 or high > 65535:
        raise UnreadableImageError(
            f"{name}: 32-bit or signed integers from {low} to {high}, range unknown; save the image with 8 or 16 bits"
        )
    values = values.astype(np.uint16)
    twelve_bit = image.mode == "I;16" and _bits_per_sample(image) == 12
    return values << 4 | values >> 8 if twelve_bit else values  # 4095 becomes 65535


def _bits_per_sample(image: Image.Image) -> int | None:
    tags = getattr(image, "tag_v2", {})  # only TIFF has them
    bits = tags.get(258)
    return bits[0] if isinstance(bits, tuple) else bits


def _converted(image: Image.Image, mode: str, name: str) -> np.ndarray:
    # PIL refuses some pairs, LAB to RGB for one, with a ValueError.
    with _named_errors(name, image):
        return np.array(image.convert(mode))


def _on_ground(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)  # (H, W, 1); 255 * 255 fits in 16 bits
    mixed = rgba[..., :3] * alpha + ALPHA_GROUND * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    if array.dtype.kind != "f":
        raise UnreadableImageError(
            f"{name}: dtype {array.dtype} has no known range; give bool, uint8, uint16 or float in [0, 1]"
        )
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
