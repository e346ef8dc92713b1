"""Several pictures of one part: found whatever their number, and not seen where there are none."""

import functools

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import embed_whole
from anomalib_lite.fitted.duplicates import describe_groups, duplicate_groups, has_twin, near_duplicates, too_many_twins
from anomalib_lite.images.sources import open_source
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.supervised.labelled import open_labelled
from anomalib_lite.supervised.splitting import split


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 30)).astype(np.float32)


def shot(part, rng):
    """Another picture of a part that lies still under a fixed camera: sensor noise, light, a pixel of play."""
    moved = ndimage.shift(part.astype(float), (*rng.uniform(-1, 1, size=2), 0), order=1, mode="nearest")
    noisy = moved * rng.uniform(0.98, 1.02) + rng.normal(0, 2, size=part.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


@functools.cache
def part(number):
    """A part with marks of its own; drawn nuts differ by angle and grain alone, some by little."""
    rng = np.random.default_rng(number)
    picture = Image.fromarray(render_part(rng, 256)[0])
    draw = ImageDraw.Draw(picture)
    for _ in range(10):
        start = rng.uniform(40, 216, 2)
        draw.line([*start, *(start + rng.uniform(-30, 30, 2))], fill=(int(rng.integers(0, 256)),) * 3, width=4)
    return np.asarray(picture)


def photographed(shots):
    """`shots[i]` pictures of part i, one part after the other."""
    rng = np.random.default_rng(1)
    return [shot(part(i), rng) for i, count in enumerate(shots) for _ in range(count)]


@pytest.fixture(scope="module")
def embedder():
    return Embedder(level="global", dtype="float32")


def vectors(embedder, images):
    return embed_whole(embedder, open_source(images))[0]


class TestDuplicateGroups:
    @pytest.mark.parametrize("shots", [[5] * 8, [2] * 20, [10] * 4, [5] * 6 + [1] * 6], ids=str)
    def test_shots_of_one_part_are_one_group(self, embedder, shots):
        groups = duplicate_groups(vectors(embedder, photographed(shots)))
        np.testing.assert_array_equal(groups, np.repeat(np.arange(len(shots)), shots))
        assert too_many_twins(groups)

    @pytest.mark.parametrize("count", [12, 30, 80])
    def test_parts_taken_once_stand_alone(self, embedder, count):
        assert not has_twin(duplicate_groups(vectors(embedder, photographed([1] * count)))).any()

    def test_one_pair_among_many_is_found_and_tolerated(self, embedder):
        groups = duplicate_groups(vectors(embedder, photographed([1] * 29 + [2])))
        np.testing.assert_array_equal(np.flatnonzero(has_twin(groups)), [29, 30])
        assert not too_many_twins(groups)

    def test_parts_that_are_alike_stay_two(self):
        parts = rows(10)
        parts[1] = parts[0] + 0.2
        shots = np.repeat(parts, 3, axis=0) + 0.02 * rows(30, seed=1)
        np.testing.assert_array_equal(duplicate_groups(shots), np.repeat(np.arange(10), 3))

    def test_products_are_not_shots(self):
        centres = np.repeat(20 * rows(4), 40, axis=0)
        assert not too_many_twins(duplicate_groups(centres + rows(160, seed=1)))

    def test_copies_are_found_however_many(self):
        copies = np.repeat(rows(2), [50, 3], axis=0)
        np.testing.assert_array_equal(duplicate_groups(copies), np.repeat([0, 1], [50, 3]))
        assert duplicate_groups(copies[:9]).tolist() == [0] * 9

    def test_one_and_two_images_have_nothing_to_compare_with(self):
        assert duplicate_groups(rows(1)).tolist() == [0]
        assert duplicate_groups(rows(2)).tolist() == [0, 1]

    def test_does_not_depend_on_the_order(self):
        shots = np.repeat(rows(8), 4, axis=0) + 0.05 * rows(32, seed=1)
        order = np.random.default_rng(2).permutation(32)
        found = duplicate_groups(shots[order])
        assert len(np.unique(found)) == 8
        for part in range(8):
            assert len(np.unique(found[order // 4 == part])) == 1

    def test_many_images_are_a_matter_of_seconds(self):
        shots = np.vstack([rows(3000), rows(2)])
        np.testing.assert_array_equal(np.flatnonzero(has_twin(duplicate_groups(shots))), [0, 1, 3000, 3001])

    @pytest.mark.parametrize(
        ("groups", "words"),
        [
            ([0, 1, 2], ""),
            ([0, 1, 0], "1 part seems to have been photographed 2 times"),
            ([0, 0, 1, 1, 2], "2 parts seem to have been photographed 2 times each"),
            ([0, 0, 1, 1, 1], "2 parts seem to have been photographed 2 to 3 times each"),
        ],
    )
    def test_is_said_in_words(self, groups, words):
        assert describe_groups(np.array(groups)) == words


class TestNearDuplicates:
    def test_finds_the_pair_and_nothing_else(self):
        (pair,) = near_duplicates(np.vstack([rows(40), rows(40)[7] + 1e-3]), [f"i{i}" for i in range(41)])
        assert (pair.first, pair.second) == ("i7", "i40")
        assert pair.distance < 0.05

    def test_finds_exact_copies_however_many(self):
        found = near_duplicates(np.vstack([rows(20), rows(20)[[3, 3, 5]]]), [str(i) for i in range(23)])
        assert {(pair.first, pair.second) for pair in found} == {("3", "20"), ("3", "21"), ("5", "22")}

    def test_finds_test_images_that_were_trained_on(self):
        new = np.vstack([rows(5, seed=1), rows(40)[9:10]])
        (pair,) = near_duplicates(rows(40), [f"t{i}" for i in range(40)], new, [f"n{i}" for i in range(6)])
        assert (pair.first, pair.second) == ("t9", "n5")

    def test_pairs_within_test_images_or_within_training_do_not_count_between_them(self):
        training, new = rows(20)[[*range(20), 3]], rows(5, seed=1)[[*range(5), 2]]
        assert near_duplicates(training, [str(i) for i in range(21)], new, [f"n{i}" for i in range(6)]) == []

    def test_hold_every_part_together(self, embedder):
        found = near_duplicates(vectors(embedder, photographed([5] * 8)), [str(i) for i in range(40)])
        assert {(int(pair.first), int(pair.second)) for pair in found} == {(i - i % 5, i) for i in range(40) if i % 5}
        assert [pair.distance for pair in found] == sorted(pair.distance for pair in found)


def test_a_split_keeps_all_shots_of_a_part_on_one_side(tmp_path):
    for i, image in enumerate(photographed([4] * 16)):
        kind = "good" if i < 32 else "dent"
        (tmp_path / kind).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / kind / f"{i:02d}.png")
    images = open_labelled(tmp_path)
    parts = split(images)
    part_of = [int(name[-6:-4]) // 4 for name in images.ids]
    sides = [{part_of[i] for i in side.tolist()} for side in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metal_nut", "bottle", "elpv_poly", "magnetic_tile", "kolektor"])
def test_real_sets_are_not_taken_for_shots(real_data, name):
    source = open_source(real_data / name / "train" / "good")
    groups = duplicate_groups(embed_whole(Embedder(level="global"), source)[0])
    assert not too_many_twins(groups)
    if name == "metal_nut":
        found = [source.ids[i] for i in np.flatnonzero(has_twin(groups))]
        assert [name.removesuffix(".png")[-3:] for name in found] == ["140", "166"]
