from collections import OrderedDict

import pytest
import torch
from torchvision import models

from anomalib_lite.embedding import backbones
from anomalib_lite.embedding.backbones import BACKBONES, PENULTIMATE, build, default_input_size, resolve_layers


def whole(make, **options):
    """A whole model in eval mode with random weights, and batch norms that do something."""
    with torch.device("meta"):  # its own initialisation takes seconds
        model = make(**options)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.to_empty(device="cpu").state_dict().values():
        if tensor.dim() > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.uniform_(0.5, 1.0, generator=generator)
    return model.eval()


def vgg16_features():
    return torch.nn.Sequential(OrderedDict(features=models.vgg.make_layers(models.vgg.cfgs["D"])))


def hooked(model, names, images):
    """Outputs of the named modules of the whole model, copied before anything overwrites them."""
    kept = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _input, output, name=name: kept.__setitem__(name, output.clone())
        )
        for name in names
    ]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return [kept[name] for name in names]


def images(size=64, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(name, layers, nodes, model, size=64):
    network = build(name, layers, model.state_dict())
    with torch.inference_mode():
        outputs = network(images(size))
    for layer, output, expected in zip(layers, outputs, hooked(model, nodes, images(size)), strict=True):
        assert expected.std() > 0
        assert (output - expected).abs().max() < 1e-4 * max(1, expected.abs().max()), layer


@pytest.fixture(scope="module")
def resnet18():
    return whole(models.resnet18)


class TestTable:
    @pytest.mark.parametrize("name", BACKBONES)
    def test_channels_and_strides_are_those_of_the_network(self, name, monkeypatch):
        known = BACKBONES[name]
        monkeypatch.setattr(backbones, "load_weights", lambda *_args, **_kwargs: None)  # shapes need no numbers
        network = build(name, tuple(known.layers), "random")
        # InceptionV3 pads little, so its maps are smaller than size / stride.
        size, slack = (299, 3) if name == "inception_v3" else (64, 1 if name == "squeezenet1_1" else 0)
        with torch.inference_mode():
            outputs = network(torch.empty(1, 3, size, size, device="meta"))
        for (layer, place), output, channels in zip(known.layers.items(), outputs, network.channels, strict=True):
            assert output.shape[1] == place.channels == channels, layer
            assert size // place.stride - slack <= output.shape[2] <= size // place.stride, layer

    @pytest.mark.parametrize("name", BACKBONES)
    def test_defaults_are_in_it_and_near_stride_8(self, name):
        known = BACKBONES[name]
        strides = [known.layers[layer].stride for layer in known.default_layers]
        assert strides == [8, 16]
        assert resolve_layers(name, None) == known.default_layers
        assert default_input_size(name) == known.input_size == (299 if name == "inception_v3" else 256)
        assert name in models.list_models(module=models)


class TestSameFeaturesAsTheWholeModel:
    def test_resnet18_in_the_order_layers_are_named(self, resnet18):
        assert_same("resnet18", ("layer3", "layer1", "layer2"), ["layer3", "layer1", "layer2"], resnet18)
        assert build("resnet18", ("layer2", "layer1"), "random").channels == (128, 64)

    def test_penultimate(self, resnet18):
        network = build("resnet18", (PENULTIMATE,), resnet18.state_dict())
        with torch.inference_mode():
            (vector,) = network(images())
        (pooled,) = hooked(resnet18, ["avgpool"], images())
        assert vector.shape == (2, 512)
        assert torch.allclose(vector, pooled.flatten(1), rtol=1e-4, atol=1e-4 * float(pooled.max()))

    def test_inception_v3_with_its_own_input_scaling(self):
        model = whole(models.inception_v3, **BACKBONES["inception_v3"].build_options)
        assert model.transform_input  # as pretrained
        # The norm comes before an activation in place, which is a function and no module.
        layers = ["Conv2d_1a_3x3.bn", "Conv2d_2a_3x3.bn", "Mixed_5d"]
        assert_same("inception_v3", tuple(layers), layers, model, size=96)

    @pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "mobilenet_v3_small"])
    def test_networks_of_named_blocks(self, name):
        model = whole(getattr(models, name))
        layers = ["features.4", "features.7"]
        assert_same(name, tuple(layers), layers, model)


class TestInPlaceActivations:
    """A layer that an activation would overwrite is returned as it was."""

    def test_module(self):  # and the names of VGG16's layers
        model = whole(vgg16_features)
        layers, nodes = ("features.14", "relu3_3", "relu4_3"), ["features.14", "features.15", "features.22"]
        assert_same("vgg16", layers, nodes, model)

    def test_residual_sum_and_folded_norms(self, resnet18):
        layers = ["bn1", "layer1.0.conv1", "layer1.0.bn2", "layer1"]
        assert_same("resnet18", tuple(layers), layers, resnet18)


class TestTruncation:
    def test_nothing_deeper_is_built(self):
        network = build("resnet18", ("layer2",), "random")
        names = " ".join(name for name, _ in network.named_parameters())
        assert "layer2" in names
        assert not any(deeper in names for deeper in ("layer3", "layer4", "fc"))
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
        assert not network.training

    def test_penultimate_leaves_the_classifier_out(self):
        network = build("mobilenet_v2", (PENULTIMATE,), "random")
        assert network.channels == (1280,)
        assert not any("classifier" in name for name, _ in network.named_parameters())

    def test_stored_weights_build_the_same_network(self, resnet18):
        layers = ("layer1", "layer2")
        first = build("resnet18", layers, resnet18.state_dict())
        again = build("resnet18", layers, backbones.StoredWeights(first.state_dict()))
        with torch.inference_mode():
            for a, b in zip(first(images()), again(images()), strict=True):
                assert torch.equal(a, b)


class TestErrors:
    def test_unknown_backbone(self):
        with pytest.raises(ValueError, match=r"no backbone 'resnet19'; did you mean resnet18"):
            resolve_layers("resnet19", None)

    def test_no_default_layers(self):
        with pytest.raises(ValueError, match=r"'efficientnet_b0' has no default layers.*With defaults: .*resnet18"):
            resolve_layers("efficientnet_b0", None)
        assert resolve_layers("efficientnet_b0", "features.3, features.5,") == ("features.3", "features.5")
        assert resolve_layers("resnet18", ["layer1"]) == ("layer1",)

    @pytest.mark.parametrize("layers", ["", [], ","])
    def test_no_layers(self, layers):
        with pytest.raises(ValueError, match="names no layer; leave it out for the default ones"):
            resolve_layers("resnet18", layers)

    @pytest.mark.parametrize(
        ("name", "valid"),
        [
            ("resnet18", "layer1, layer2, layer3, layer4, penultimate"),
            ("vgg16", "relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, penultimate"),
            ("efficientnet_b0", r".*features\.3, features\.4.*penultimate"),
        ],
    )
    def test_unknown_layer(self, name, valid):
        with pytest.raises(ValueError, match=f"{name} has no layer 'layer9'; valid: {valid}"):
            build(name, ("layer9",), "random")

    @pytest.mark.parametrize(
        ("name", "layers"),
        [
            ("resnet18", ("layer2", "layer2")),
            ("resnet18", ("layer2", "layer2.1.relu_1")),
            ("vgg16", ("relu2_2", "features.8")),
        ],
    )
    def test_the_same_place_twice(self, name, layers):
        with pytest.raises(ValueError, match=f"{layers[0]}, {layers[1]} of {name} are not distinct"):
            build(name, layers, "random")

    @pytest.mark.parametrize(
        ("name", "layer"), [("swin_t", "features.1"), ("vit_b_16", "encoder.layers.encoder_layer_3")]
    )
    def test_transformers(self, name, layer):
        with pytest.raises(ValueError, match=r"choose a (layer of a )?convolutional network, such as"):
            build(name, (layer,), "random")
