"""One image decoded: every mode comes out as uint8 RGB, every broken file as one named error."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.images.reading import (
    ALPHA_GROUND,
    Reading,
    UnreadableImageError,
    image_size,
    read_image,
    read_mask,
    to_rgb,
)

RAMP = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(image, suffix="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    path = tmp_path / "image"
    Image.fromarray(NOISE).save(path, suffix)
    np.testing.assert_array_equal(read_image(path), NOISE)
    np.testing.assert_array_equal(read_image(str(path)), NOISE)
    np.testing.assert_array_equal(read_image(path.read_bytes()), NOISE)


@pytest.mark.parametrize("suffix", ["JPEG", "WEBP"])
def test_lossy_formats_are_read(suffix):
    smooth = np.dstack([np.add.outer(np.arange(32), np.arange(32)) * 4] * 3).astype(np.uint8)
    difference = read_image(encoded(Image.fromarray(smooth), suffix, quality=95)).astype(int) - smooth
    assert np.abs(difference).max() < 12


@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_their_full_range_and_not_clipped(suffix):
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = read_image(encoded(Image.fromarray(levels), suffix))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_twelve_bits_are_scaled_by_their_own_range():
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x0F, 0xFF])  # 4095, 0, 2048, 4095
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 6)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + packed
    assert read_image(tiff)[0, :, 0].tolist() == [255, 0, 128, 255]


def test_integer_images_beyond_sixteen_bits_are_refused():
    image = Image.fromarray(np.array([[0, 70000]], np.int32))
    with pytest.raises(UnreadableImageError, match=r"from 0 to 70000.*8 or 16 bits"):
        read_image(encoded(image, "TIFF"))


def test_float_images_span_zero_to_one():
    tiff = encoded(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF")
    assert read_image(tiff)[0, :, 1].tolist() == [0, 128, 255]
    with pytest.raises(UnreadableImageError, match=r"floats from 0 to 200, not in \[0, 1\]"):
        read_image(encoded(Image.fromarray(np.array([[0, 200]], np.float32)), "TIFF"))


def test_transparency_shows_the_neutral_ground():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 255
    rgba[0, :, 3] = 0, 255, 128
    transparent, opaque, half = read_image(encoded(Image.fromarray(rgba)))[0].tolist()
    assert transparent == [ALPHA_GROUND] * 3
    assert opaque == [255, 0, 0]
    assert half == [192, 64, 64]
    grey_alpha = Image.fromarray(np.array([[[9, 0], [9, 255]]], np.uint8), "LA")
    assert read_image(encoded(grey_alpha))[0, :, 0].tolist() == [ALPHA_GROUND, 9]


def test_palettes_with_and_without_a_transparent_entry():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert read_image(encoded(image))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    with_hole = read_image(encoded(image, transparency=0))
    assert with_hole[0].tolist() == [[ALPHA_GROUND] * 3, [200, 100, 50]]


def test_cmyk_grey_and_one_bit_images():
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert read_image(encoded(cmyk, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(RAMP)))[..., 2], RAMP)
    one_bit = Image.fromarray(RAMP > 128)
    np.testing.assert_array_equal(read_image(encoded(one_bit))[..., 0], np.where(RAMP > 128, 255, 0))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, RAMP), (3, RAMP[::-1, ::-1]), (6, np.rot90(RAMP, -1)), (8, np.rot90(RAMP)), (2, RAMP[:, ::-1])],
)
@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(tmp_path, orientation, upright, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    Image.fromarray(RAMP).save(path, suffix, exif=exif)
    np.testing.assert_array_equal(read_image(path)[..., 0], upright)
    assert image_size(path) == upright.shape


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_cost_the_image():
    image = encoded(Image.fromarray(RAMP), exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(image)[..., 0], RAMP)


def test_a_pil_image_is_read_and_left_as_it_was():
    image = Image.new("I;16", (3, 2), 65535)
    assert read_image(image).shape == (2, 3, 3)
    assert image.mode == "I;16"


def test_other_sources_are_a_type_error():
    with pytest.raises(TypeError, match="not ndarray; for arrays see to_rgb"):
        read_image(np.zeros((2, 2)))


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files_are_unreadable(tmp_path, suffix, share):
    whole = encoded(Image.fromarray(NOISE), suffix)
    path = tmp_path / f"part_017.{suffix.lower()}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImageError, match=rf"^part_017\.{suffix.lower()}: "):
        read_image(path)


def test_a_truncated_file_says_so_and_what_to_do(tmp_path):
    path = tmp_path / "part_017.jpg"
    path.write_bytes(encoded(Image.fromarray(NOISE), "JPEG")[:-500])
    kilobytes = f"{path.stat().st_size / 1000:.3g}"
    with pytest.raises(UnreadableImageError, match=rf"^part_017.jpg: truncated after {kilobytes} kB; copy"):
        read_image(path)


def test_empty_missing_and_foreign_files_are_named(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path, reason in [
        (empty, "empty.png: empty"),
        (text, "text.png: not an image"),
        (tmp_path / "gone.png", "gone.png: no such file"),
        (tmp_path, "is a folder"),
        (b"", "bytes: empty"),
    ]:
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_does_not_make_it_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match=r"pipe\.png: is not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "locked.png"
    path.write_bytes(b"x")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read anything, so a mode would prove nothing
    with pytest.raises(UnreadableImageError, match=r"locked\.png: permission denied"):
        read_image(path)


def test_postscript_is_never_handed_to_an_interpreter(tmp_path):
    path = tmp_path / "part.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    for source in (path, path.read_bytes()):
        with pytest.raises(UnreadableImageError, match="not an image"):
            read_image(source)


def test_the_size_is_checked_before_anything_is_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    with pytest.raises(UnreadableImageError, match=r"4000 x 3000 = 12 million pixels.*max_pixels"):
        read_image(png_header(4000, 3000), reading=Reading(max_pixels=10_000_000))
    with pytest.raises(UnreadableImageError, match="too large"):
        read_image(png_header(60_000, 60_000))
    assert decoded == []


def test_the_pixel_limit_of_pil_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    read_image(Image.new("L", (4, 4)), reading=Reading(max_pixels=20))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "error",
    [OSError("x"), SyntaxError("x"), ValueError("x"), struct.error("x"), zlib.error("x"), OverflowError("x"),
     MemoryError(), KeyError("x"), TypeError("x"), RecursionError("x")],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_one_error(monkeypatch, error):
    def explode(self):
        raise error

    image = encoded(Image.fromarray(RAMP))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    with pytest.raises(UnreadableImageError, match=r"^bytes: "):
        read_image(image)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM"])
def test_no_damage_escapes_as_another_error(suffix):
    whole = bytearray(encoded(Image.fromarray(NOISE), suffix))
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 400), 4):
            damaged[at] = rng.integers(256)
        try:
            pixels = read_image(bytes(damaged), reading=Reading(max_pixels=1_000_000))
        except UnreadableImageError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
@pytest.mark.parametrize(
    ("dtype", "top"), [(bool, 1), (np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0), (np.float64, 1.0)]
)
def test_arrays_of_every_shape_and_dtype(shape, dtype, top):
    pixels = to_rgb(np.full(shape, top, dtype))
    assert pixels.shape == (5, 4, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 255).all()


def test_rgb_arrays_are_not_copied():
    assert to_rgb(NOISE) is NOISE
    assert to_rgb(NOISE[:, ::-1]).flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\) is not an image"),
        (np.zeros((3, 8, 8)), r"channels come last.*transpose\(1, 2, 0\)"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((2, 2), np.int64), "dtype int64 has no known range"),
        (np.array([[0.0, np.nan]]), "NaN or infinity"),
        (np.array([[0.0, np.inf]]), "NaN or infinity"),
        (np.array([[-1.5, 2.25]]), r"floats from -1.5 to 2.25.*divide by the full range"),
    ],
)
def test_other_arrays_are_named_with_their_fault(array, reason):
    with pytest.raises(UnreadableImageError, match=f"^frame 7: .*{reason}"):
        to_rgb(array, name="frame 7")


def test_masks_of_every_mode_read_alike(tmp_path):
    truth = RAMP > 128
    palette = Image.fromarray(truth.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    images = {
        "one.png": Image.fromarray(truth),
        "grey.png": Image.fromarray(truth.astype(np.uint8) * 255),
        "index.png": Image.fromarray(truth.astype(np.uint8)),
        "palette.png": palette,
        "deep.png": Image.fromarray(truth.astype(np.uint16)),
        "colour.png": Image.fromarray(truth[..., None] * np.array([0, 0, 200], np.uint8)),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        mask = read_mask(tmp_path / name)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, truth, err_msg=name)


@pytest.mark.parametrize("orientation", [1, 3])
def test_the_traces_of_compression_around_a_jpeg_mask_do_not_count(tmp_path, orientation):
    truth = np.zeros((64, 64), bool)
    truth[19:45, 19:45] = True  # across the blocks of 8 x 8, so that compression leaves traces
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=60, exif=exif)
    upright = truth if orientation == 1 else truth[::-1, ::-1]
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.jpg"), upright)


def test_masks_are_resized_without_new_values(tmp_path):
    Image.fromarray(np.array([[0, 255], [0, 0]], np.uint8)).save(tmp_path / "mask.png")
    expected = np.zeros((4, 6), bool)
    expected[:2, 3:] = True
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (4, 6)), expected)


def test_an_unreadable_mask_is_named(tmp_path):
    (tmp_path / "000_mask.png").write_bytes(b"\x89PNG")
    with pytest.raises(UnreadableImageError, match=r"^000_mask\.png: "):
        read_mask(tmp_path / "000_mask.png")
    with pytest.raises(UnreadableImageError, match=r"^000_mask\.png: "):
        image_size(tmp_path / "000_mask.png")
