"""One image decoded: every mode comes out as uint8 RGB, every broken file as one named error."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.images.decoding import image_size
from anomalib_lite.images.reading import (
    ALPHA_GROUND,
    Reading,
    UnreadableImageError,
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


def png_of_sixteen_bits(values):
    """A PNG of uint16 (H, W, C): PIL writes none in colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of(values, order="<", compressed=False, planes=False, bits=16):
    """A TIFF of uint16 (H, W, C)."""
    height, width, channels = values.shape
    raw = (values.transpose(2, 0, 1) if planes else values).astype(f"{order}u2").tobytes()
    raw = zlib.compress(raw) if compressed else raw
    many = channels > 2  # then the bits of each channel stand outside the tag
    tags = {256: width, 257: height, 258: bits, 259: 8 if compressed else 1, 262: 2 if many else 1, 273: 0}
    tags |= {277: channels, 278: height, 279: len(raw), 284: 2 if planes else 1} | ({338: 2} if channels == 4 else {})
    after = 8 + 2 + 12 * len(tags) + 4
    extra = struct.pack(f"{order}{channels}H", *[bits] * channels) if many else b""
    tags[273] = after + len(extra)
    entries = b""
    for tag, value in tags.items():
        if tag == 258 and many:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, after)
        else:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(tags)) + entries + struct.pack(f"{order}I", 0) + extra + raw


TWELVE_BITS = Reading(value_range=(0, 4095))
COLOURS = np.random.default_rng(1).integers(0, 4096, (6, 5, 3)).astype(np.uint16)
IN_EIGHT = np.rint(COLOURS * (255 / 4095)).astype(np.uint8)


class TestMoreThanEightBits:
    @pytest.mark.parametrize("suffix", ["PNG", "TIFF", "PPM"])
    def test_all_grey_levels_of_a_camera_of_twelve_bits_are_kept(self, suffix):
        levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        image = encoded(Image.fromarray(levels), suffix)
        notes = []
        pixels = read_image(image, reading=TWELVE_BITS, notes=notes)
        assert len(np.unique(pixels)) == 256
        assert pixels[0, 0, 0] == 0
        assert pixels[-1, -1, 0] == 255
        assert notes == []
        np.testing.assert_array_equal(pixels, to_rgb(levels, reading=TWELVE_BITS))
        np.testing.assert_array_equal(pixels, read_image(Image.fromarray(levels), reading=TWELVE_BITS))
        assert len(np.unique(read_image(image))) == 17  # by the full range of 16 bits

    @pytest.mark.parametrize(
        "image",
        [
            png_of_sixteen_bits(COLOURS),
            png_of_sixteen_bits(np.dstack([COLOURS, np.full((6, 5), 65535)])),
            tiff_of(COLOURS),
            tiff_of(COLOURS, ">"),
            tiff_of(COLOURS, compressed=True),
            tiff_of(np.dstack([COLOURS, np.full((6, 5), 65535)]), ">", compressed=True),
            b"P6\n# made by hand\n5 6\n65535\n" + COLOURS.astype(">u2").tobytes(),
        ],
    )
    def test_colour_keeps_all_its_bits_though_pil_keeps_eight(self, image):
        notes = []
        np.testing.assert_array_equal(read_image(image, reading=TWELVE_BITS, notes=notes), IN_EIGHT)
        assert notes == []
        np.testing.assert_array_equal(read_image(image), np.rint(COLOURS / 257.0).astype(np.uint8))

    def test_what_keeps_eight_of_sixteen_bits_is_noted(self):
        notes = []
        read_image(png_of_sixteen_bits(COLOURS[..., :2]), notes=notes)
        assert notes == ["16 bits of which PIL keeps the high ones (grey with alpha, CMYK); save as grey or RGB"]

    def test_values_beyond_the_range_are_clipped_and_noted(self):
        for image in (np.array([[0, 4095, 5000]], np.uint16), Image.fromarray(np.array([[0, 4095, 5000]], np.uint16))):
            notes = []
            read = to_rgb if isinstance(image, np.ndarray) else read_image
            assert read(image, reading=TWELVE_BITS, notes=notes)[0, :, 0].tolist() == [0, 255, 255]
            assert notes == ["values from 0 to 5000 leave the range 0 to 4095, and are clipped"]
        notes = []
        read_image(Image.fromarray(RAMP), reading=TWELVE_BITS, notes=notes)  # 8 bits have their own range
        assert notes == []

    def test_a_range_of_ones_own_gives_meaning_to_other_integers(self):
        reading = Reading(value_range=(-100, 100))
        assert to_rgb(np.array([[-100, 0, 100]], np.int16), reading=reading)[0, :, 0].tolist() == [0, 128, 255]
        tiff = encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
        assert read_image(tiff, reading=Reading(value_range=(0, 70000)))[0, :, 0].tolist() == [0, 255]

    @pytest.mark.parametrize("white", [1023, 4095, 65535])
    def test_the_maximum_of_a_pgm_is_white(self, white):
        values = np.array([[0, white // 2, white]], ">u2")
        assert read_image(b"P5 3 1 %d\n" % white + values.tobytes())[0, :, 0].tolist() == [0, 127, 255]
        with pytest.raises(UnreadableImageError, match="truncated after"):
            read_image(b"P5 3 1 %d\n" % white + values.tobytes()[:-1])

    def test_kinds_of_tiff_that_would_be_garbled_are_refused(self):
        with pytest.raises(UnreadableImageError, match="in separate planes; save it as PNG"):
            read_image(tiff_of(COLOURS, planes=True))
        with pytest.raises(UnreadableImageError, match="a kind of TIFF that is not read"):
            read_image(tiff_of(COLOURS[..., :1], bits=10))

    @pytest.mark.parametrize("limits", [{"value_range": (9, 9)}, {"max_pixels": 0}, {"max_seconds": 0}])
    def test_a_reading_without_sense_is_refused(self, limits):
        with pytest.raises(ValueError, match=next(iter(limits))):
            Reading(**limits)


class TestAlphaThatSaysNothing:
    @pytest.mark.parametrize("alpha", [0, 1, 40, 255])
    def test_the_same_everywhere_shows_the_colour(self, alpha):
        rgba = np.dstack([NOISE, np.full(NOISE.shape[:2], alpha, np.uint8)])
        notes = []
        for pixels in (read_image(encoded(Image.fromarray(rgba)), notes=notes), to_rgb(rgba, notes=notes)):
            np.testing.assert_array_equal(pixels, NOISE)
        expected = f"alpha is at most {alpha}, nearly or wholly transparent; the colour is shown without it"
        assert notes == ([expected] * 2 if alpha < 255 else [])

    def test_no_and_yes_as_zero_and_one_show_the_colour(self):
        rgba = np.dstack([NOISE, np.arange(NOISE[..., 0].size).reshape(NOISE.shape[:2]) % 2]).astype(np.uint8)
        np.testing.assert_array_equal(to_rgb(rgba), NOISE)

    def test_alpha_in_floats_goes_to_one(self):
        rgba = np.zeros((1, 2, 4))
        rgba[0, 0, 3] = 1
        assert to_rgb(rgba)[0, :, 0].tolist() == [0, ALPHA_GROUND]


def test_further_pages_are_noted(tmp_path):
    first, second = Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])
    for name in ("stack.tif", "moving.webp", "moving.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
        notes = []
        np.testing.assert_array_equal(read_image(tmp_path / name, notes=notes)[..., 0], RAMP)
        assert notes == ["holds several pages, of which only the first was looked at; save each as a file of its own"]
        notes.clear()
        first.save(tmp_path / name)
        read_image(tmp_path / name, notes=notes)
        assert notes == []


def run_length_coded(width, height, codes):
    header = struct.pack("<IHHI", 1078 + len(codes), 0, 0, 1078)
    return (
        b"BM" + header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
        + bytes(1024) + codes
    )  # fmt: skip


def scans(width, height, n):
    """A JPEG of one progressive scan of the coarse values and `n` of nothing, each a pass over all blocks."""
    small = encoded(Image.new("L", (16, 16), 128), "JPEG", progressive=True)
    at = small.index(b"\xff\xc2")
    small = small[: at + 5] + struct.pack(">HH", height, width) + small[at + 9 : small.index(b"\xff\xda")]
    blocks = -(-width // 8) * -(-height // 8)
    for kind, symbol in ((0x00, 0x00), (0x10, 0xE0)):  # one code of one bit: no difference; a run of empty blocks
        small += b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15 + [symbol])
    start = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00"
    runs = "0" * (15 * -(-blocks // 16384))
    runs = int(runs.ljust(-(-len(runs) // 8) * 8, "1"), 2).to_bytes(-(-len(runs) // 8), "big")
    return small + start + bytes([0, 0, 0]) + bytes(-(-blocks // 8)) + (start + bytes([1, 63, 0]) + runs) * n


class TestLimits:
    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            (lambda: run_length_coded(10_000, 10_000, b"\0\0" * 200), "run-length coded with more than 16 million"),
            (lambda: run_length_coded(3000, 3000, b"\1\1" * 3_000_000), "takes longer than 0.2 s to decode"),
            (lambda: scans(2000, 2000, 20_000), "takes longer than 0.2 s to decode"),
            (lambda: b"P2 2000 2000 255\n" + b"1 " * 4_000_000, "takes longer than 0.2 s to decode"),
            (lambda: b"P5 2000 2000 127\n" + bytes(4_000_000), "takes longer than 0.2 s to decode"),
        ],
    )  # fmt: skip
    def test_a_decoder_kept_busy_is_ended(self, image, reason):
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(image(), reading=Reading(max_seconds=0.2))

    def test_the_same_pictures_within_their_time_are_read(self):
        assert read_image(run_length_coded(300, 300, b"\1\0\0\0" * 300)).shape == (300, 300, 3)
        assert read_image(scans(200, 200, 10) + b"\xff\xd9").shape == (200, 200, 3)

    def test_files_too_large_for_any_picture_of_the_pixels_allowed(self, tmp_path):
        path = tmp_path / "sparse.jpg"
        path.write_bytes(encoded(Image.fromarray(NOISE), "JPEG"))
        os.truncate(path, 2 * 10**9)
        with pytest.raises(
            UnreadableImageError, match=r"^sparse\.jpg: too large, 2000 MB, but only 808 MB are allowed"
        ):
            read_image(path)

    def test_headers_too_large(self):
        exif = b"II*\0" + struct.pack("<IH", 8, 60_000) + bytes(12 * 60_000)
        with pytest.raises(UnreadableImageError, match="EXIF block of more than 100000 bytes"):
            read_image(encoded(Image.fromarray(NOISE), exif=b"Exif\0\0" + exif))
        strips = struct.pack("<HHIIHHIIHHII", 256, 4, 1, 9, 257, 4, 1, 9, 273, 4, 3_000_000, 50)
        with pytest.raises(UnreadableImageError, match="more than 8 MiB beside its pixels"):
            read_image(b"II*\0" + struct.pack("<IH", 8, 3) + strips + bytes(13_000_000))

    @pytest.mark.filterwarnings("error")
    def test_the_limit_of_pixels_is_ours_alone(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        for suffix in ("PNG", "JPEG", "TIFF", "BMP", "PPM"):
            assert read_image(encoded(Image.fromarray(NOISE), suffix)).shape == NOISE.shape
        image = encoded(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw")
        np.testing.assert_array_equal(read_image(image), NOISE)

    def test_large_pictures_are_converted_by_bands(self):
        rng = np.random.default_rng(0)
        large = rng.integers(0, 256, (700, 2000, 4), dtype=np.uint8)
        whole = large[..., 3:].astype(int)
        expected = (large[..., :3] * whole + ALPHA_GROUND * (255 - whole) + 127) // 255
        np.testing.assert_array_equal(read_image(encoded(Image.fromarray(large), "TIFF")), expected)
        np.testing.assert_array_equal(to_rgb(large), expected)


class TestMasks:
    truth = np.zeros((64, 64), bool)
    truth[19:45, 19:45] = True
    drawn = truth.astype(np.uint8) * 255

    @pytest.mark.parametrize("colour", [0, 255, 90])
    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    def test_drawn_in_alpha_with_any_colour(self, tmp_path, colour, mode):
        drawn = Image.new(mode, (64, 64), (colour,) * (len(mode) - 1) + (0,))
        drawn.putalpha(Image.fromarray(self.drawn))
        drawn.save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), self.truth)

    @pytest.mark.parametrize(
        ("ground", "ink"),
        [
            ((255, 255, 255, 0), (0, 0, 0, 255)),
            ((0, 0, 0, 0), (255, 0, 0, 255)),
            ((0, 0, 0, 255), (255, 255, 255, 255)),
            ((0, 0, 0, 0), (255, 255, 255, 0)),
        ],
    )
    def test_painted_on_a_transparent_or_black_ground(self, tmp_path, ground, ink):
        pixels = np.where(self.truth[..., None], ink, ground).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), self.truth)

    def test_a_palette_with_a_transparent_ground(self, tmp_path):
        image = Image.fromarray(self.truth.astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        image.save(tmp_path / "mask.png", transparency=0)
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), self.truth)

    @pytest.mark.parametrize("name", ["mask.jpg", "mask.webp", "mask.tif"])
    @pytest.mark.parametrize("white", [255, 128])
    def test_traces_of_compression_do_not_count(self, tmp_path, name, white):
        options = {"compression": "jpeg"} if name == "mask.tif" else {}
        Image.fromarray(self.truth.astype(np.uint8) * white).save(tmp_path / name, quality=40, **options)
        wrong = read_mask(tmp_path / name) != self.truth
        assert wrong.sum() <= 4  # corners

    def test_lossless_webp_of_zero_and_one(self, tmp_path):
        rgb = np.repeat(self.truth[..., None].astype(np.uint8), 3, axis=2)
        Image.fromarray(rgb).save(tmp_path / "mask.webp", lossless=True)
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.webp"), self.truth)

    def test_a_compressed_mask_of_zero_and_one_marks_nothing(self, tmp_path):
        Image.fromarray(self.truth.astype(np.uint8)).save(tmp_path / "mask.jpg")
        assert not read_mask(tmp_path / "mask.jpg").any()

    def test_smoothed_edges_count_from_the_half(self, tmp_path):
        smooth = Image.fromarray(self.drawn).resize((640, 640), Image.Resampling.BICUBIC)
        smooth.save(tmp_path / "mask.png")
        expected = np.kron(self.truth, np.ones((10, 10))) > 0
        assert (read_mask(tmp_path / "mask.png") != expected).sum() <= 4 * 4 * 10

    def test_numbers_of_defects_all_count(self, tmp_path):
        numbers = (np.arange(64)[:, None] % 30 * np.ones(64)).astype(np.uint8)
        Image.fromarray(numbers).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), numbers > 0)
