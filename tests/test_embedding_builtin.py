"""The built-in network: ships with the package, sees what inspection needs, is small, and keeps to its word."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anomalib_lite import Detector
from anomalib_lite.embedding.builtin import GENERATIONS, SHIPPED, build_builtin
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.network import CHANNELS, DEPTHS, WIDTHS, layout_of
from anomalib_lite.embedding.weights import WeightsError, fingerprint
from anomalib_lite.images.synthetic import render_part


def part(seed, defect=None, size=128):
    return render_part(np.random.default_rng(seed), size, defect)[0]


@pytest.fixture(scope="module")
def embedder():
    return Embedder(image_size=128, dtype="float32", device="cpu")


def similarity(a, b):
    """Mean cosine of patches about their common mean: 1 for the same picture."""
    a, b = (rows.reshape(-1, rows.shape[-1]) for rows in (a, b))
    mean = np.concatenate([a, b]).mean(axis=0)
    a, b = a - mean, b - mean
    return float(np.mean((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


class TestWeights:
    def test_ship_with_the_package_and_are_small(self):
        assert SHIPPED.stat().st_size < 8_000_000
        assert {tensor.dtype for tensor in load_file(SHIPPED).values()} == {torch.float16}
        assert all(torch.isfinite(tensor).all() for tensor in load_file(SHIPPED).values())

    def test_of_the_same_shape_may_replace_them(self, tmp_path):
        from safetensors.torch import save_file

        save_file({key: 0 * value for key, value in load_file(SHIPPED).items()}, tmp_path / "zero.safetensors")
        own = Embedder(image_size=64, weights=tmp_path / "zero.safetensors")
        assert not own.embed(part(0, size=64)[None]).any()
        assert own.fingerprint != Embedder(image_size=64).fingerprint

    def test_of_another_network_are_refused(self, tmp_path):
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=r"other\.pth lacks \d+ of \d+ parameters that builtin needs"):
            Embedder(weights=tmp_path / "other.pth")

    def test_layers_cannot_be_chosen(self):
        with pytest.raises(ValueError, match="the built-in backbone has its own layers"):
            Embedder(layers=["layer2"])


class TestGenerations:
    @pytest.mark.parametrize("known", GENERATIONS)
    def test_a_file_is_what_it_is_known_by(self, known):
        assert fingerprint(build_builtin(GENERATIONS[known])) == known
        assert fingerprint(build_builtin()) != known
        assert SHIPPED.stat().st_size < 8_000_000

    def test_a_model_of_the_first_opens_with_its_weights(self, tmp_path):
        parts = [part(i, size=64) for i in range(24)]
        before = Detector(weights="first", image_size=64, dtype="float32").fit(parts[:20])
        opened = Detector.load(before.save(tmp_path / "model.safetensors"))
        assert opened.embedder.network.widths == (64, 96, 192)
        assert np.allclose(opened.score(parts[20:]).scores, before.score(parts[20:]).scores, rtol=1e-5)

    def test_a_network_of_any_width_is_laid_out_by_its_weights(self):
        (first,) = GENERATIONS.values()
        assert layout_of(load_file(SHIPPED)) == {"widths": (64, 112, 224), "depths": (0, 2, 2)}
        assert layout_of(load_file(first)) == {"widths": (64, 96, 192), "depths": (0, 2, 2)}
        assert layout_of({}) == {"widths": WIDTHS, "depths": DEPTHS}


class TestNetwork:
    def test_maps_are_at_strides_8_and_16(self):
        with torch.inference_mode():
            maps = build_builtin()(torch.zeros(2, 3, 96, 64))
        assert [tuple(level.shape) for level in maps] == [(2, CHANNELS[0], 12, 8), (2, CHANNELS[1], 6, 4)]

    def test_no_channel_is_dead(self, embedder):
        rows = embedder.embed(np.stack([part(i) for i in range(4)]))
        assert rows.reshape(-1, rows.shape[-1]).std(axis=0).min() > 1e-3

    def test_bf16_describes_the_same(self, embedder):
        short = Embedder(image_size=128, dtype="bfloat16", device="cpu")
        images = np.stack([part(i) for i in range(2)])
        exact, rounded = embedder.embed(images), short.embed(images)
        assert similarity(exact, rounded) > 0.99

    @pytest.mark.parametrize("defect", ["scratch", "bent", "color"])
    def test_a_defect_changes_its_place_most(self, embedder, defect):
        """The same part with and without a defect: patches on the defect move further than the others."""
        image, mask = render_part(np.random.default_rng(5), 128, defect)
        clean = part(5)
        moved = np.linalg.norm(embedder.embed(image[None]) - embedder.embed(clean[None]), axis=-1)[0]
        on = mask.reshape(16, 8, 16, 8).any(axis=(1, 3))
        assert moved[on].mean() > 2 * moved[~on].mean()

    @pytest.mark.parametrize(
        ("change", "least"),
        [
            (lambda image: np.clip(image * 1.2, 0, 255), 0.8),
            (lambda image: image * 0.8, 0.8),
            (lambda image: np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2), 0.5),
        ],
        ids=["brighter", "darker", "grey"],
    )
    def test_light_matters_less_than_what_is_seen(self, embedder, change, least):
        image = part(3)
        same = similarity(embedder.embed(image[None]), embedder.embed(change(image).astype(np.uint8)[None]))
        other = similarity(embedder.embed(image[None]), embedder.embed(part(11)[None]))
        assert same > least
        assert same > other
