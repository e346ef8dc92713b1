"""Formula images: functions of their seed, varied, and worth looking at."""

import numpy as np
import pytest
import torch

from anomalib_lite.pretraining import fields
from anomalib_lite.pretraining.augmentation import augmented, grained
from anomalib_lite.pretraining.pool import draw_pool
from anomalib_lite.pretraining.scenes import scene, texture

SIDE = 64


def rng(*seed):
    return np.random.default_rng(seed)


class TestFields:
    @pytest.mark.parametrize("family", fields.FAMILIES, ids=lambda family: family.__name__)
    @pytest.mark.parametrize("kind", range(6))
    def test_every_family_is_standardised_and_a_function_of_its_seeds(self, family, kind):
        values = family(rng(kind), rng(1), SIDE)
        assert values.shape == (SIDE, SIDE)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert abs(values.mean()) < 1e-3
        assert 0.99 < values.std() < 1.01
        assert np.array_equal(values, family(rng(kind), rng(1), SIDE))
        assert not np.array_equal(values, family(rng(kind), rng(2), SIDE))

    def test_the_kind_decides_the_spectrum(self):
        """Two draws of a kind have more alike spectra than draws of two kinds."""

        def spectrum(kind, draw):
            return np.log(np.abs(np.fft.rfft2(fields.spectral(rng(kind), rng(draw), SIDE))) ** 2 + 1e-3)

        same = [np.abs(spectrum(k, 1) - spectrum(k, 2)).mean() for k in range(8)]
        other = [np.abs(spectrum(k, 1) - spectrum(k + 1, 2)).mean() for k in range(8)]
        assert np.mean(same) < 0.7 * np.mean(other)

    def test_a_flat_relief_is_lit_evenly_and_a_rough_one_is_not(self):
        flat = fields.lit(np.zeros((SIDE, SIDE), np.float32), rng(0), rng(0))
        rough = fields.lit(fields.spectral(rng(0), rng(0), SIDE), rng(0), rng(0))
        assert np.ptp(flat) < 1e-6
        assert rough.std() > 0.05


class TestScenes:
    def test_is_an_image_and_a_function_of_its_seed(self):
        image = scene(3, SIDE)
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, scene(3, SIDE))
        assert not np.array_equal(image, scene(4, SIDE))

    def test_scenes_differ_and_hardly_any_is_empty(self):
        images = np.stack([scene(seed, SIDE) for seed in range(60)]).astype(float)
        assert np.mean(images.std(axis=(1, 2, 3)) < 4) < 0.1
        assert images.mean(axis=(1, 2, 3)).std() > 25
        colourful = np.ptp(images, axis=3).mean(axis=(1, 2)) > 10
        assert 0.2 < colourful.mean() < 0.8  # grey as often as not

    def test_two_images_of_a_class_are_alike_and_not_equal(self):
        def spectrum(label, seed):
            grey = texture(label, seed, SIDE).astype(float).mean(axis=2)
            power = np.abs(np.fft.fft2((grey - grey.mean()) / (grey.std() + 1))) ** 2
            return np.log(power + 1)

        spectra = np.array([spectrum(label, 100 * label + i).ravel() for label in range(30) for i in range(4)])
        apart = np.abs(spectra[:, None] - spectra).mean(axis=2)
        labels = np.arange(120) // 4
        same, others = labels[:, None] == labels, ~np.eye(120, dtype=bool)
        assert apart[others].min() > 0
        assert apart[same & others].mean() < 0.9 * apart[~same].mean()


class TestPool:
    def test_is_drawn_once_in_the_order_of_seeds(self, tmp_path):
        pool = draw_pool(tmp_path / "pool.npy", scene, 70, 32, first=5, workers=1)
        assert pool.shape == (70, 32, 32, 3)
        assert torch.equal(pool[66], torch.from_numpy(scene(71, 32)))

        def never(seed, side):
            raise AssertionError("drawn again")

        assert torch.equal(draw_pool(tmp_path / "pool.npy", never, 70, 32), pool)

    def test_an_interrupted_pool_is_drawn_anew(self, tmp_path):
        def interrupted(seed, side):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            draw_pool(tmp_path / "pool.npy", interrupted, 2, 32, workers=1)
        assert not (tmp_path / "pool.npy").exists()
        assert len(draw_pool(tmp_path / "pool.npy", scene, 2, 32, workers=1)) == 2

    def test_a_pool_of_another_size_is_named(self, tmp_path):
        draw_pool(tmp_path / "pool.npy", scene, 2, 32, workers=1)
        with pytest.raises(ValueError, match=r"pool\.npy holds images of shape \(2, 32, 32, 3\).*delete it"):
            draw_pool(tmp_path / "pool.npy", scene, 3, 32, workers=1)


class TestAugmentation:
    def batch(self, mix=True, seed=0, side=48):
        images = torch.from_numpy(np.stack([scene(i, SIDE) for i in range(8)]))
        return augmented(images, side, torch.Generator().manual_seed(seed), mix=mix)

    def test_gives_crops_in_range_that_depend_on_the_generator_alone(self):
        crops = self.batch()
        assert crops.shape == (8, 3, 48, 48)
        assert crops.min() >= 0
        assert crops.max() <= 1
        assert torch.equal(crops, self.batch())
        assert not torch.equal(crops, self.batch(seed=1))

    def test_a_plain_image_stays_plain_unless_another_is_mixed_in(self):
        plain = torch.zeros(8, SIDE, SIDE, 3, dtype=torch.uint8)
        plain[:4] = 200
        alone = augmented(plain, 48, torch.Generator().manual_seed(0), mix=False)
        mixed = augmented(plain, 48, torch.Generator().manual_seed(0), mix=True)
        assert alone.std(dim=(2, 3)).max() < 1e-5
        assert mixed.std(dim=(2, 3)).max() > 0.05

    def test_some_crops_become_fainter_and_some_grained(self):
        plain = torch.full((64, 3, 32, 32), 0.5)
        plain[:, :, :, 16:] = 0.7
        given = grained(plain, torch.Generator().manual_seed(0))
        assert torch.equal(given, grained(plain, torch.Generator().manual_seed(0)))
        assert given.min() >= 0
        assert given.max() <= 1
        left, right = given[..., :16], given[..., 16:]
        steps = right.mean(dim=(1, 2, 3)) - left.mean(dim=(1, 2, 3))
        assert 0.2 < (steps < 0.18).float().mean() < 0.5  # a third are fainter than they were
        grain = left.mean(dim=1).std(dim=(1, 2))
        assert 0.3 < (grain > 0.001).float().mean() < 0.7
        assert grain.max() < 0.12
