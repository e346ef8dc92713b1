"""Images arrive decoded, resized and in order, however many threads decode them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.images.framing import resize
from anomalib_lite.images.loading import LoadedImage, UnreadableImage, load
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 30, 3), dtype=np.uint8)


class Recorder:
    """A source that records which images were read, and by which thread."""

    def __init__(self, n):
        self.ids = [str(i) for i in range(n)]
        self.read_indices = []
        self.threads = set()

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        self.read_indices.append(i)
        self.threads.add(threading.current_thread())
        return np.full((4, 4, 3), i, np.uint8)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_come_in_order_whatever_the_number_of_threads(workers):
    loaded = list(load(open_source(PIXELS), size=(8, 10), workers=workers))
    assert [image.index for image in loaded] == list(range(12))
    for image in loaded:
        assert image.id == f"image_{image.index:04d}"
        assert image.original_size == (20, 30)
        np.testing.assert_array_equal(image.pixels, resize(PIXELS[image.index], (8, 10)))


def test_only_the_images_asked_for_in_the_order_asked():
    assert [image.index for image in load(open_source(PIXELS), [7, 2, 2], size=8, workers=2)] == [7, 2, 2]
    assert list(load(open_source(PIXELS), [], size=8)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_holds_its_place_or_raises(workers, tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    Image.fromarray(PIXELS[0]).save(tmp_path / "c.png")
    source = open_source(tmp_path)
    first, second, third = load(source, size=8, workers=workers)
    assert isinstance(first, LoadedImage)
    assert isinstance(third, LoadedImage)
    assert second == UnreadableImage(1, "b.png", "b.png: empty (0 bytes); copy or record the image again")
    images = load(source, size=8, workers=workers, on_unreadable="raise")
    assert next(images).id == "a.png"
    with pytest.raises(UnreadableImageError, match=r"^b\.png: empty"):
        next(images)


def test_no_more_is_decoded_ahead_than_asked():
    source = Recorder(100)
    images = load(source, size=4, workers=2, prefetch=5)
    for taken in range(1, 11):
        next(images)
        assert max(source.read_indices) < taken + 5
    images.close()


def test_stopping_early_ends_the_threads_and_what_was_queued(monkeypatch):
    closing = threading.Event()

    class Slow(Recorder):
        def read(self, i):
            pixels = super().read(i)
            assert i == 0 or closing.wait(10)
            return pixels

    shutdown = ThreadPoolExecutor.shutdown

    def shutdown_and_go_on(pool, wait=True, **options):
        shutdown(pool, wait=False, **options)
        closing.set()  # only now does the image in hand get finished
        shutdown(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown_and_go_on)
    source = Slow(100)
    images = load(source, size=4, workers=1, prefetch=8)
    next(images)
    images.close()
    assert not any(thread.is_alive() for thread in source.threads)
    assert source.read_indices in ([0], [0, 1])


def test_without_workers_the_caller_decodes_one_at_a_time():
    source = Recorder(5)
    images = load(source, size=4, workers=0)
    next(images)
    assert source.read_indices == [0]
    assert source.threads == {threading.current_thread()}


def test_nothing_is_read_before_the_first_image_is_asked_for():
    source = Recorder(5)
    load(source, size=4, workers=2)
    assert source.read_indices == []


def test_other_errors_of_a_source_are_not_swallowed():
    source = Recorder(3)
    source.read = lambda i: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(load(source, size=4, workers=2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 0}, "size=0"),
        ({"size": (4, -1)}, "size="),
        ({"size": 4, "workers": -1}, "workers=-1"),
        ({"size": 4, "workers": 1, "prefetch": 0}, "prefetch=0"),
        ({"size": 4, "on_unreadable": "ignore"}, "on_unreadable='ignore'"),
    ],
)
def test_wrong_options_are_named_at_the_call(options, reason):
    with pytest.raises(ValueError, match=reason):
        load(open_source(PIXELS), **options)


def test_an_image_of_the_right_size_is_not_copied():
    pixels = PIXELS[0]
    assert resize(pixels, (20, 30)) is pixels


def test_shrinking_averages_instead_of_picking_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize(stripes, 8)) < 40
    assert resize(stripes, 8).mean() == pytest.approx(127.5, abs=3)


def test_the_shape_is_height_by_width():
    assert resize(PIXELS[0], (7, 5)).shape == (7, 5, 3)
    assert resize(PIXELS[0], 9).shape == (9, 9, 3)
