"""The U-Net: shapes, loss, what it learns from masks, saved and loaded, masks that do not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_lite import Segmenter
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.supervised.labelled import LabelledDataError, open_labelled
from anomalib_lite.supervised.segmenter import Segmentation, measure_segmentation
from anomalib_lite.supervised.splitting import split
from anomalib_lite.supervised.unet import UNet, segmentation_loss, smoothed

SMALL = {"image_size": 32, "depth": 2, "width": 8, "dtype": "float32"}


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """Grey noise; defects are bright squares."""
    folder = tmp_path_factory.mktemp("spots") / "plates"
    rng = np.random.default_rng(0)

    def write(path, square=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.normal(100, 10, (40, 40, 3))
        mask = np.zeros((40, 40), bool)
        if square is not None:
            mask[square[0] : square[0] + 10, square[1] : square[1] + 10] = True
            image[mask] += 90
            target = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)

    for number in range(8):
        write(folder / "train" / "good" / f"{number}.png")
        write(folder / "test" / "good" / f"{number}.png")
    for number in range(16):
        write(folder / "test" / "spot" / f"{number:02d}.png", rng.integers(2, 28, 2))
    return open_labelled(folder)


@pytest.fixture(scope="module")
def parts(spots):
    return split(spots)


@pytest.fixture(scope="module")
def fitted(spots, parts):
    return Segmenter(**SMALL, epochs=15).fit(spots, parts)


def held_out(images, parts):
    from anomalib_lite.images.local import FolderSource

    return FolderSource(images.root, [images.ids[i] for i in parts.test])


class TestNetwork:
    @pytest.mark.parametrize(("depth", "width"), [(1, 4), (3, 8), (4, 16)])
    def test_logits_have_the_size_of_the_image(self, depth, width):
        network = UNet(depth=depth, width=width)
        assert network(torch.zeros(2, 3, 32, 48)).shape == (2, 1, 32, 48)
        assert len(network.up) == depth
        assert network.down[-1][0].out_channels == width << depth

    def test_a_frozen_encoder_is_never_trained(self):
        encoder = Embedder(dtype="float32").fresh_network()
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        network = UNet(encoder=encoder, encoder_channels=(128, 256), width=4)
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)
        trained = [p for p in network.parameters() if p.requires_grad]
        assert len(trained) < len(list(network.parameters()))
        network.train()
        torch.optim.SGD(trained, 0.1).zero_grad()
        network(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(p.grad is not None for p in trained)
        assert all(torch.equal(encoder.state_dict()[key], value) for key, value in before.items())

    def test_the_loss_falls_as_the_mask_is_met(self):
        masks = torch.zeros(1, 1, 8, 8)
        masks[..., 2:5, 2:5] = 1
        right, none, wrong = (
            segmentation_loss(10 * sign, masks).item() for sign in (2 * masks - 1, masks * 0 - 1, 1 - 2 * masks)
        )
        assert right < 0.05 < none < wrong

    def test_the_loss_is_defined_without_defects(self):
        empty = torch.zeros(1, 1, 8, 8)
        assert segmentation_loss(empty - 10, empty).item() < 0.1
        assert np.isfinite(segmentation_loss(empty + 10, empty).item())

    @pytest.mark.parametrize("side", [16, 128, 224])
    def test_smoothing_spreads_and_keeps_the_level(self, side):
        level = torch.full((1, 1, side, side), 3.0)
        torch.testing.assert_close(smoothed(level), level)
        point = torch.zeros(1, 1, side, side)
        point[0, 0, side // 2, side // 2] = 1
        spread = smoothed(point)
        assert 0 < spread.max() < 1
        torch.testing.assert_close(spread.sum(), torch.tensor(1.0), rtol=0.2, atol=0)
        if side >= 128:
            offsets = torch.arange(side) - side // 2
            torch.testing.assert_close(
                (spread[0, 0].sum(0) * offsets**2).sum().sqrt().item(), 4 / 224 * side, rtol=0.05, atol=0
            )


class TestLearning:
    def test_outlines_defects(self, spots, parts, fitted):
        found = fitted.predict(held_out(spots, parts))
        outcome = measure_segmentation(found, spots)
        assert outcome.iou > 0.5
        assert outcome.dice == pytest.approx(2 * outcome.iou / (1 + outcome.iou))
        assert outcome.pixels.pixel_auroc > 0.95
        assert found.probability_map(0).shape == found.mask(0).shape == (40, 40)
        defective = np.array([id_.startswith("test/spot") for id_ in found.ids])
        assert found.scores[defective].min() > found.scores[~defective].max()

    def test_with_a_frozen_encoder(self, spots, parts):
        fitted = Segmenter(encoder="builtin", image_size=64, width=8, epochs=12, dtype="float32").fit(spots, parts)
        outcome = measure_segmentation(fitted.predict(held_out(spots, parts)), spots)
        assert outcome.pixels.pixel_auroc > 0.9

    def test_defects_without_a_mask_are_left_out_and_named(self, spots, parts, tmp_path):
        import shutil

        folder = shutil.copytree(spots.root, tmp_path / "plates")
        lost = [id_ for i, id_ in enumerate(spots.ids) if i in parts.learning and "spot" in id_][:2]
        for id_ in lost:
            (folder / "ground_truth" / "spot" / f"{id_[-6:-4]}_mask.png").unlink()
        fitted = Segmenter(**SMALL, epochs=1).fit(open_labelled(folder), parts)
        assert fitted.left_out_ == lost

    def test_unreadable_images_are_listed(self, spots, fitted, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"no picture")
        found = fitted.predict([spots.root / spots.ids[0], tmp_path / "bad.png"])
        assert len(found) == 1
        assert [one.index for one in found.unreadable] == [1]


class TestSaving:
    @pytest.mark.parametrize(
        "options", [SMALL, {"encoder": "builtin", "image_size": 64, "width": 4, "dtype": "float32"}]
    )
    def test_a_saved_segmenter_predicts_the_same(self, spots, parts, tmp_path, options):
        fitted = Segmenter(**options, epochs=1).fit(spots, parts)
        again = Segmenter.load(fitted.save(tmp_path / "s.safetensors"), dtype="float32")
        first, second = (one.predict(held_out(spots, parts)).maps for one in (fitted, again))
        assert np.array_equal(first, second)
        assert first.std() > 0


class TestErrors:
    def test_no_masks_at_all(self, tmp_path, spots):
        import shutil

        folder = shutil.copytree(spots.root, tmp_path / "plates")
        shutil.rmtree(folder / "ground_truth")
        with pytest.raises(LabelledDataError, match="no training image has a mask"):
            Segmenter(**SMALL).fit(folder)

    def test_a_mask_that_does_not_fit_stops_it_before_training(self, tmp_path, spots):
        import shutil

        folder = shutil.copytree(spots.root, tmp_path / "plates")
        Image.fromarray(np.zeros((10, 40), np.uint8)).save(folder / "ground_truth" / "spot" / "03_mask.png")
        with pytest.raises(LabelledDataError, match=r"03_mask\.png: 10 x 40 pixels do not fit"):
            Segmenter(**SMALL).fit(folder)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"depth": 4, "image_size": 40}, "image_size=40: the network halves it; give a multiple of 16"),
            ({"depth": 0}, "depth=0"),
            ({"encoder": "builtin", "image_size": 100}, "multiple of 32"),
        ],
    )
    def test_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            Segmenter(**options)

    def test_before_fit(self):
        with pytest.raises(RuntimeError, match="not fitted yet"):
            Segmenter().predict(np.zeros((8, 8, 3), np.uint8))


def test_undefined_figures_are_none(spots):
    good = spots.ids.index("test/good/0.png")
    nothing = Segmentation([spots.ids[good]], np.zeros((1, 8, 8), np.float32), [(40, 40)], [])
    outcome = measure_segmentation(nothing, spots)
    assert (outcome.iou, outcome.dice, outcome.pixels.pixel_auroc) == (None, None, None)
