"""Everything that holds images opens as one source, and a broken file waits for its turn."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_lite.images.listing import OVERLAYS_MARK, list_images
from anomalib_lite.images.loading import guess_value_range
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.reading import Reading, UnreadableImageError
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.images.variations import Variations, VariedSource

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)  # (N, H, W, C)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "deep/er/c.Tiff", ".hidden.png", ".cache/d.png", "notes.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[0]).save(path, "PNG")
    return tmp_path / "images"


def test_a_folder_lists_its_images_by_path_and_leaves_out_what_is_hidden(folder):
    source = open_source(folder)
    assert source.ids == ["a.JPG", "b.png", "deep/er/c.Tiff"]
    assert len(source) == 3
    np.testing.assert_array_equal(source.read(2), PIXELS[0])
    assert open_source(str(folder)).ids == source.ids


def test_the_order_is_that_of_the_paths_and_not_of_the_disk(tmp_path):
    names = [f"{i:02d}.png" for i in range(30)]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert open_source(tmp_path).ids == names


def test_linked_folders_are_followed_once_and_loops_end(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(PIXELS[0]).save(outside / "e.png")
    os.symlink(outside, folder / "linked")
    os.symlink(folder, folder / "deep" / "loop")
    assert open_source(folder).ids == ["a.JPG", "b.png", "deep/er/c.Tiff", "linked/e.png"]


def test_an_unreadable_file_stays_in_the_list_and_is_named_when_read(folder):
    (folder / "deep" / "broken.png").write_bytes(b"")
    source = open_source(folder)
    assert source.ids[2] == "deep/broken.png"
    with pytest.raises(UnreadableImageError, match=r"^deep/broken\.png: empty"):
        source.read(2)


def test_folders_without_images_say_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no images; looked .* for png jpg .*; check the path"):
        open_source(tmp_path)
    (tmp_path / "scan.gif").touch()
    with pytest.raises(FileNotFoundError, match=r"found only 1 x \.gif; convert them"):
        open_source(tmp_path)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "pnm", "pbm"])
def test_other_names_of_formats_that_are_read(tmp_path, suffix):
    Image.fromarray(PIXELS[0]).convert("1" if suffix == "pbm" else "RGB").save(
        tmp_path / f"a.{suffix}", "PPM" if suffix in ("pnm", "pbm") else "JPEG"
    )
    source = open_source(tmp_path)
    assert source.ids == [f"a.{suffix}"]
    assert source.read(0).shape == (6, 7, 3)


def test_pictures_that_are_not_read_are_listed_as_unreadable_and_other_files_are_not(folder):
    for name in ("scan.gif", "deep/phone.HEIC", "film.mp4", "a.jp2", "table.csv", "Thumbs.db", "labels.json"):
        (folder / name).write_bytes(b"GIF89a")
    source = open_source(folder)
    assert source.ids == ["a.JPG", "a.jp2", "b.png", "deep/er/c.Tiff", "deep/phone.HEIC", "film.mp4", "scan.gif"]
    with pytest.raises(UnreadableImageError, match=r"^deep/phone\.HEIC: \.HEIC is not read; convert it to PNG"):
        source.read(4)
    assert list_images(folder) == ["a.JPG", "b.png", "deep/er/c.Tiff"]


def test_a_folder_that_may_not_be_entered_is_an_entry(folder, monkeypatch):
    scan = os.scandir

    def refuse(path):  # root may enter anything, so a mode would prove nothing
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(folder)
    assert source.ids == ["a.JPG", "b.png", "deep/er/"]
    with pytest.raises(UnreadableImageError, match=r"^deep/er/: the folder cannot be entered.*make it readable"):
        source.read(2)
    with pytest.raises(FileNotFoundError, match="found only 1 x folder that cannot be entered"):
        open_source(folder / "deep")
    with pytest.raises(PermissionError):
        open_source(folder / "deep" / "er")


@pytest.mark.parametrize(
    "name", ["@eaDir", "$RECYCLE.BIN", "__MACOSX", "System Volume Information", "lost+found", "#recycle"]
)
def test_folders_of_the_system_are_left_out(folder, name):
    (folder / "deep" / name).mkdir()
    (folder / "b.png").rename(folder / "deep" / name / "b.png")
    assert open_source(folder).ids == ["a.JPG", "deep/er/c.Tiff"]


def test_overlays_are_not_scored_unless_their_folder_is_given(folder):
    (folder / "deep" / OVERLAYS_MARK).touch()
    assert open_source(folder).ids == ["a.JPG", "b.png"]
    assert open_source(folder / "deep").ids == ["er/c.Tiff"]


def test_a_path_that_does_not_exist_is_an_error_alone_but_not_in_a_list(folder):
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        open_source("gone")
    source = open_source([folder / "b.png", "gone.png"])
    assert source.read(0).shape == (6, 7, 3)
    with pytest.raises(UnreadableImageError, match=r"^gone\.png: no such file"):
        source.read(1)


def test_paths_keep_their_names_and_repeated_ones_are_numbered(folder):
    path = str(folder / "b.png")
    assert open_source(path).ids == [path]
    assert open_source([path, folder / "b.png", path + "#2", path]).ids == [
        path,
        f"{path}#3",
        f"{path}#2",
        f"{path}#4",
    ]


def test_a_list_may_hold_folders(folder):
    ids = open_source([folder / "deep", folder / "b.png"]).ids
    assert ids == [(folder / "deep/er/c.Tiff").as_posix(), str(folder / "b.png")]


@pytest.mark.parametrize(
    ("images", "n", "shape"),
    [
        (PIXELS, 5, (6, 7, 3)),
        (PIXELS[0], 1, (6, 7, 3)),
        (PIXELS[0, :, :, 0], 1, (6, 7, 3)),
        (PIXELS[..., 0], 5, (6, 7, 3)),  # (N, H, W), for W is none of 1, 3 and 4
        (PIXELS[..., :1], 5, (6, 7, 3)),
        (torch.from_numpy(PIXELS).permute(0, 3, 1, 2), 5, (6, 7, 3)),
        (torch.from_numpy(PIXELS[0]).permute(2, 0, 1), 1, (6, 7, 3)),
        (torch.zeros(6, 7), 1, (6, 7, 3)),
    ],
)
def test_arrays_and_tensors_split_into_images(images, n, shape):
    source = open_source(images)
    assert source.ids == [f"image_{i:04d}" for i in range(n)]
    assert source.read(n - 1).shape == shape


def test_tensors_hold_the_same_pixels_as_arrays():
    tensor = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(open_source(tensor).read(3), PIXELS[3])
    np.testing.assert_array_equal(open_source(tensor.float() / 255).read(3), PIXELS[3])
    assert open_source(torch.ones(3, 4, 4, dtype=torch.bfloat16)).read(0).max() == 255
    learnt = torch.zeros(1, 3, 4, 4, requires_grad=True)
    assert open_source(learnt).read(0).max() == 0


def test_mixed_lists(folder):
    image = Image.fromarray(PIXELS[1])
    source = open_source(
        [str(folder / "b.png"), PIXELS[2], image, torch.zeros(3, 6, 7), (folder / "b.png").read_bytes()]
    )
    assert source.ids == [str(folder / "b.png"), "image_0001", "image_0002", "image_0003", "image_0004"]
    for i, expected in enumerate([PIXELS[0], PIXELS[2], PIXELS[1], PIXELS[0] * 0, PIXELS[0]]):
        np.testing.assert_array_equal(source.read(i), expected)


def test_a_generator_and_a_single_pil_image_are_accepted():
    assert len(open_source(pixels for pixels in PIXELS)) == 5
    np.testing.assert_array_equal(open_source(Image.fromarray(PIXELS[0])).read(0), PIXELS[0])


@pytest.mark.parametrize("kind", [io.BytesIO, bytes, bytearray, memoryview])
def test_encoded_bytes_and_open_files_are_one_image_each(folder, kind):
    encoded = (folder / "b.png").read_bytes()
    for images, ids in ((kind(encoded), ["image_0000"]), ([PIXELS[0], kind(encoded)], ["image_0000", "image_0001"])):
        source = open_source(images)
        assert source.ids == ids
        for _ in range(2):  # an open file can be read but once
            np.testing.assert_array_equal(source.read(len(ids) - 1), PIXELS[0])


def test_a_file_opened_as_text_is_no_image(folder):
    with open(folder / "notes.txt", encoding="latin-1") as file, pytest.raises(TypeError, match="mode 'rb'"):
        open_source(file)


def test_paths_in_arrays_and_generators(folder):
    paths = [str(folder / "a.JPG"), str(folder / "b.png")]
    for images in (np.array(paths), np.array(paths, object), (path for path in paths), map(np.str_, paths)):
        assert open_source(images).ids == paths
    assert open_source(np.str_(folder)).ids == open_source(folder).ids


@pytest.mark.parametrize("n", [3, 4])
def test_an_array_that_may_be_one_image_or_several_is_refused(n):
    array = np.zeros((n, 32, 40), np.uint8)
    with pytest.raises(ValueError, match=rf"\({n}, 32, 40\): {n} grey images, or one whose channels come first"):
        open_source(array)
    assert len(open_source(array[..., None])) == n
    assert open_source(array.transpose(1, 2, 0)).read(0).shape == (32, 40, 3)
    assert open_source(array[:1]).read(0).shape == (32, 40, 3)  # one either way


def test_what_is_not_shown_of_an_image_is_noted_by_its_id(tmp_path):
    bright = np.full((4, 4), 5000, np.uint16)
    Image.fromarray(bright).save(tmp_path / "bright.png")
    Image.fromarray(bright // 2).save(tmp_path / "dark.png")
    twelve_bits = Reading(value_range=(0, 4095))
    for images in (tmp_path, [bright, bright // 2], open_source(tmp_path)):
        source = open_source(images, twelve_bits)
        assert [source.read(i)[0, 0, 0] for i in range(2)] == [255, 156]
        assert source.notes == {source.ids[0]: "values from 5000 to 5000 leave the range 0 to 4095, and are clipped"}
        assert VariedSource(source, Variations(turn=180, draws=1)).notes is source.notes
    plain = open_source(tmp_path)
    assert plain.read(0)[0, 0, 0] == 19
    assert plain.notes == {}
    assert open_source(plain) is plain


def write_all(folder, images, suffix="png"):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.{suffix}")
    return folder


class TestGuessedRange:
    @pytest.mark.parametrize(
        ("largest", "expected"),
        [(0, None), (255, (0, 255)), (1023, (0, 1023)), (1024, (0, 4095)), (4095, (0, 4095)), (16383, (0, 16383)),
         (16384, None), (65535, None), (4095 * 16, None)],
    )  # fmt: skip
    def test_is_of_the_bits_that_the_whole_set_uses(self, tmp_path, largest, expected):
        images = [np.full((5, 5), value, np.uint16) for value in [largest // 9] * 70 + [largest]]
        assert guess_value_range(open_source(images)) == expected
        assert guess_value_range(open_source(write_all(tmp_path / "png", images[-3:]))) == expected
        assert guess_value_range(open_source(write_all(tmp_path / "tiff", images[-3:], "tif"))) == expected
        assert guess_value_range(open_source([Image.fromarray(image) for image in images])) == expected

    def test_needs_none_where_eight_bits_are_stored_or_the_range_is_declared(self, tmp_path, monkeypatch):
        folder = write_all(tmp_path / "eight", PIXELS)
        (folder / "declared.pgm").write_bytes(b"P5 1 1 1023\n\3\xff")
        (folder / "broken.png").write_bytes(b"broken")
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("8 bits are seen in the header"))
        assert guess_value_range(open_source(folder)) is None
        assert guess_value_range(open_source(PIXELS)) is None

    def test_passes_over_what_cannot_be_read(self):
        deep = np.full((4, 4), 900, np.uint16)
        assert guess_value_range(open_source(["gone.png", torch.zeros(7, 8, 9), np.zeros((0, 4)), deep])) == (0, 1023)

    def test_ignores_alpha_and_takes_colour(self):
        rgba = np.full((4, 4, 4), 900, np.uint16)
        rgba[..., 3] = 65535
        assert guess_value_range(open_source([rgba])) == (0, 1023)

    def test_of_a_source_of_ones_own_nothing_is_known(self, synthetic_set):
        assert guess_value_range(VariedSource(open_mvtec(synthetic_set).train, Variations(turn=180))) is None


def test_one_bad_array_in_a_list_is_unreadable_by_its_id():
    source = open_source([PIXELS[0], PIXELS[0] * 2.5, torch.zeros(7, 8, 9)])
    assert source.read(0).shape == (6, 7, 3)
    with pytest.raises(UnreadableImageError, match=r"^image_0001: floats from"):
        source.read(1)
    with pytest.raises(UnreadableImageError, match=r"^image_0002: tensor of shape \(7, 8, 9\)"):
        source.read(2)


@pytest.mark.parametrize(
    ("images", "error", "reason"),
    [
        ([], ValueError, "the list is empty"),
        (np.zeros((0, 8, 8, 3)), ValueError, r"array of shape \(0, 8, 8, 3\) holds no images"),
        (np.zeros((2, 3, 8, 8)), ValueError, r"give \(H, W\), \(H, W, C\)"),
        (torch.zeros(2, 8, 8, 3), ValueError, r"give \(H, W\), \(C, H, W\) or \(N, C, H, W\)"),
        (torch.zeros(7, 8, 9), ValueError, "tensor of shape"),
        (7, TypeError, "type int cannot be opened"),
        ({"a": 1}, TypeError, "type dict cannot be opened"),
        ([PIXELS[0], 3.5], TypeError, "item 1 of the list is of type float"),
    ],
)
def test_what_holds_no_images_is_an_error(images, error, reason):
    with pytest.raises(error, match=reason):
        open_source(images)


def test_a_source_of_ones_own_is_returned_as_it_is():
    class Camera:
        ids = ("now",)

        def __len__(self):
            return 1

        def read(self, i):
            return PIXELS[i]

    camera = Camera()
    assert isinstance(camera, ImageSource)
    assert open_source(camera) is camera


def test_opening_a_folder_does_not_import_torch(folder):
    code = (
        "import sys; from anomalib_lite.images import open_source; "
        f"open_source({str(folder)!r}).read(1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
