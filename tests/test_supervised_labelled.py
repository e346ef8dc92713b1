"""Opening labelled folders: both layouts, what is left out, and labels nothing can be learnt from."""

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.supervised.labelled import LabelledDataError, open_labelled
from anomalib_lite.supervised.segmenter import check_masks


def picture(path, value=0, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path):
    for kind in ("ok", "dent", "rust"):
        for number in range(3):
            picture(tmp_path / kind / f"{number}.png", number)
    return tmp_path


class TestClassFolders:
    def test_every_folder_is_a_class_and_the_good_one_comes_first(self, classes):
        images = open_labelled(classes)
        assert images.classes == ["ok", "dent", "rust"]
        assert images.good == "ok"
        assert images.ids[:4] == ["dent/0.png", "dent/1.png", "dent/2.png", "ok/0.png"]
        assert images.defective.tolist() == [True] * 3 + [False] * 3 + [True] * 3
        assert not images.for_training.any()

    def test_the_good_class_can_be_named(self, classes):
        assert open_labelled(classes, good="rust").classes[0] == "rust"
        with pytest.raises(LabelledDataError, match="good='fine' is none of the classes dent, ok, rust"):
            open_labelled(classes, good="fine")

    def test_classes_without_a_good_one_open_but_have_no_defects(self, tmp_path):
        for kind in ("cats", "dogs"):
            picture(tmp_path / kind / "a.png")
        images = open_labelled(tmp_path)
        assert images.classes == ["cats", "dogs"]
        with pytest.raises(LabelledDataError, match=r"which of the classes cats, dogs is good\? Name it with good="):
            images.defective  # noqa: B018

    def test_stray_files_are_listed_and_left_out(self, classes):
        picture(classes / "loose.png")
        (classes / "ok" / "notes.txt").write_text("hello")
        images = open_labelled(classes)
        assert len(images) == 9
        assert images.problems == [
            "loose.png: in no class's folder, left out",
            "ok/notes.txt: not an image by its name, left out",
        ]

    def test_one_class_only(self, tmp_path):
        picture(tmp_path / "good" / "a.png")
        with pytest.raises(LabelledDataError, match="only the class good is there, and two are needed"):
            open_labelled(tmp_path)

    def test_an_empty_class_is_named(self, classes):
        (classes / "scratch").mkdir()
        with pytest.raises(LabelledDataError, match="scratch: a class without images; put images into it"):
            open_labelled(classes)

    def test_no_classes_at_all(self, tmp_path):
        picture(tmp_path / "a.png")
        with pytest.raises(LabelledDataError, match="no images in folders of classes"):
            open_labelled(tmp_path)

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such folder; give one with a folder per class"):
            open_labelled(tmp_path / "none")


class TestMVTecLayout:
    def test_train_is_for_training_and_masks_are_paired(self, synthetic_set):
        images = open_labelled(synthetic_set)
        assert images.classes == ["good", "bent", "color", "flip", "scratch"]
        assert images.for_training.sum() == 16
        assert len(images) == 16 + 6 + 4 * 3
        assert images.has_mask.all()
        first = images.ids.index("test/scratch/000.png")
        assert images.read_mask(first).shape == (128, 128)
        assert 0 < images.read_mask(first, (32, 32)).mean() < 1
        assert not images.read_mask(0, (8, 8)).any()

    def test_other_kinds_in_train_are_learnt_from(self, tmp_path):
        for name in ("train/good/a.png", "train/dent/b.png", "test/good/c.png", "test/dent/d.png"):
            picture(tmp_path / name)
        images = open_labelled(tmp_path)
        assert list(zip(images.kinds, images.for_training.tolist(), strict=True)) == [
            ("dent", True),
            ("good", True),
            ("dent", False),
            ("good", False),
        ]

    def test_good_images_only_are_one_class(self, tmp_path):
        picture(tmp_path / "train" / "good" / "a.png")
        picture(tmp_path / "test" / "good" / "b.png")
        with pytest.raises(LabelledDataError, match="only the class good"):
            open_labelled(tmp_path)


class TestNamesOfGood:
    @pytest.mark.parametrize("name", ["good", "Good", "GOOD", "ok", "OK", "Ok", "normal", "Normal", "NORMAL"])
    def test_are_known_in_any_case_in_both_layouts(self, tmp_path, name):
        for place in ("classes", "set/train", "set/test"):
            picture(tmp_path / place / name / "a.png")
            picture(tmp_path / place / "dent" / "a.png")
        for root in (tmp_path / "classes", tmp_path / "set"):
            images = open_labelled(root)
            assert images.good == name
            assert images.defective.tolist() == [kind == "dent" for kind in images.kinds]
        assert open_labelled(tmp_path / "set").for_training.tolist() == [True, True, False, False]

    def test_several_are_one_class(self, tmp_path):
        for name in ("train/OK/a.png", "test/good/a.png", "test/dent/a.png"):
            picture(tmp_path / name)
        images = open_labelled(tmp_path)
        assert images.classes == ["OK", "dent"]
        assert images.ids == ["train/OK/a.png", "test/dent/a.png", "test/good/a.png"]
        assert images.defective.tolist() == [False, True, False]
        assert images.source.read(2).shape == (16, 16, 3)

    def test_several_are_still_one_class_only(self, tmp_path):
        for name in ("ok/a.png", "good/a.png"):
            picture(tmp_path / name)
        with pytest.raises(LabelledDataError, match="only the class good is there"):
            open_labelled(tmp_path)

    def test_the_one_that_is_named_is_alone(self, classes):
        picture(classes / "good" / "a.png")
        images = open_labelled(classes, good="ok")
        assert images.classes == ["ok", "dent", "good", "rust"]


class TestMasks:
    @pytest.fixture
    def pair(self, tmp_path):
        for name in ("train/good/a.png", "test/good/a.png", "test/dent/a.png"):
            picture(tmp_path / name)
        return tmp_path

    def test_a_mask_of_another_shape_names_both_files(self, pair):
        picture(pair / "ground_truth" / "dent" / "a_mask.png", 255, size=(16, 24))
        images = open_labelled(pair)
        with pytest.raises(LabelledDataError, match=r"a_mask\.png: 16 x 24 pixels do not fit the image .*16 x 16"):
            check_masks(images)

    def test_a_mask_without_an_image_is_named(self, pair):
        picture(pair / "ground_truth" / "dent" / "b_mask.png", 255)
        with pytest.raises(LabelledDataError, match=r"b_mask\.png: no image .*; add the image, or take the mask away"):
            check_masks(open_labelled(pair))

    def test_a_scaled_mask_fits(self, pair):
        picture(pair / "ground_truth" / "dent" / "a_mask.png", 255, size=(32, 32))
        images = open_labelled(pair)
        check_masks(images)
        assert images.read_mask(images.ids.index("test/dent/a.png")).shape == (16, 16)

    def test_a_defect_without_a_mask_says_so(self, pair):
        images = open_labelled(pair)
        dent = images.ids.index("test/dent/a.png")
        assert not images.has_mask[dent]
        with pytest.raises(LabelledDataError, match="defective, but without a mask"):
            images.read_mask(dent)
