"""The backbones: per network its layers, their channels and strides, its input size and its weights.

A name goes in, a truncated network in eval mode comes out. Networks are first laid out without memory (torch's
meta device), cut behind the deepest layer in use, and only what is left is loaded; so a partial
weights file is enough as long as it holds the layers in use.

Default layers sit at stride 8 and its neighbour, where patches describe parts rather than pixels or
whole scenes (Roth et al., PatchCore, CVPR 2022, section 4.4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor, fx, nn

from anomalib_lite.embedding.weights import StoredWeights, Weights, load_weights

PENULTIMATE = "penultimate"


@dataclass(frozen=True)
class Layer:
    """A place in a network: its graph node, the number of channels there, and pixels per step."""

    node: str
    channels: int
    stride: int


@dataclass(frozen=True)
class Backbone:
    """What is known of a network before it is built."""

    input_size: int
    layers: dict[str, Layer]
    default_layers: tuple[str, ...]
    penultimate: str
    build_options: dict[str, bool] = field(default_factory=dict)
    # Of the default layers, on 96 drawn images: the roots of their channels' summed variances. ResNet18 and MobileNetV2
    # with torchvision's weights, InceptionV3 and SqueezeNet with others.
    spreads: tuple[float, ...] = ()


def _resnet(width: int, spreads: tuple[float, ...] = ()) -> Backbone:
    layers = {f"layer{i + 1}": Layer(f"layer{i + 1}", width << i, 4 << i) for i in range(4)}
    return Backbone(256, layers, ("layer2", "layer3"), "flatten", spreads=spreads)


BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet(64, (2.83, 3.09)),
    "resnet50": _resnet(256),
    "wide_resnet50_2": _resnet(256),
    "vgg16": Backbone(
        256,
        {
            "relu1_2": Layer("features.3", 64, 1),
            "relu2_2": Layer("features.8", 128, 2),
            "relu3_3": Layer("features.15", 256, 4),
            "relu4_3": Layer("features.22", 512, 8),
            "relu5_3": Layer("features.29", 512, 16),
        },
        ("relu4_3", "relu5_3"),
        "classifier.4",
    ),
    "inception_v3": Backbone(
        299,
        {
            "Mixed_5b": Layer("Mixed_5b", 256, 8),
            "Mixed_5c": Layer("Mixed_5c", 288, 8),
            "Mixed_5d": Layer("Mixed_5d", 288, 8),
            "Mixed_6a": Layer("Mixed_6a", 768, 16),
            "Mixed_6e": Layer("Mixed_6e", 768, 16),
            "Mixed_7a": Layer("Mixed_7a", 1280, 32),
            "Mixed_7c": Layer("Mixed_7c", 2048, 32),
        },
        ("Mixed_5d", "Mixed_6e"),
        "flatten",
        # The pretrained network expects inputs scaled its own way and was trained with an auxiliary head.
        {"transform_input": True, "aux_logits": False, "init_weights": False},
        (9.15, 7.30),
    ),
    "mobilenet_v2": Backbone(
        256,
        {
            "features.3": Layer("features.3", 24, 4),
            "features.6": Layer("features.6", 32, 8),
            "features.10": Layer("features.10", 64, 16),
            "features.13": Layer("features.13", 96, 16),
            "features.17": Layer("features.17", 320, 32),
        },
        ("features.6", "features.13"),
        "flatten",
        spreads=(4.16, 5.66),
    ),
    "squeezenet1_1": Backbone(
        256,
        {
            "features.4": Layer("features.4", 128, 4),
            "features.7": Layer("features.7", 256, 8),
            "features.12": Layer("features.12", 512, 16),
        },
        ("features.7", "features.12"),
        "features.12",
        spreads=(696.0, 210.0),
    ),
}
"""Networks with known layers. Any other torchvision classification model works when `layers` are named."""


class TruncatedNetwork(nn.Module):
    """A network cut behind its deepest layer in use; returns that layer and the others in use.

    Input: float (n, 3, h, w), ImageNet-normalised. Output: one tensor per layer, (n, c, h', w') for convolution
    layers or (n, c) for a penultimate vector.
    """

    def __init__(self, graph: fx.GraphModule, layers: tuple[str, ...], channels: tuple[int, ...]):
        super().__init__()
        self.body = graph
        self.layers = layers
        self.channels = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs = self.body(images)  # in the order of the network, whatever the order of `layers`
        return [outputs[layer] for layer in self.layers]


def default_input_size(name: str) -> int:
    """Side in pixels that images are resized to for this backbone, unless said otherwise."""
    return BACKBONES[name].input_size if name in BACKBONES else 256


def resolve_layers(name: str, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the layers to use: those named, or the backbone's defaults.

    Raises
    ------
    ValueError
        If there is no such backbone, it has no defaults and no layers are named, or the list of names is empty.
    """
    if name not in _classifiers():
        close = get_close_matches(name, ["builtin", *_classifiers()], n=4) or ["builtin", *BACKBONES]
        raise ValueError(f"no backbone {name!r}; did you mean {', '.join(close)}? Or any classifier of torchvision")
    if layers is None:
        if name not in BACKBONES:
            raise ValueError(
                f"backbone {name!r} has no default layers; name them with layers=[...], at best one of stride 8 and "
                f"one of stride 16. With defaults: builtin, {', '.join(BACKBONES)}"
            )
        return BACKBONES[name].default_layers
    named = (
        tuple(part.strip() for part in layers.split(",") if part.strip()) if isinstance(layers, str) else tuple(layers)
    )
    if not named:
        raise ValueError(f"layers={layers!r} names no layer; leave it out for the default ones")
    return named


def build(name: str, layers: tuple[str, ...], weights: Weights) -> TruncatedNetwork:
    """Build the part of a torchvision classification network up to its deepest layer in `layers`.

    Parameters
    ----------
    name : str
        torchvision's name of the network.
    layers : tuple of str
        Layer names of the table above, graph node names of torchvision, or "penultimate".
    weights : Weights
        Where the parameters come from; see `weights.load_weights`.

    Raises
    ------
    ValueError
        If the network or a layer does not exist; the message lists the valid ones.
    WeightsError
        If the weights cannot be had or lack a layer in use.
    """
    graph = _cut(name, _lay_out(name), layers)
    channels = _channels(graph, name, layers)
    network = TruncatedNetwork(graph, layers, channels).eval()
    if isinstance(weights, StoredWeights):
        fold_batch_norm(graph)  # on the meta device: only the structure changes
        load_weights(network, name, weights, layers=layers)  # named as the folded network names them
    else:
        load_weights(graph, name, weights, layers=layers)
        fold_batch_norm(graph)
    return network


def _classifiers() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _lay_out(name: str) -> nn.Module:
    """The whole network without memory behind its parameters."""
    from torchvision import models

    options = BACKBONES[name].build_options if name in BACKBONES else {}
    with torch.device("meta"):
        return models.get_model(name, weights=None, **options).eval()


def _cut(name: str, model: nn.Module, layers: tuple[str, ...]) -> fx.GraphModule:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    known = BACKBONES.get(name)
    nodes = {}
    for layer in layers:
        if layer == PENULTIMATE:
            nodes[layer] = known.penultimate if known else "flatten"
        else:
            nodes[layer] = known.layers[layer].node if known and layer in known.layers else layer
    names = get_graph_node_names(model)[1]
    for layer, node in nodes.items():
        if not any(other == node or other.startswith(node + ".") for other in names):
            valid = list(known.layers) if known else _blocks(names)
            raise ValueError(f"{name} has no layer {layer!r}; valid: {', '.join([*valid, PENULTIMATE])}")
    graph = create_feature_extractor(model, {node: layer for layer, node in nodes.items()}).eval()
    _keep_outputs_intact(graph)
    return graph


def _blocks(names: list[str]) -> list[str]:
    """Node names without the inner parts of blocks, for a message that can be read."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _keep_outputs_intact(graph: fx.GraphModule) -> None:
    """Keep an in-place activation from overwriting a layer that is returned."""
    returned = {arg for node in graph.graph.nodes if node.op == "output" for arg in node.all_input_nodes}
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if not returned & set(node.all_input_nodes):
            continue
        if node.op == "call_module" and getattr(modules[node.target], "inplace", False):
            modules[node.target].inplace = False
        elif node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    graph.recompile()


def _channels(graph: fx.GraphModule, name: str, layers: tuple[str, ...]) -> tuple[int, ...]:
    """Channels of each returned layer, by a pass without memory or arithmetic."""
    size = default_input_size(name)
    try:
        with torch.inference_mode():
            outputs = graph(torch.empty(1, 3, size, size, device="meta"))
    except AssertionError as error:  # torchvision's transformers assert their size
        raise ValueError(
            f"{name} takes images of one size only, not {size} pixels; choose a convolutional network, such as "
            f"{', '.join(BACKBONES)}"
        ) from error
    if len(outputs) < len(layers):  # the extractor returns a node once, however often and by whatever name it is asked
        raise ValueError(f"the layers {', '.join(layers)} of {name} are not distinct; name each place once")
    for layer, out in outputs.items():
        # A square image has square feature maps; transformers give tokens, or channels last.
        if out.dim() != 2 and (out.dim() != 4 or out.shape[-1] != out.shape[-2]):
            raise ValueError(
                f"{layer} of {name} gives {tuple(out.shape)}, not a feature map (n, c, h, w); choose a layer of a "
                f"convolutional network, such as {', '.join(BACKBONES)}"
            )
    return tuple(outputs[layer].shape[1] for layer in layers)


def fold_batch_norm(graph: fx.GraphModule) -> None:
    """Fold every batch norm that follows a convolution into it: the same function, fewer passes over memory."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) > 1:
            continue
        convolution = modules[source.target]
        if isinstance(convolution, nn.Conv2d):
            graph.set_submodule(source.target, fuse_conv_bn_eval(convolution, modules[node.target]))
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
