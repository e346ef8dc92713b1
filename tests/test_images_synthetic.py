"""The drawn set: the layout is right, a seed decides everything, and masks lie where the defects are."""

import numpy as np
import pytest

from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.synthetic import make_metal_nut, render_part

DEFECTS = ["scratch", "bent", "color", "flip"]


def rendered(seed, defect=None, size=96):
    return render_part(np.random.default_rng(seed), size, defect)


def test_the_set_has_the_layout_of_mvtec(synthetic_set):
    dataset = open_mvtec(synthetic_set)
    assert len(dataset.train) == 16
    assert {kind: dataset.kinds.count(kind) for kind in dataset.kinds} == {
        "good": 6,
        **dict.fromkeys(DEFECTS, 3),
    }
    assert dataset.pairing_problems == []
    assert dataset.train.read(0).shape == (128, 128, 3)
    for i in np.flatnonzero(dataset.labels):
        assert dataset.read_mask(i).any(), dataset.test.ids[i]


def test_a_seed_decides_every_image_whatever_the_size_of_the_set(tmp_path):
    large = make_metal_nut(tmp_path / "a", n_train=3, n_good=1, n_defect=2, size=48)
    small = make_metal_nut(tmp_path / "b", n_train=2, n_good=1, n_defect=1, size=48)
    other = make_metal_nut(tmp_path / "c", n_train=2, n_good=1, n_defect=1, size=48, random_state=1)
    for path in small.rglob("*.png"):
        name = path.relative_to(small)
        assert path.read_bytes() == (large / name).read_bytes()
        assert path.read_bytes() != (other / name).read_bytes()
    assert (large / "train/good/000.png").read_bytes() != (large / "test/good/000.png").read_bytes()


def test_two_sets_do_not_mix(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="not empty; give a new folder"):
        make_metal_nut(tmp_path)


def test_good_parts_differ_and_have_no_mask():
    images = [rendered(seed)[0] for seed in range(6)]
    assert all(not rendered(seed)[1].any() for seed in range(3))
    for image in images[1:]:
        assert np.abs(image.astype(int) - images[0]).mean() > 3


@pytest.mark.parametrize("defect", ["scratch", "bent", "color"])
def test_a_defect_changes_the_part_where_its_mask_is(defect):
    contrasts = []
    for seed in range(20):
        good, _ = rendered(seed)
        bad, mask = rendered(seed, defect)
        assert mask.any()
        assert mask.mean() < 0.25
        change = np.abs(bad.astype(int) - good).mean(axis=2)
        contrasts.append(change[mask].mean())
        assert change[mask].mean() > 2 * change[~mask].mean()
    assert max(contrasts) > 2 * min(contrasts)  # from easy to hard


def test_a_flipped_part_is_no_rotation_of_a_good_one():
    """Which way the lobes lean is the same at any angle, and the other way in the mirror."""
    assert all(lean(rendered(seed)[0]) < -0.3 for seed in range(12))
    assert all(lean(rendered(seed, "flip")[0]) > 0.3 for seed in range(12))


def test_the_mask_of_a_flipped_part_is_the_part():
    image, mask = rendered(0, "flip")
    brightness = image.mean(axis=2)
    assert brightness[mask].mean() > 2 * brightness[~mask].mean()
    assert 0.2 < mask.mean() < 0.5


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_seed_yields_a_mask(defect):
    assert all(rendered(seed, defect, size=64)[1].any() for seed in range(40))


def test_an_unknown_defect_is_named():
    with pytest.raises(ValueError, match="defect='dent': give one of scratch, bent, color, flip"):
        rendered(0, "dent")


def lean(image):
    """Return the turn from the middle of the lobes' roots to that of their tips, as a phase of four lobes."""
    metal = image.mean(axis=2) > 45
    y, x = np.nonzero(metal)
    y, x = y - (y.min() + y.max()) / 2, x - (x.min() + x.max()) / 2
    radius = np.hypot(x, y) / (0.4 * len(image))
    lobes = np.exp(4j * np.arctan2(y, x))
    roots, tips = (lobes[(low < radius) & (radius < low + 0.1)].sum() for low in (0.72, 0.88))
    return np.angle(tips * np.conj(roots))
