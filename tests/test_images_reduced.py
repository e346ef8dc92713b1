"""Large JPEGs are decoded at a fraction of their size where less is wanted, and nothing else about them changes."""

import io

import numpy as np
import pytest
from PIL import Image

from anomalib_lite import Detector
from anomalib_lite.images.framing import resize
from anomalib_lite.images.loading import UnreadableImage, load
from anomalib_lite.images.local import FolderSource, ListSource
from anomalib_lite.images.reading import Reading, read_image
from anomalib_lite.images.sources import open_source
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.report.page import Thumbnails


def a_jpeg(size=(1200, 900), *, mode="RGB", orientation=None, kind="JPEG", seed=0):
    """Encoded bytes of a drawn part, `size` (W, H) as stored."""
    image = Image.fromarray(render_part(np.random.default_rng(seed), 300)[0]).resize(size).convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90, "exif": exif} if kind == "JPEG" else {}))
    return file.getvalue()


def loaded(encoded, size=128, **options):
    (image,) = load(ListSource([encoded], ["a"]), size=size, workers=0, **options)
    return image


class TestLoad:
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("orientation", [None, 3, 6])
    def test_differs_little_from_the_whole_picture(self, mode, orientation):
        encoded = a_jpeg(mode=mode, orientation=orientation)
        image = loaded(encoded)
        assert image.original_size == ((1200, 900) if orientation == 6 else (900, 1200))
        whole = read_image(encoded)
        assert whole.shape[:2] == image.original_size
        difference = np.abs(image.pixels.astype(int) - resize(whole, 128).astype(int))
        assert difference.mean() < 0.6
        assert difference.max() <= 12

    @pytest.mark.parametrize(
        ("stored", "size", "decoded"),
        [
            ((1200, 900), 128, (450, 600)),  # a quarter has less than twice as many
            ((1200, 900), 100, (225, 300)),
            ((4800, 3600), 128, (450, 600)),  # an eighth is the least there is
            ((500, 400), 128, (400, 500)),
            ((1200, 900), (64, 256), (450, 600)),
        ],
    )
    def test_keeps_twice_what_is_wanted(self, stored, size, decoded):
        height, width = (size, size) if isinstance(size, int) else size
        pixels, original = open_source(a_jpeg(stored)).read_reduced(0, (2 * height, 2 * width))
        assert pixels.shape == (*decoded, 3)
        assert original == stored[::-1]

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_other_formats_come_whole(self, kind):
        encoded = a_jpeg(kind=kind)
        pixels, original = open_source(encoded).read_reduced(0, (64, 64))
        assert np.array_equal(pixels, read_image(encoded))
        assert original == (900, 1200)

    def test_a_cut_picture_is_unreadable_for_the_same_reason(self):
        encoded = a_jpeg()
        cut = loaded(encoded[: len(encoded) // 2])
        assert isinstance(cut, UnreadableImage)
        with pytest.raises(ValueError, match="a: ") as error:
            read_image(encoded[: len(encoded) // 2], name="a")
        assert cut.reason == str(error.value)

    def test_limits_are_those_of_the_whole_picture(self):
        encoded, reading = a_jpeg(), Reading(max_pixels=1_000_000)
        (image,) = load(ListSource([encoded], ["a"], reading), size=64, workers=0)
        assert isinstance(image, UnreadableImage)
        with pytest.raises(ValueError, match="a: ") as error:
            read_image(encoded, name="a", reading=reading)
        assert image.reason == str(error.value)

    @pytest.mark.parametrize("kind", [ListSource, FolderSource])
    def test_a_subclass_that_reads_in_its_own_way_is_asked(self, kind, tmp_path):
        class Cut(kind):
            def read(self, i):
                return super().read(i)[:300, :400]

        (tmp_path / "a.jpg").write_bytes(a_jpeg())
        source = Cut([tmp_path / "a.jpg"], ["a"]) if kind is ListSource else Cut(tmp_path)
        (image,) = load(source, size=64, workers=0)
        assert image.original_size == (300, 400)
        assert np.array_equal(image.pixels, resize(source.read(0), 64))

    def test_folders_too(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(a_jpeg())
        (tmp_path / "b.gif").write_bytes(b"GIF89a")
        (first, second) = load(open_source(tmp_path), size=64, workers=0)
        assert first.original_size == (900, 1200)
        assert isinstance(second, UnreadableImage)


class TestScores:
    def test_are_nearly_those_of_whole_pictures(self, monkeypatch):
        detector = Detector(image_size=64, dtype="float32").fit([a_jpeg(seed=i) for i in range(8)], groups="each")
        new = [a_jpeg(seed=i) for i in range(20, 24)]
        reduced = detector.score(new)
        whole = detector.score([read_image(encoded) for encoded in new])
        assert reduced.scores == pytest.approx(whole.scores, rel=0.1)
        assert reduced.image_sizes == whole.image_sizes
        assert reduced.anomaly_map(0).shape == (900, 1200)

    def test_are_the_same_through_thumbnails(self):
        detector = Detector(image_size=64, dtype="float32").fit([a_jpeg(seed=i) for i in range(8)], groups="each")
        source = open_source([a_jpeg((2400, 1800), seed=i) for i in range(20, 23)])
        thumbnails = Thumbnails(source)
        expected, found = detector.score(source), detector.score(thumbnails)
        assert found.image_sizes == expected.image_sizes
        assert np.array_equal(found.scores, expected.scores)
        assert len(thumbnails.pictures) == 3
