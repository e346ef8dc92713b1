"""Changed copies: image and mask move together, nothing changes when all is zero, sizes of changes as promised."""

import pytest
import torch

from anomalib_lite.supervised.augmentation import Augmentation

NONE = {"rotation": 0, "shear": 0, "shift": 0, "zoom": 0, "brightness": 0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spot(row, column, side=33, n=1):
    images = torch.zeros(n, 3, side, side)
    images[:, :, row - 2 : row + 3, column - 2 : column + 3] = 1
    return images


def middle(images):
    """Centre of mass (n, 2), rows and columns, in pixels."""
    mass = images.mean(dim=1)
    mass = mass / mass.sum(dim=(1, 2), keepdim=True)
    places = torch.arange(images.shape[-1]).float()
    return torch.stack([(mass.sum(2) * places).sum(1), (mass.sum(1) * places).sum(1)], dim=1)


def test_no_change_is_no_change():
    images = torch.rand(3, 3, 24, 20, generator=seeded())
    changed, masks = Augmentation(**NONE)(images, seeded())
    assert torch.allclose(changed, images, atol=1e-5)
    assert masks is None


def test_a_seed_decides_and_every_image_draws_its_own():
    images = spot(10, 16, n=2)
    first, again = (Augmentation()(images, seeded(1))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, Augmentation()(images, seeded(2))[0])


def test_masks_move_with_their_images():
    images = spot(8, 20, n=16)
    augmentation = Augmentation(rotation=90, shear=10, shift=0.1, zoom=0.2, brightness=0, horizontal_flip=True)
    changed, masks = augmentation(images, seeded(), images[:, :1].clone())
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert (middle(changed) - middle(masks)).abs().max() < 0.6
    assert middle(changed).std(dim=0).min() > 1  # they did move


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shift_is_at_most_the_share_of_the_side(axis):
    images = spot(16, 16, n=200)
    changed, _ = Augmentation(**{**NONE, "shift": 0.1})(images, seeded())
    moved = (middle(changed)[:, axis] - 16).abs()
    assert 2.5 < moved.max() < 0.1 * 33 + 0.1


def test_a_rotation_is_about_the_middle_and_at_most_the_angle():
    images = spot(16, 22, n=200)  # 6 to the right of the middle, where no mirrored border reaches
    changed, _ = Augmentation(**{**NONE, "rotation": 45})(images, seeded())
    at = middle(changed) - 16
    assert (at.norm(dim=1) - 6).abs().max() < 0.1
    angles = torch.rad2deg(torch.atan2(at[:, 0], at[:, 1]))
    assert angles.min() < -35
    assert angles.max() > 35
    assert angles.abs().max() < 46


def test_a_rotation_keeps_its_shape_where_images_are_not_square():
    images = torch.zeros(50, 3, 32, 64)
    images[:, :, 14:18, 42:46] = 1  # 12 to the right of the middle
    changed, _ = Augmentation(**{**NONE, "rotation": 15})(images, seeded())
    mass = changed.mean(dim=1)
    mass = mass / mass.sum(dim=(1, 2), keepdim=True)
    rows, columns = (mass.sum(2) * torch.arange(32.0)).sum(1), (mass.sum(1) * torch.arange(64.0)).sum(1)
    assert ((rows - 15.5).hypot(columns - 31.5) - 12).abs().max() < 0.3


def test_mirroring_is_off_unless_asked_for():
    images = spot(16, 26, n=100)
    assert (middle(Augmentation(**NONE)(images, seeded())[0])[:, 1] > 16).all()
    mirrored = middle(Augmentation(**NONE, horizontal_flip=True)(images, seeded())[0])[:, 1] < 16
    assert 0.3 < mirrored.float().mean() < 0.7


def test_brightness_scales_and_stays_in_range():
    images = torch.full((100, 3, 8, 8), 0.5)
    changed, _ = Augmentation(**{**NONE, "brightness": 0.2})(images, seeded())
    values = changed[:, 0, 0, 0]
    assert values.min() == pytest.approx(0.4, abs=0.01)
    assert values.max() == pytest.approx(0.6, abs=0.01)
    assert Augmentation(brightness=0.5)(torch.ones(9, 3, 8, 8), seeded())[0].max() <= 1


@pytest.mark.parametrize("wrong", [{"rotation": -1}, {"rotation": 360}, {"shift": 1.0}, {"brightness": 1}])
def test_changes_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Augmentation(**wrong)
