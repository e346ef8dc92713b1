"""The MVTec AD layout: labels and masks belong to the right images, and what does not pair is listed."""

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.images.mvtec import is_good_name, open_mvtec, refuse_labelled_root
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import open_source


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


@pytest.mark.parametrize(
    ("rows", "fault"), [(0, "nothing is marked"), (20, "100% of it is marked; inverted"), (19.5, "98% of it is marked")]
)
def test_a_mask_that_marks_nothing_or_nearly_everything_is_named(root, rows, fault):
    pixels = np.zeros((20, 30), np.uint8)
    pixels[: int(rows)], pixels[int(rows) : int(rows + 0.5), :15] = 255, 255
    Image.fromarray(pixels).save(root / "ground_truth/scratch/000_mask.png")
    with pytest.raises(ValueError, match=rf"000_mask\.png: the mask of the defective scratch/000\.png, but {fault}"):
        open_mvtec(root).read_mask(1)


def test_a_small_defect_lost_in_a_small_size_is_no_fault_of_the_mask(root):
    write(root / "ground_truth/scratch/000_mask.png", rows=1)
    assert not open_mvtec(root).read_mask(1, (2, 3)).any()


def test_a_mask_or_a_test_image_in_a_format_that_is_not_read_is_listed(root):
    (root / "ground_truth/scratch/000_mask.png").rename(root / "ground_truth/scratch/000_mask.gif")
    (root / "test/scratch/002.heic").touch()
    dataset = open_mvtec(root)
    assert dataset.test.ids[-1] == "scratch/002.heic"
    assert dataset.mask_paths[1].name == "000_mask.gif"
    with pytest.raises(UnreadableImageError, match=r"scratch/002\.heic: \.heic is not read; convert it to PNG"):
        dataset.test.read(3)


def refuse(images):
    refuse_labelled_root(images, open_source(images))


class TestRootsThatHoldMoreThanGoodImages:
    def test_a_data_set_is_refused_and_its_good_images_are_named(self, root):
        with pytest.raises(
            ValueError, match=r"ground_truth/scratch/000_mask\.png for one.* give .*nut/train/good, or say"
        ):
            refuse(root)
        with pytest.raises(ValueError, match=r"give .*nut/train/good, or say"):
            refuse(root.parent)
        with pytest.raises(ValueError, match="holds more than good images"):
            refuse(sorted(root.rglob("*.png")))
        refuse(root / "train/good")
        refuse(root / "train")
        refuse(open_mvtec(root).train)

    @pytest.mark.parametrize(
        ("names", "stray"),
        [
            (["train/good/0", "test/dent/0"], r"test/dent/0\.png for one \(in test, beside train\)"),
            (["a", "a_mask"], r"a_mask\.png for one \(a mask\)"),
            (["x/a", "y/a-label"], r"y/a-label\.png for one"),
            (["images/a", "masks/a"], r"masks/a\.png for one"),
            (["good/a", "dent/a"], r"dent/a\.png for one \(in dent, beside a folder of good ones\); give .*/good, or"),
            (["parts/a", "parts/NOK/a"], r"parts/NOK/a\.png for one \(in a folder called NOK\)"),
            (["good/a", "not_good/a"], r"not_good/a\.png for one"),
        ],
    )
    def test_masks_and_defective_parts_are_seen_by_their_names(self, tmp_path, names, stray):
        for name in names:
            write(tmp_path / f"{name}.png")
        with pytest.raises(ValueError, match=stray):
            refuse(tmp_path)

    @pytest.mark.parametrize(
        "names",
        [
            ["camera1/a", "camera2/a", "monday/a"],
            ["a_mask", "b_mask"],  # parts that are called so
            ["good/a", "good_2/a", "good monday/b"],
            ["masks/a", "masks/b"],  # a line that makes masks
            ["train/a", "train/b"],
            ["test/a", "test/b"],
        ],
    )
    def test_ordinary_folders_are_not_refused(self, tmp_path, names):
        for name in names:
            write(tmp_path / f"{name}.png")
        refuse(tmp_path)

    def test_what_has_no_names_is_not_refused(self, root):
        refuse(np.zeros((2, 8, 8, 3), np.uint8))
        refuse([root / "test/scratch/000.png"])
        refuse([np.zeros((8, 8), np.uint8), root / "test/scratch/000.png"])


GOOD = ["good", "Good", "GOOD", "ok", "OK", "Ok", "normal", "Normal", "NORMAL"]


class TestNamesOfGood:
    """One predicate decides by the folder's name, whatever its case, wherever a folder is opened."""

    @pytest.mark.parametrize("name", GOOD)
    def test_are_known_in_any_case_and_below_other_folders(self, name):
        assert is_good_name(name)
        assert is_good_name(f"test/{name}")
        assert not is_good_name(f"{name}/dent")

    @pytest.mark.parametrize("name", ["", "not_ok", "good_2", "nok", "abnormal", "goods", "image", "good "])
    def test_others_are_not(self, name):
        assert not is_good_name(name)

    @pytest.mark.parametrize("name", GOOD)
    def test_open_in_train_and_in_test(self, root, name):
        (root / "train/good").rename(root / "train" / name)
        (root / "test/good").rename(root / "test" / name)
        write(root / "ground_truth" / name / "000_mask.png")  # a black mask of a good image is no problem
        dataset = open_mvtec(root)
        assert dataset.train.ids == ["000.png", "001.png"]
        assert sorted(zip(dataset.kinds, dataset.labels.tolist(), strict=True)) == [
            ("good", False),
            ("scratch", True),
            ("scratch", True),
        ]
        assert f"{name}/000.png" in dataset.test.ids
        assert dataset.pairing_problems == []
        assert dataset.has_mask.all()
        assert not dataset.read_mask(dataset.kinds.index("good")).any()

    def test_may_differ_between_train_and_test(self, root):
        (root / "train/good").rename(root / "train/OK")
        assert open_mvtec(root).labels.tolist() == [False, True, True]

    def test_several_beside_each_other_are_all_good(self, root):
        write(root / "train/OK/000.png")
        write(root / "train/Normal/deep/000.png")
        write(root / "train/dent/000.png")
        write(root / "test/ok/007.png")
        dataset = open_mvtec(root)
        assert dataset.train.ids == ["Normal/deep/000.png", "OK/000.png", "good/000.png", "good/001.png"]
        assert dataset.train.read(1).shape == (20, 30, 3)
        assert dataset.kinds == ["good", "good", "scratch", "scratch"]
        refuse(dataset.train)

    def test_several_empty_ones_say_so(self, tmp_path):
        for name in ("ok", "good"):
            (tmp_path / "train" / name).mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match="no images; looked"):
            open_mvtec(tmp_path)

    def test_a_file_called_so_is_no_folder(self, tmp_path):
        write(tmp_path / "train/ok.png")
        (tmp_path / "train/ok.png").rename(tmp_path / "train/ok")
        with pytest.raises(FileNotFoundError, match=r"no train/good in it(.|\n)*may be called ok or normal as well"):
            open_mvtec(tmp_path)

    @pytest.mark.parametrize("name", GOOD)
    def test_a_labelled_root_is_refused_and_the_way_out_is_named(self, tmp_path, name):
        write(tmp_path / name / "a.png")
        write(tmp_path / "dent/a.png")
        with pytest.raises(ValueError, match=rf"dent/a\.png for one \(in dent, beside a folder.*; give .*/{name}, or"):
            refuse(tmp_path)

    @pytest.mark.parametrize("name", GOOD)
    def test_a_folder_of_categories_names_one(self, tmp_path, name):
        write(tmp_path / "nut/train" / name / "a.png")
        with pytest.raises(FileNotFoundError, match=r"Open one category instead, for instance .*nut$"):
            open_mvtec(tmp_path)


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
