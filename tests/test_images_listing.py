"""Which files of a folder are images: by name, visible, each once; what is not read is listed, too."""

import os

import numpy as np
import pytest
from pictures import PIXELS, nested_folder
from PIL import Image

from anomalib_lite.images.listing import OVERLAYS_MARK, list_images
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import open_source


@pytest.fixture
def folder(tmp_path):
    return nested_folder(tmp_path)


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
