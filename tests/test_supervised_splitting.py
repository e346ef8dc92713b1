"""Dividing labelled images: stratified, seeded, near-duplicates together, classes too small refused."""

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.fitted.duplicates import NearDuplicate
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.supervised import splitting
from anomalib_lite.supervised.cached import Cached, CachedImages
from anomalib_lite.supervised.labelled import LabelledDataError, LabelledImages, open_labelled
from anomalib_lite.supervised.splitting import Split, Survey, _groups, split, survey, with_defects, without_kind


def made_up(counts, for_training=0):
    """Labelled images that are only names: {"good": 10, ...}; the first `for_training` good ones lie in train."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    ids = [f"{kind}/{i:03d}.png" for i, kind in enumerate(kinds)]
    fixed = np.arange(len(kinds)) < for_training
    return LabelledImages(None, ids, kinds, "good", fixed, [None] * len(ids), [])


def everything(images, duplicates=()):
    return Survey(np.arange(len(images)), list(duplicates), [])


class TestSplit:
    def test_parts_are_disjoint_complete_and_stratified(self):
        images = made_up({"good": 40, "dent": 20, "rust": 10})
        parts = split(images, everything(images))
        assert sorted([*parts.train, *parts.validation, *parts.test]) == list(range(70))
        for kind, total in (("good", 40), ("dent", 20), ("rust", 10)):
            counts = [
                sum(images.kinds[i] == kind for i in part) for part in (parts.train, parts.validation, parts.test)
            ]
            assert counts == [total * 0.4, total * 0.1, total * 0.5]

    def test_a_seed_decides(self):
        images = made_up({"good": 20, "dent": 20})
        first, again, other = (split(images, everything(images), random_state=seed) for seed in (1, 1, 2))
        assert np.array_equal(first.test, again.test)
        assert not np.array_equal(first.test, other.test)

    def test_what_lies_in_train_is_never_tested_on(self):
        images = made_up({"good": 30, "dent": 6}, for_training=20)
        for seed in range(5):
            parts = split(images, everything(images), random_state=seed)
            assert parts.test.min() >= 20
            assert sum(images.kinds[i] == "good" for i in parts.test) == 5

    def test_near_duplicates_go_to_one_side(self):
        images = made_up({"good": 12, "dent": 12}, for_training=3)
        duplicates = [(0, 5), (5, 6), (14, 15), (20, 22)]
        for seed in range(10):
            parts = split(images, everything(images, duplicates), random_state=seed)
            sides = [{int(i) for i in part} for part in (parts.train, parts.validation, parts.test)]
            for together in ({0, 5, 6}, {14, 15}, {20, 22}):
                assert sum(bool(side & together) for side in sides) == 1
            assert not sides[2] & {0, 5, 6}  # one of them lies in train

    @pytest.mark.parametrize("seed", range(5))
    def test_every_chain_of_near_duplicates_is_one_group(self, seed):
        images = made_up({"good": 60, "dent": 60})
        rng = np.random.default_rng(seed)
        surveyed = Survey(np.setdiff1d(np.arange(120), [3, 70]), [], [])  # two that cannot be read
        surveyed.duplicates.extend(tuple(rng.choice(surveyed.readable, 2).tolist()) for _ in range(60))
        together = {i: {i} for i in surveyed.readable.tolist()}
        for i, j in surveyed.duplicates:
            together[i] |= together[j]
            for k in together[i]:
                together[k] = together[i]
        expected = sorted({tuple(sorted(group)) for group in together.values()})
        assert _groups(surveyed) == [list(group) for group in expected]
        parts = split(images, surveyed, random_state=seed)
        for group in expected:
            assert sum(np.isin(group, part).any() for part in (parts.train, parts.validation, parts.test)) == 1

    def test_every_shot_of_a_part_is_on_its_side(self, monkeypatch):
        """Whatever pairs `near_duplicates` finds, in whichever order, are kept together."""
        images = made_up({"good": 24, "dent": 24})
        cache = CachedImages(images)
        shots = [(3 * part + i, 3 * part + j) for part in range(16) for i, j in ((0, 1), (2, 1), (0, 2))]
        found = [NearDuplicate(str(i), str(j), 0.1) for i, j in shots]
        monkeypatch.setattr(splitting, "near_duplicates", lambda X, ids: found)
        monkeypatch.setattr(cache, "embeddings", lambda *a, **k: Cached(np.zeros((48, 2), np.float32), 0.0))
        for seed in range(5):
            parts = split(images, survey(images, cache), random_state=seed)
            learnt, tested = ({int(i) // 3 for i in half} for half in (parts.learning, parts.test))
            assert not learnt & tested
            assert len(learnt | tested) == 16

    def test_unreadable_images_are_in_no_part(self):
        images = made_up({"good": 8, "dent": 8})
        parts = split(images, Survey(np.arange(1, 16), [], []))
        assert sorted([*parts.learning, *parts.test]) == list(range(1, 16))

    def test_a_class_with_one_image_is_named(self):
        images = made_up({"good": 8, "dent": 1})
        with pytest.raises(LabelledDataError, match="class dent has 1 image, and two are needed"):
            split(images, everything(images))

    def test_so_is_one_whose_other_images_cannot_be_read(self):
        images = made_up({"good": 8, "dent": 3})
        with pytest.raises(LabelledDataError, match="class dent has 1 image; 2 more cannot be read"):
            split(images, Survey(np.arange(9), [], []))

    def test_a_class_of_copies_cannot_be_tested(self):
        images = made_up({"good": 8, "dent": 3})
        with pytest.raises(LabelledDataError, match="all images of class dent are near-duplicates"):
            split(images, everything(images, [(8, 9), (9, 10)]))

    def test_without_good_images_to_test_on(self):
        images = made_up({"good": 8, "dent": 4}, for_training=8)
        with pytest.raises(LabelledDataError, match="class good has no image of its own to test on outside train"):
            split(images, everything(images))

    @pytest.mark.parametrize("shares", [{"test": 0.0}, {"test": 1.0}, {"validation": 1.0}])
    def test_shares_out_of_range(self, shares):
        images = made_up({"good": 4, "dent": 4})
        with pytest.raises(ValueError, match="shares of each kind"):
            split(images, everything(images), **shares)

    def test_overlapping_parts_are_refused(self):
        with pytest.raises(ValueError, match="in two parts"):
            Split(np.array([0, 1]), np.array([1]), np.array([2]))


class TestStudies:
    def test_few_labels_are_nested_and_leave_good_images_alone(self):
        images = made_up({"good": 20, "dent": 30})
        whole = split(images, everything(images))
        defective = images.defective
        previous: set[int] = set()
        for count in (2, 5, 10):
            few = with_defects(images, whole, count, random_state=3)
            chosen = {int(i) for i in few.learning if defective[i]}
            assert len(chosen) == count
            assert previous <= chosen
            assert defective[few.train].any()
            assert defective[few.validation].any()
            assert np.array_equal(few.learning[~defective[few.learning]], whole.learning[~defective[whole.learning]])
            assert np.array_equal(few.test, whole.test)
            previous = chosen

    def test_a_kind_left_out_is_still_tested(self):
        images = made_up({"good": 10, "dent": 10, "rust": 10})
        whole = split(images, everything(images))
        parts = without_kind(images, whole, "rust")
        assert {images.kinds[i] for i in parts.learning} == {"good", "dent"}
        assert np.array_equal(parts.test, whole.test)


class TestSurvey:
    def test_finds_copies_and_unreadable_files(self, tmp_path):
        rng = np.random.default_rng(0)
        for kind in ("good", "scratch"):
            (tmp_path / kind).mkdir()
            for number in range(5):
                part = render_part(rng, 64, None if kind == "good" else "scratch")[0]
                Image.fromarray(part).save(tmp_path / kind / f"{number}.png")
        copy = np.asarray(Image.open(tmp_path / "good" / "0.png"))
        Image.fromarray(np.clip(copy.astype(int) + 1, 0, 255).astype(np.uint8)).save(tmp_path / "good" / "again.png")
        (tmp_path / "scratch" / "broken.png").write_bytes(b"not a picture")
        images = open_labelled(tmp_path)
        found = survey(images)
        assert [one.id for one in found.unreadable] == ["scratch/broken.png"]
        assert images.ids.index("scratch/broken.png") not in found.readable
        assert {tuple(images.ids[i] for i in pair) for pair in found.duplicates} == {("good/0.png", "good/again.png")}
