"""Classifiers by name: they learn, predict, are saved and loaded, and say what is wrong."""

import numpy as np
import pytest
import torch

from anomalib_lite import Classifier, Detector, fit
from anomalib_lite.embedding.backbones import BACKBONES
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.supervised.augmentation import Augmentation
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.labelled import LabelledDataError, open_labelled
from anomalib_lite.supervised.networks import SmallCNN, TransferNetwork, VectorHead, blocks, loss_of, probabilities
from anomalib_lite.supervised.outcome import measure_predictions
from anomalib_lite.supervised.splitting import Split, split, without_kind

SMALL = {"image_size": 64, "epochs": 2, "dtype": "float32"}
RESNET = {"backbone": "resnet18", "weights": "random", "layers": "layer1,layer2"}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three classes that colour tells apart."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for kind, colour in (("good", (90, 90, 90)), ("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (folder / kind).mkdir()
        for number in range(12):
            noise = rng.normal(scale=20, size=(48, 48, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(
                folder / kind / f"{number}.png"
            )
    return open_labelled(folder)


@pytest.fixture(scope="module")
def parts(colours):
    return split(colours)


class TestLearning:
    @pytest.mark.parametrize(
        ("model", "options"),
        [
            ("cnn", {"epochs": 12}),
            ("cnn-dropout", {"epochs": 20, "dropout": 0.2}),
            ("cnn-augmented", {"epochs": 20, "dropout": 0.2}),
            ("bottleneck", {"epochs": 30}),
            ("linear", {"epochs": 10}),
            ("finetune", {"epochs": 8}),
        ],
    )
    def test_tells_three_classes_apart(self, colours, parts, model, options):
        classifier = Classifier(model, **{**SMALL, **options}).fit(colours, parts)
        assert classifier.classes_ == ["good", "blue", "red"]
        held_out = [colours.root / colours.ids[i] for i in parts.test]
        predictions = classifier.predict(held_out)
        assert predictions.probabilities.sum(axis=1) == pytest.approx(np.ones(len(held_out)))
        assert measure_predictions(predictions, [colours.kinds[i] for i in parts.test]).accuracy > 0.9

    def test_defective_is_everything_but_good(self, colours, parts):
        classifier = Classifier("linear", **{**SMALL, "epochs": 10}).fit(colours, parts, target="defective")
        assert classifier.classes_ == ["good", "defective"]
        predictions = classifier.predict([colours.root / colours.ids[i] for i in parts.test])
        assert (predictions.anomaly_scores("good")[colours.defective[parts.test]] > 0.5).all()

    def test_two_classes_train_one_output_unless_told_otherwise(self, colours, parts):
        binary = Classifier("linear", **SMALL).fit(colours, parts, target="defective")
        categorical = Classifier("linear", loss="categorical", **SMALL).fit(colours, parts, target="defective")
        widths = [one.network_.layers[-1].out_features for one in (binary, categorical)]
        assert widths == [1, 2]
        with pytest.raises(ValueError, match="loss='binary' tells two classes apart, and there are 3"):
            Classifier("linear", loss="binary", **SMALL).fit(colours, parts)

    @pytest.mark.parametrize("backbone", sorted(set(BACKBONES) - {"resnet50", "wide_resnet50_2"}))
    @pytest.mark.parametrize("model", ["linear", "finetune"])
    def test_every_backbone_carries_a_head(self, colours, parts, model, backbone):
        options = {"weights": "random", "image_size": 96, "epochs": 1, "dtype": "float32"}
        classifier = Classifier(model, backbone=backbone, **options).fit(colours, parts)
        predictions = classifier.predict([colours.root / colours.ids[i] for i in parts.test])
        assert np.isfinite(predictions.probabilities).all()
        assert predictions.probabilities.std(axis=0).max() > 0

    def test_backbones_that_differ_in_layers_alone_share_no_vectors(self, colours, parts):
        cache = CachedImages(colours, np.arange(len(colours)))
        options = {"backbone": "resnet18", "weights": "random", **SMALL}
        for layers, width in (("layer2", 256), ("layer1,layer2", 384)):
            classifier = Classifier("linear", layers=layers, **options).fit(colours, parts, cache=cache)
            assert len(classifier.network_.mean) == width

    def test_a_seed_decides(self, colours, parts):
        first, again, other = (
            Classifier("cnn", random_state=seed, **SMALL).fit(colours, parts).history_.train_loss for seed in (0, 0, 1)
        )
        assert first == again
        assert first != other

    def test_grey_takes_the_colour_away(self, colours, parts):
        blue, red = (np.full((64, 64, 3), c, np.uint8) for c in ((40, 40, 121), (71, 40, 40)))  # of equal luminance
        seeing, blind = (
            Classifier("cnn", grey=grey, **{**SMALL, "epochs": 6}).fit(colours, parts) for grey in (False, True)
        )
        differences = [np.abs(np.diff(one.predict([blue, red]).probabilities, axis=0)).max() for one in (seeing, blind)]
        assert differences[0] > 0.05
        assert differences[1] == 0

    def test_a_folder_is_enough(self, synthetic_set):
        classifier = Classifier("linear", **SMALL).fit(synthetic_set)
        assert classifier.classes_ == ["good", "bent", "color", "flip", "scratch"]
        assert len(classifier.split_.test) == 3 + 4 * 2

    @pytest.mark.parametrize("imbalance", ["weights", "oversample", "none"])
    def test_imbalance(self, colours, parts, imbalance):
        rare = parts.keeping(np.array([kind != "red" or i % 4 == 0 for i, kind in enumerate(colours.kinds)]))
        classifier = Classifier("linear", imbalance=imbalance, **{**SMALL, "epochs": 20}).fit(colours, rare)
        assert np.isfinite(classifier.history_.train_loss).all()

    @pytest.mark.parametrize("model", ["cnn", "linear"])
    def test_validation_images_are_learnt_from_or_watched(self, colours, parts, model):
        learning = Classifier(model, **SMALL).fit(colours, parts)
        assert len(learning.split_.train) == len(parts.learning)
        assert learning.history_.validation_loss == []
        watching = Classifier(model, validation="watch", **SMALL).fit(colours, parts)
        assert len(watching.split_.train) == len(parts.train)
        assert len(watching.history_.validation_loss) == 2

    def test_resumes_from_a_checkpoint(self, colours, parts, tmp_path):
        whole = Classifier("cnn-augmented", **{**SMALL, "epochs": 4}).fit(colours, parts)

        class Killed(BaseException):
            pass

        from anomalib_lite.supervised import training

        original, saved = training.save_checkpoint, []

        def dying(*arguments):
            original(*arguments)
            saved.append(1)
            if len(saved) == 2:
                raise Killed

        training.save_checkpoint = dying
        try:
            with pytest.raises(Killed):
                Classifier("cnn-augmented", **{**SMALL, "epochs": 4}).fit(colours, parts, checkpoint=tmp_path / "c")
        finally:
            training.save_checkpoint = original
        resumed = Classifier("cnn-augmented", **{**SMALL, "epochs": 4}).fit(colours, parts, checkpoint=tmp_path / "c")
        assert resumed.history_.train_loss == whole.history_.train_loss


class TestPredicting:
    def test_unreadable_images_are_listed(self, colours, parts, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"no picture")
        good = colours.root / colours.ids[0]
        for model in ("cnn", "linear"):
            predictions = Classifier(model, **SMALL).fit(colours, parts).predict([good, tmp_path / "bad.png", good])
            assert len(predictions) == 2
            assert [one.index for one in predictions.unreadable] == [1]

    def test_before_fit(self):
        with pytest.raises(RuntimeError, match="not fitted yet"):
            Classifier("cnn").predict(np.zeros((8, 8, 3), np.uint8))

    @pytest.mark.parametrize("model", ["cnn", "finetune"])
    def test_independent_of_batches(self, colours, parts, model):
        classifier = Classifier(model, **SMALL).fit(colours, parts)
        paths = [colours.root / id_ for id_ in colours.ids[:5]]
        together = classifier.predict(paths).probabilities
        alone = np.concatenate([classifier.predict([path]).probabilities for path in paths])
        assert together == pytest.approx(alone, abs=1e-4)
        assert together.std(axis=0).max() > 0


class TestSaving:
    @pytest.mark.parametrize(
        ("model", "options"),
        [
            ("cnn", {}),
            ("cnn-augmented", {"augmentation": Augmentation(rotation=3)}),
            ("bottleneck", {}),
            ("linear", {"loss": "categorical"}),
            ("finetune", {}),
            ("finetune", {**RESNET, "unfreeze_from": "layer2"}),
            ("linear", RESNET),
        ],
    )
    def test_a_saved_classifier_predicts_the_same(self, colours, parts, tmp_path, model, options):
        classifier = Classifier(model, **SMALL, **options).fit(colours, parts)
        path = classifier.save(tmp_path / "classifier.safetensors")
        weights = options.get("weights") if model == "linear" else None
        again = Classifier.load(path, weights=weights, dtype="float32")
        paths = [colours.root / id_ for id_ in colours.ids[::7]]
        assert np.array_equal(again.predict(paths).probabilities, classifier.predict(paths).probabilities)
        assert again.classes_ == classifier.classes_
        assert again.config() | {"backbone": None} == classifier.config() | {"backbone": None}

    def test_other_weights_of_a_frozen_backbone_are_refused(self, colours, parts, tmp_path):
        classifier = Classifier("linear", **SMALL, **RESNET).fit(colours, parts)
        path = classifier.save(tmp_path / "classifier.safetensors")
        from torchvision.models import resnet18

        torch.manual_seed(1)
        with pytest.raises(ModelFileError, match="was trained on other weights of resnet18"):
            Classifier.load(path, weights=resnet18().state_dict())

    def test_a_detector_is_no_classifier_and_the_other_way_round(self, colours, parts, tmp_path):
        detector = fit([render_part(np.random.default_rng(i), 64)[0] for i in range(6)], image_size=64)
        with pytest.raises(ModelFileError, match=r"holds a detector, not a classifier; open it with Detector\.load"):
            Classifier.load(detector.save(tmp_path / "detector.safetensors"))
        classifier = Classifier("cnn", **SMALL).fit(colours, parts)
        with pytest.raises(ModelFileError, match=r"holds a classifier, not a detector; open it with Classifier\.load"):
            Detector.load(classifier.save(tmp_path / "classifier.safetensors"))

    def test_a_damaged_file_is_named(self, colours, parts, tmp_path):
        from anomalib_lite.files.model_file import load_file, save_file

        path = Classifier("cnn", **SMALL).fit(colours, parts).save(tmp_path / "c.safetensors")
        arrays, _ = load_file(path, kind="classifier")
        save_file(path, arrays, {"classes": ["a", "b"]}, kind="classifier")
        with pytest.raises(ModelFileError, match=r"c\.safetensors is damaged"):
            Classifier.load(path)


class TestErrors:
    def test_nothing_to_tell_apart(self, colours, parts):
        only_good = parts
        for kind in ("red", "blue"):
            only_good = without_kind(colours, only_good, kind)
        for target in ("kinds", "defective"):
            with pytest.raises(LabelledDataError, match="nothing to tell apart"):
                Classifier("cnn", **SMALL).fit(colours, only_good, target=target)

    def test_a_class_only_in_validation(self, colours):
        red = np.flatnonzero(np.array(colours.kinds) == "red")
        good = np.flatnonzero(np.array(colours.kinds) == "good")
        parts = Split(good[:6], red[:2], good[6:])
        with pytest.raises(LabelledDataError, match="no training image of red"):
            Classifier("cnn", validation="watch", **SMALL).fit(colours, parts)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": "svm"}, "'svm' is not known here; choose one of cnn"),
            ({"model": "cnn", "image_size": 50}, "image_size=50: the CNN halves it three times"),
            ({"model": "cnn", "dropout": 1.0}, r"dropout=1\.0"),
            ({"model": "linear", "augmentation": Augmentation()}, "linear sees every image once"),
            ({"model": "cnn", "imbalance": "ignore"}, "'ignore' is not known here"),
        ],
    )
    def test_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            Classifier(**options)

    def test_an_unknown_target(self, colours, parts):
        with pytest.raises(ValueError, match="target='colour'; choose 'kinds' or 'defective'"):
            Classifier("cnn", **SMALL).fit(colours, parts, target="colour")


class TestNetworks:
    def test_the_small_cnn_is_the_classic_one(self):
        network = SmallCNN(1, image_size=32)
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 32), (32, 32), (32, 64)]
        assert sum(isinstance(m, torch.nn.MaxPool2d) for m in network.modules()) == 3
        dense = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
        assert [d.out_features for d in dense] == [64, 1]

    def test_the_wide_layer_learns_more_slowly(self):
        network = SmallCNN(1, image_size=64)
        (rest, rate), (wide, slower) = network.rates(1e-3)
        assert [tuple(parameter.shape) for parameter in wide] == [(64, 64 * 8 * 8)]
        assert (rate, slower) == (1e-3, 1e-4)
        assert len(rest) + 1 == len(list(network.parameters()))

    def test_the_bottleneck_is_64_64_32(self, colours, parts):
        network = Classifier("bottleneck", **SMALL).fit(colours, parts).network_
        dense = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
        assert [d.out_features for d in dense] == [64, 64, 32, 3]

    def test_only_the_named_blocks_are_trained_the_last_fastest(self):
        from anomalib_lite.embedding.embedder import Embedder

        backbone = Embedder("resnet18", weights="random", dtype="float32").fresh_network()
        assert list(blocks(backbone)) == ["conv1", "layer1", "layer2", "layer3"]
        network = TransferNetwork(backbone, VectorHead(torch.randn(4, 768), 1), "layer2")
        groups = list(network.rates(1e-4, head_rate=1e-3, decay=2.0))
        assert [rate for _, rate in groups] == [1e-3, 1e-4, 5e-5]
        trained = {id(p) for parameters, _ in groups for p in parameters}
        assert trained == {id(p) for p in network.parameters() if p.requires_grad}
        assert not any(p.requires_grad for p in blocks(backbone)["layer1"])
        with pytest.raises(ValueError, match="unfreeze_from='layer9': the blocks are conv1, layer1, layer2, layer3"):
            TransferNetwork(backbone, VectorHead(torch.randn(4, 768), 1), "layer9")

    def test_frozen_blocks_do_not_move(self, colours, parts):
        classifier = Classifier("finetune", unfreeze_from="coarse", **SMALL).fit(colours, parts)
        before = classifier.embedder.fresh_network().state_dict()
        moved = {
            name.split(".")[1]
            for name, value in classifier.network_.state_dict().items()
            if name.startswith("backbone.") and not torch.equal(value, before[name.removeprefix("backbone.")])
        }
        assert moved == {"coarse", "heads"}

    def test_losses_agree_with_torch(self):
        logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
        weights = torch.tensor([1.0, 2.0, 0.5])
        expected = torch.nn.functional.cross_entropy(logits, targets, weight=weights)
        assert loss_of(logits, targets, weights).item() == pytest.approx(expected.item())
        binary, truth = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
        expected = torch.nn.functional.binary_cross_entropy_with_logits(binary[:, 0], truth.float())
        assert loss_of(binary, truth, torch.ones(2)).item() == pytest.approx(expected.item())
        assert probabilities(binary)[:, 1].tolist() == pytest.approx(torch.sigmoid(binary[:, 0]).tolist())
