import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalib_lite.embedding.backbones import BACKBONES, build
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.weights import StoredWeights

NAME, LAYERS = "squeezenet1_1", ("features.4", "features.7")  # small and fast


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, size=(5, 8, 8, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2) // 2 + rng.integers(0, 99, size=(5, 64, 64, 3)).astype(np.uint8)


def embedder(level="patch", *, name=NAME, layers=LAYERS, dtype="float32", image_size=64, **options):
    return Embedder(
        name, layers=layers, level=level, weights="random", image_size=image_size, dtype=dtype, device="cpu", **options
    )


def by_hand(images, layers=LAYERS):
    """The named layers of images standardised as ImageNet's networks expect."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        return build(NAME, layers, "random")((pixels - mean[:, None, None]) / std[:, None, None])


class TestPatches:
    def test_are_local_averages_on_one_grid(self, images):
        fine, coarse = by_hand(images, ("features.7", "features.12"))
        side = fine.shape[-1]
        assert side <= 64 // 8
        assert coarse.shape[-1] < side
        fine, coarse = (F.avg_pool2d(level, 3, stride=1, padding=1) for level in (fine, coarse))
        coarse = F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
        expected = torch.cat([fine, coarse], dim=1).permute(0, 2, 3, 1).numpy()
        embedding = embedder(layers=("features.7", "features.12")).embed(images)
        assert embedding.dtype == np.float32
        assert embedding == pytest.approx(expected, rel=1e-3, abs=1e-4 * float(expected.max()))

    @pytest.mark.parametrize("size", [64, 100])
    def test_grid_is_no_finer_than_one_patch_per_8_pixels(self, size):
        # Stride 4, 8 and 16: the first would give a grid four times as large.
        layers = tuple(BACKBONES[NAME].layers)
        embedding = embedder(layers=layers, image_size=size).embed(np.zeros((1, size, size, 3), np.uint8))
        channels = sum(layer.channels for layer in BACKBONES[NAME].layers.values())
        assert embedding.shape == (1, size // 8, size // 8, channels)

    def test_finer_layers_are_averaged_into_the_grid(self, images):
        (fine,) = by_hand(images, ("features.4",))
        expected = F.adaptive_avg_pool2d(F.avg_pool2d(fine, 3, stride=1, padding=1), 8).permute(0, 2, 3, 1)
        embedding = embedder(layers="features.4").embed(images)
        assert embedding == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4 * float(expected.max()))

    def test_lie_where_their_pixels_are(self, images):
        changed = images[:1].copy()
        changed[0, 48:, 48:] = 255 - changed[0, 48:, 48:]  # the lower right corner
        difference = np.abs(
            np.diff(embedder(layers="features.4").embed(np.concatenate([images[:1], changed])), axis=0)
        )[0].sum(axis=2)
        row, column = np.unravel_index(difference.argmax(), difference.shape)
        assert min(row, column) >= 5
        assert difference[:3, :3].max() == 0


def test_global_is_mean_and_deviation_of_each_layer(images):
    expected = torch.cat(
        [part for out in by_hand(images) for part in (out.mean(dim=(2, 3)), out.std(dim=(2, 3), correction=0))], dim=1
    ).numpy()
    embedding = embedder("global").embed(images)
    assert embedding.shape == (5, 2 * (128 + 256))
    assert embedding == pytest.approx(expected, rel=1e-3, abs=1e-4 * float(expected.max()))


def test_penultimate_is_one_vector_of_the_classifier_input(images):
    embedding = embedder("global", name="mobilenet_v2", layers="penultimate").embed(images[:2])
    assert embedding.shape == (2, 1280)
    with pytest.raises(ValueError, match="one vector per image; use level='global'"):
        embedder("patch", name="mobilenet_v2", layers="penultimate")


@pytest.mark.parametrize("name", [NAME, "builtin"])
@pytest.mark.parametrize("level", ["patch", "global"])
def test_batches_do_not_change_embeddings(images, name, level):
    made = Embedder(level=level, image_size=64) if name == "builtin" else embedder(level)
    together = made.embed(images)
    alone = np.concatenate([made.embed(images[i : i + 1]) for i in range(5)])
    assert alone == pytest.approx(together, rel=1e-4, abs=1e-5 * float(np.abs(together).max()))
    assert made.embed(images[:3]) == pytest.approx(together[:3], rel=1e-4, abs=1e-5 * float(np.abs(together).max()))
    assert np.abs(np.diff(together, axis=0)).max() > 1e-2  # images differ


@pytest.mark.parametrize("level", ["patch", "global"])
def test_bf16_is_close_to_float32(images, level):
    exact, short = embedder(level).embed(images), embedder(level, dtype="bfloat16").embed(images)
    assert short.dtype == np.float32
    assert not np.array_equal(exact, short)
    assert np.corrcoef(exact.ravel(), short.ravel())[0, 1] > 0.99


class TestDescription:
    def test_is_enough_to_build_the_same(self, images):
        first = embedder()
        described = first.describe()
        assert described["layers"] == list(LAYERS)
        again = Embedder(
            described["backbone"],
            layers=described["layers"],
            level=described["level"],
            image_size=described["frame"]["size"],
            weights="random",
            dtype="float32",
            device="cpu",
        )
        assert again.describe() == described
        assert np.array_equal(again.embed(images), first.embed(images))

    def test_stored_parameters_give_the_same_embeddings(self, images):
        first = embedder(name="resnet18", layers="layer2")  # batch norms are folded before storing
        stored = StoredWeights({key: torch.from_numpy(value) for key, value in first.parameters().items()})
        again = Embedder("resnet18", layers="layer2", weights=stored, image_size=64, dtype="float32", device="cpu")
        assert again.fingerprint == first.fingerprint
        assert np.array_equal(again.embed(images), first.embed(images))

    def test_fingerprint_is_that_of_the_weights_not_of_their_precision(self):
        assert embedder(dtype="bfloat16").fingerprint == embedder().fingerprint
        assert embedder(layers=LAYERS[:1]).fingerprint != embedder().fingerprint

    def test_defaults(self):
        made = Embedder("resnet18", weights="random")
        assert (made.layers, made.image_size, made.level) == (("layer2", "layer3"), (256, 256), "patch")
        assert embedder(layers="features.4, features.7").layers == LAYERS


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"level": "pixel"}, "level='pixel'; choose 'patch' or 'global'"),
            ({"image_size": 16}, "image_size=16; networks take a whole number of pixels, 32 to 2048"),
            ({"dtype": "float16"}, "dtype='float16'; choose 'auto', 'float32' or 'bfloat16'"),
            ({"engine": "tensorrt"}, "engine='tensorrt'; choose 'auto', 'onednn', 'reference'"),
            ({"backbone": "resnet19"}, "no backbone 'resnet19'; did you mean resnet18"),
            ({"weights": "imagenet"}, "built-in backbone has its own weights; leave weights out"),
            ({"layers": "layer2"}, "built-in backbone has its own layers; leave them out"),
        ],
    )
    def test_wrong_values_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            Embedder(**options)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
    def test_cuda_without_cuda(self):
        with pytest.raises(ValueError, match="torch sees no CUDA device here; use device='cpu'"):
            Embedder(device="cuda")
