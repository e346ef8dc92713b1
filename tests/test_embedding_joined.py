"""Several networks as one backbone: each has its say, a model file brings them back, and what does not fit is named."""

import numpy as np
import pytest
import torch

from anomalib_lite import Classifier, Detector, Segmenter
from anomalib_lite.comparison.methods import Settings, read_method
from anomalib_lite.embedding.builtin import FIRST, GENERATIONS, build_builtin
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.joined import Joined, joint_fingerprint, weights_among, weights_of
from anomalib_lite.embedding.weights import CACHED, IMAGENET, WeightsError, fingerprint
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images.synthetic import render_part

BOTH = "builtin+mobilenet_v2"


def parts(n, first=0, defect=None, size=96):
    return [render_part(np.random.default_rng(first + i), size, defect)[0] for i in range(n)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of MobileNetV2 as torchvision would give them, but drawn."""
    torch.manual_seed(5)
    from torchvision.models import mobilenet_v2

    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(mobilenet_v2().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def detector(file):
    return Detector(backbone=BOTH, weights=file.parent, image_size=64, bank_size=300, workers=0).fit(parts(12))


class TestLayers:
    @pytest.fixture(scope="class")
    def embedders(self, file):
        given = {"image_size": 64, "dtype": "float32", "device": "cpu"}
        alone = [Embedder(**given), Embedder("mobilenet_v2", weights=file, **given)]
        return Embedder(BOTH, weights={"mobilenet_v2": file}, **given), *alone

    def test_stand_side_by_side_in_the_unit_of_the_built_in_network(self, embedders):
        both, own, other = (embedder.features(np.stack(parts(2, size=64))).layers for embedder in embedders)
        assert len(both) == 4
        assert torch.equal(both[0], own[0])
        assert torch.equal(both[1], own[1])
        for joined, alone, spread in zip(both[2:], other, (4.16, 5.66), strict=True):
            torch.testing.assert_close(joined, alone * 4 / spread)

    def test_make_patches_of_all_channels(self, embedders):
        both, own, other = embedders
        rows, columns, channels = both.output_shape
        assert (rows, columns) == own.output_shape[:2]
        assert channels == own.output_shape[2] + other.output_shape[2]
        assert both.embed(parts(1, size=64)[0][None]).shape == (1, rows, columns, channels)
        whole = both.at_level("global")
        assert whole.embed(parts(1, size=64)[0][None]).shape == (1, *whole.output_shape) == (1, 2 * channels)

    def test_spread_as_far_as_those_of_the_built_in_network(self):
        """Which is what the unit is for: on drawn images the built-in network's layers spread by 4, or nearly."""
        from anomalib_lite.embedding.pixels import standardised
        from anomalib_lite.pretraining.scenes import scene

        images = torch.from_numpy(np.stack([scene(10_000_000 + i, 160) for i in range(12)]))
        with torch.inference_mode():
            layers = build_builtin()(standardised(images.permute(0, 3, 1, 2).float() / 255))
        assert all(3 < layer.var(dim=(0, 2, 3)).sum().sqrt() < 5 for layer in layers)


class TestDetector:
    def test_finds_what_is_unlike(self, detector):
        assert detector.embedder.weight_count > 2.6e6  # of the built-in network alone
        good, scratched = (detector.score(parts(6, 900, defect)).scores for defect in (None, "scratch"))
        assert np.median(scratched) > np.median(good)

    def test_sees_pictures_as_large_as_they_are(self, file):
        seen = Detector(backbone=BOTH, weights=file.parent, bank_size=300, workers=0).fit(parts(8, size=160))
        assert seen.seen_as().startswith("seen at 160 × 160 pixels")

    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    def test_comes_back_from_a_file_that_holds_all_networks(self, dtype, file, tmp_path):
        chosen = {"image_size": 64, "bank_size": 300, "dtype": dtype, "workers": 0}
        fitted = Detector(backbone=BOTH, weights=file.parent, **chosen).fit(parts(8))
        fitted.save(tmp_path / "whole.safetensors", include_backbone=True)
        opened = Detector.load(tmp_path / "whole.safetensors", workers=0)
        assert np.array_equal(opened.score(parts(3, 50)).scores, fitted.score(parts(3, 50)).scores)

    def test_comes_back_with_the_same_weights_only(self, detector, file, tmp_path):
        detector.save(tmp_path / "part.safetensors")
        with pytest.raises(WeightsError, match="mobilenet_v2 could not be downloaded"):
            Detector.load(tmp_path / "part.safetensors")
        opened = Detector.load(tmp_path / "part.safetensors", weights=file.parent)
        assert np.array_equal(opened.score(parts(3, 50)).scores, detector.score(parts(3, 50)).scores)
        with pytest.raises(ModelFileError, match=r"other weights of builtin\+mobilenet_v2 than those given"):
            Detector.load(tmp_path / "part.safetensors", weights={"builtin": FIRST, "mobilenet_v2": file})

    def test_is_exported(self, detector, tmp_path):
        pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
        pytest.importorskip("onnx", reason="the extra [export] is not installed")
        from anomalib_lite.exporting.writing import export

        small = detector.unfitted()
        fitted = Detector(**{**small.parameters(), "weights": detector.embedder._weights, "dtype": "float32"})
        found = export(fitted.fit(parts(8)), tmp_path / "both.onnx")
        assert (tmp_path / "both.onnx").stat().st_size > 1_000_000
        assert found is not None


class TestWeights:
    def test_a_model_of_an_earlier_generation_opens_with_it(self):
        (earlier,) = GENERATIONS
        found = weights_of(BOTH, None, f"{earlier}+abc", download=False)
        assert found == {"builtin": GENERATIONS[earlier], "mobilenet_v2": CACHED}
        assert weights_of(BOTH, None, "of now+abc", download=True) == {"mobilenet_v2": IMAGENET}
        assert weights_of("builtin", None, earlier, download=False) == GENERATIONS[earlier]
        assert weights_of("resnet18", None, "abc", download=False) == CACHED
        assert weights_of(BOTH, "folder", "abc", download=False) == "folder"

    def test_what_each_computes_is_told(self, detector):
        own = build_builtin()
        assert detector.embedder.fingerprint.startswith(fingerprint(own) + "+")
        assert joint_fingerprint(own) == fingerprint(own)
        assert joint_fingerprint(Joined({"builtin": own, "other": own})) == f"{fingerprint(own)}+{fingerprint(own)}"

    def test_of_a_folder_those_that_are_needed(self, tmp_path):
        every = {"resnet18": "a", "mobilenet_v2": "b"}
        assert weights_among(every, BOTH) == {"mobilenet_v2": "b"}
        assert weights_among(every, "resnet18") == "a"
        assert weights_among({}, BOTH) is None
        assert weights_among(every, None) is None
        made = read_method(f"knn@{BOTH}").make(Settings(weights={"mobilenet_v2": "random"}))
        assert made.embedder.backbone == BOTH


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("backbone", "text"),
        [
            ("builtin+builtin", "names a network twice"),
            ("builtin+resnet50", "how far the layers of resnet50 spread is not known.*known: builtin, resnet18"),
            ("builtin+nothing", "no backbone 'nothing'"),
            ("builtin+", "no backbone ''"),
        ],
    )
    def test_backbones(self, backbone, text):
        with pytest.raises(ValueError, match=text):
            Detector(backbone=backbone, weights="random")

    @pytest.mark.parametrize("backbone", ["builtin+resnet18", "resnet18 + mobilenet_v2"])
    def test_others_do(self, backbone):
        assert Embedder(backbone, weights="random", image_size=64).output_shape[2] > 256

    def test_layers_cannot_be_chosen(self):
        with pytest.raises(ValueError, match=r"builtin\+mobilenet_v2 has its own layers; leave them out"):
            Embedder(BOTH, layers="features.6", weights="random")

    def test_weights(self, file, tmp_path):
        with pytest.raises(WeightsError, match=r"mobilenet_v2\.pth: builtin\+mobilenet_v2 takes a folder with"):
            Embedder(BOTH, weights=file)
        with pytest.raises(WeightsError, match=r"a mapping of 'features\.0\.0\.weight', .* takes a folder with"):
            Embedder(BOTH, weights=torch.load(file))
        with pytest.raises(WeightsError, match=r"has no weights of mobilenet_v2, in a file so called and \.pth"):
            Embedder(BOTH, weights=tmp_path)

    def test_what_takes_layers_of_one_network(self):
        with pytest.raises(ValueError, match=r"finetune takes one network, not builtin\+mobilenet_v2"):
            Classifier("finetune", backbone=BOTH, weights="random")
        with pytest.raises(ValueError, match="a segmenter takes one network"):
            Segmenter(encoder=BOTH, weights="random")
        assert Classifier("linear", backbone=BOTH, weights="random", image_size=64).embedder.backbone == BOTH
