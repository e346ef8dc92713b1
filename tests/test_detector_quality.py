"""Quality and context: what is chosen where nothing is said, and the same place seen at half the size."""

import numpy as np
import pytest

from anomalib_lite import Detector
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.pixels import halved
from anomalib_lite.images import open_source
from anomalib_lite.images.texture import is_surface, placed_share

SMALL = {"image_size": 64, "dtype": "float32", "workers": 0, "bank_size": 300}


def grain(seed, size=(64, 64)):
    """A surface on which no place is like another."""
    values = np.random.default_rng(seed).normal(150, 20, (size[0] // 4, size[1] // 4))
    return np.clip(np.kron(values, np.ones((4, 4)))[..., None].repeat(3, axis=2), 0, 255).astype(np.uint8)


def part(seed):
    """A square that always lies in the same place."""
    pixels = np.random.default_rng(seed).normal(40, 3, (64, 64))
    pixels[16:48, 16:48] += 120
    return np.clip(pixels[..., None].repeat(3, axis=2), 0, 255).astype(np.uint8)


class TestTexture:
    def test_tells_surfaces_from_parts(self):
        assert placed_share(open_source([part(seed) for seed in range(12)]), workers=0) > 0.8
        assert placed_share(open_source([grain(seed) for seed in range(12)]), workers=0) < 0.1

    def test_light_that_falls_unevenly_is_no_structure(self):
        slope = np.linspace(-30, 30, 64)[None, :, None]
        lit = [np.clip(grain(seed) + slope, 0, 255).astype(np.uint8) for seed in range(12)]
        assert is_surface(open_source(lit), workers=0)

    @pytest.mark.parametrize("images", [[b"broken"] * 6, [np.full((64, 64, 3), 9, np.uint8)] * 6, [grain(0)] * 3])
    def test_what_cannot_be_told_is_taken_for_parts(self, images):
        assert not is_surface(open_source(images), workers=0)


class TestQuality:
    def test_best_looks_at_surfaces_in_their_context(self):
        surface = Detector(quality="best", **SMALL).fit([grain(seed) for seed in range(10)])
        assert surface.embedder.context == 1.5
        assert surface.fitted_.top_share == 0.02
        assert "with a context of 1.5" in surface.seen_as()
        parts = Detector(quality="best", **SMALL).fit([part(seed) for seed in range(10)])
        assert parts.embedder.context == 0
        assert parts.fitted_.top_share == 0.01

    def test_what_is_said_comes_first(self):
        detector = Detector(quality="best", context=0.0, top_share=0.1, **SMALL).fit(
            [grain(seed) for seed in range(10)]
        )
        assert detector.embedder.context == 0
        assert detector.fitted_.top_share == 0.1

    @pytest.mark.parametrize(("quality", "side"), [("fast", 256), ("balanced", 384), ("best", 384)])
    def test_sees_so_many_pixels(self, quality, side):
        parameters = {**SMALL, "image_size": None}
        detector = Detector(quality=quality, **parameters).fit([grain(seed, (400, 400)) for seed in range(3)])
        assert detector.embedder.image_size == (side, side)

    def test_comes_back_from_a_file_and_is_found_anew_at_another_fit(self, tmp_path):
        first = Detector(quality="best", **SMALL).fit([grain(seed) for seed in range(10)])
        again = Detector.load(first.save(tmp_path / "model.safetensors"))
        pictures = [grain(20), 255 - grain(21)]
        assert again.embedder.context == 1.5
        assert np.array_equal(again.score(pictures).scores, first.score(pictures).scores)
        assert again.unfitted().fit([part(seed) for seed in range(10)]).embedder.context == 0

    @pytest.mark.parametrize("wrong", [{"quality": "good"}, {"context": "more"}, {"context": -1}, {"top_share": 0}])
    def test_wrong_values(self, wrong):
        ((name, _),) = wrong.items()
        with pytest.raises(ValueError, match=f"{name}="):
            Detector(**wrong)


class TestContext:
    def test_half_the_size_is_the_mean_of_four(self):
        images = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
        halves = halved(images)
        assert halves.shape == (2, 3, 4, 3)
        assert halves[1, 0, 0, 2] == np.rint(images[1, :2, :2, 2].mean())
        assert halves[0, 1, 3, 0] == np.rint(images[0, 2:4, 6, 0].mean())

    def test_adds_the_coarsest_layer_to_every_patch_and_nothing_to_the_whole(self):
        images = np.stack([grain(seed) for seed in range(2)])
        plain, twice = Embedder(dtype="float32", image_size=64), Embedder(dtype="float32", image_size=64, context=2.0)
        (patches, whole), (more, same) = plain.embed_both(images), twice.embed_both(images)
        assert twice.output_shape == more.shape[1:] == (8, 8, 640)
        assert np.array_equal(more[..., :384], patches)
        assert np.array_equal(same, whole)
        once = Embedder(dtype="float32", image_size=64, context=1.0).embed(images)
        assert more[..., 384:] == pytest.approx(2 * once[..., 384:])

    def test_says_what_a_place_is_part_of(self):
        """What is alike near by and differs farther off."""
        one = np.full((128, 128, 3), 90, np.uint8)
        other = one.copy()
        other[:, :24] = other[:, 104:] = 200
        vectors = Embedder(dtype="float32", image_size=128, context=1.0).embed(np.stack([one, other]))
        change = np.linalg.norm(vectors[0, 8, 8, :384] - vectors[1, 8, 8, :384])
        farther = np.linalg.norm(vectors[0, 8, 8, 384:] - vectors[1, 8, 8, 384:])
        assert farther > 2 * change

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
    def test_in_any_arithmetic(self, dtype):
        pictures = [grain(seed) for seed in range(10)]
        expected = Detector(context=1.5, **SMALL).fit(pictures).score([grain(30), 255 - part(1)]).scores
        parameters = {**SMALL, "dtype": dtype, "engine": "reference" if dtype == "int8" else "auto"}
        detector = Detector(context=1.5, **parameters).fit(pictures)
        assert detector.score([grain(30), 255 - part(1)]).scores == pytest.approx(expected, rel=0.1)

    def test_through_windows(self, monkeypatch):
        from anomalib_lite.images import framing

        monkeypatch.setattr(framing, "_WHOLE_PIXELS", 0)
        monkeypatch.setattr(framing, "_WINDOW", 64)
        detector = Detector(context=1.0, **SMALL).fit([grain(seed, (64, 160)) for seed in range(6)])
        assert detector.embedder.frame.tiled
        assert np.isfinite(detector.score([grain(9, (64, 160))]).scores).all()

    def test_of_a_backbone_of_torchvision(self):
        embedder = Embedder(
            "resnet18", weights="random", layers="layer2,layer3", image_size=64, dtype="float32", context=1
        )
        assert embedder.embed(grain(0)[None]).shape[1:] == embedder.output_shape == (8, 8, 128 + 256 + 256)
