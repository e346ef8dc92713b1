"""Everything that holds images opens as one source, and a broken file waits for its turn."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from pictures import PIXELS, nested_folder
from PIL import Image

from anomalib_lite.images.loading import guess_value_range
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.reading import Reading, UnreadableImageError
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.images.variations import Variations, VariedSource


@pytest.fixture
def folder(tmp_path):
    return nested_folder(tmp_path)


def test_an_unreadable_file_stays_in_the_list_and_is_named_when_read(folder):
    (folder / "deep" / "broken.png").write_bytes(b"")
    source = open_source(folder)
    assert source.ids[2] == "deep/broken.png"
    with pytest.raises(UnreadableImageError, match=r"^deep/broken\.png: empty"):
        source.read(2)


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
