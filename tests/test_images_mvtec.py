"""The MVTec AD layout: labels and masks belong to the right images, and what does not pair is listed."""

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.images.mvtec import open_mvtec


@pytest.fixture
def root(tmp_path):
    """Two good images to fit on; one good and two scratched ones to test on, with masks."""
    for name in ("train/good/000", "train/good/001", "test/good/000", "test/scratch/000", "test/scratch/001"):
        write(tmp_path / "nut" / f"{name}.png")
    for i in range(2):
        write(tmp_path / "nut" / f"ground_truth/scratch/00{i}_mask.png", rows=i + 1)
    return tmp_path / "nut"


def write(path, size=(20, 30), rows=0):
    """Write an image whose first rows are white."""
    pixels = np.zeros(size, np.uint8)
    pixels[:rows] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_images_labels_and_masks_go_together(root):
    dataset = open_mvtec(root)
    assert dataset.name == "nut"
    assert dataset.train.ids == ["000.png", "001.png"]
    assert dataset.test.ids == ["good/000.png", "scratch/000.png", "scratch/001.png"]
    assert dataset.kinds == ["good", "scratch", "scratch"]
    assert dataset.labels.tolist() == [False, True, True]
    assert dataset.labels.dtype == bool
    assert dataset.mask_paths[0] is None
    assert dataset.pairing_problems == []
    assert dataset.has_mask.all()
    assert [int(dataset.read_mask(i)[:, 0].sum()) for i in range(3)] == [0, 1, 2]
    assert dataset.read_mask(0).shape == dataset.read_mask(2).shape == (20, 30)
    assert dataset.read_mask(0, (5, 6)).shape == dataset.read_mask(1, (5, 6)).shape == (5, 6)


@pytest.mark.parametrize("name", ["000.png", "000_mask.bmp", "000.tif"])
def test_masks_pair_by_name_whatever_their_suffix(root, name):
    masks = root / "ground_truth/scratch"
    (masks / "000_mask.png").unlink()
    write(masks / name, rows=7)
    dataset = open_mvtec(root)
    assert dataset.pairing_problems == []
    assert dataset.read_mask(1)[:, 0].sum() == 7


def test_renamed_masks_are_listed_on_both_sides(root):
    masks = root / "ground_truth/scratch"
    (masks / "000_mask.png").rename(masks / "renamed_000_mask.png")
    dataset = open_mvtec(root)
    assert dataset.pairing_problems == [
        "test/scratch/000.png: defective, but no mask ground_truth/scratch/000_mask.png",
        "ground_truth/scratch/renamed_000_mask.png: no image test/scratch/renamed_000.*",
    ]
    assert dataset.has_mask.tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"scratch/000\.png: defective, but without a mask"):
        dataset.read_mask(1)


def test_a_second_mask_of_one_image_is_listed(root):
    write(root / "ground_truth/scratch/000.png")
    dataset = open_mvtec(root)
    assert dataset.mask_paths[1] == root / "ground_truth/scratch/000_mask.png"
    assert dataset.pairing_problems == ["ground_truth/scratch/000.png: second mask of test/scratch/000.png, left out"]


def test_images_outside_a_kind_are_left_out_and_listed(root):
    write(root / "test/stray.png")
    dataset = open_mvtec(root)
    assert "stray.png" not in dataset.test.ids
    assert dataset.pairing_problems == ["test/stray.png: not in the folder of a kind, left out"]


def test_black_masks_of_good_images_are_no_problem(root):
    write(root / "ground_truth/good/000_mask.png")
    dataset = open_mvtec(root)
    assert dataset.pairing_problems == []
    assert dataset.mask_paths[0] is None


def test_a_mask_of_another_scale_is_brought_to_the_size_of_its_image(root):
    write(root / "ground_truth/scratch/000_mask.png", size=(40, 60), rows=20)
    mask = open_mvtec(root).read_mask(1)
    assert mask.shape == (20, 30)
    assert mask[:10].all()
    assert not mask[10:].any()


def test_a_mask_of_another_aspect_ratio_names_both_files(root):
    write(root / "ground_truth/scratch/000_mask.png", size=(30, 20))
    with pytest.raises(ValueError, match=r"000_mask\.png: 30 x 20 .*scratch/000\.png of 20 x 30"):
        open_mvtec(root).read_mask(1)


def test_only_the_good_images_to_fit_on_have_to_be_there(tmp_path):
    write(tmp_path / "train/good/000.png")
    dataset = open_mvtec(tmp_path)
    assert len(dataset.train) == 1
    assert len(dataset.test) == len(dataset.kinds) == len(dataset.labels) == len(dataset.mask_paths) == 0
    write(tmp_path / "test/dent/000.png")
    (tmp_path / "test/empty").mkdir()
    assert open_mvtec(tmp_path).kinds == ["dent"]


def test_another_layout_is_shown_the_expected_one(root):
    with pytest.raises(FileNotFoundError, match=r"(?s)no train/good in it, found nut/; .*ground_truth.*nut$"):
        open_mvtec(root.parent)
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        open_mvtec(root / "gone")
    for image in (root / "train/good").iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match="no images; looked"):
        open_mvtec(root)


@pytest.mark.real
@pytest.mark.parametrize(
    ("category", "n_train", "n_test", "n_problems"),
    [("bottle", 209, 83, 0), ("metal_nut", 200, 123, 85), ("magnetic_tile", 300, 224, 0)],
)
def test_real_categories(real_data, category, n_train, n_test, n_problems):
    dataset = open_mvtec(real_data / category)
    assert (len(dataset.train), len(dataset.test)) == (n_train, n_test)
    assert len(dataset.pairing_problems) == n_problems
    defective = np.flatnonzero(dataset.labels & dataset.has_mask)
    assert dataset.read_mask(defective[0]).shape == dataset.test.read(defective[0]).shape[:2]
