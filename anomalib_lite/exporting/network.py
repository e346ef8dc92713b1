"""The network, its pooling and the reduction of patches as ONNX operators, by torch's exporter.

All sizes in here are known, since a picture has been brought to the frame before. A network in 8-bit integers is
exported in operators of integers (`integers`), or as the engine "reference" computes it: whole numbers in float32, with
the same steps and the same scores.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.pooling import pool_whole
from anomalib_lite.embedding.quantization import Blueprint, IntegerNetwork
from anomalib_lite.exporting.graph import Graph, Name
from anomalib_lite.exporting.integers import ExportedIntegers, sums_are_exact
from anomalib_lite.scoring.reduction import PCA, Reduction, Standardizer

_FLOAT = 1  # ONNX's number for float32


class Embedding(nn.Module):
    """What an embedder and a reduction make of one window of a picture, in operators that ONNX has.

    Parameters
    ----------
    embedder : Embedder
    reduction : of patches at the patch level, of whole images at the global level
    whole : whether vectors of whole images are wanted beside patches; at the global level they always are
    for_openvino : whether 8-bit integers are to be held in float32
    """

    def __init__(self, embedder: Embedder, reduction: Reduction, *, whole: bool, for_openvino: bool):
        super().__init__()
        self.size, self.grid = embedder.image_size, embedder.own_grid
        self.at_patches, self.looks_twice, self.context = (
            embedder.level == "patch",
            embedder.looks_twice,
            embedder.context,
        )
        self.whole = whole or not self.at_patches
        self.reduction = reduction
        self._scale, self._shift = embedder.pixel_scale
        self.network = embedder.fresh_network().eval()
        self.integers: IntegerNetwork | None = None
        if embedder.ranges is not None:
            # Of the embedder's own network, whose layout in memory decides in which order biases are summed: their last
            # bits move values that lie half way between two steps.
            blueprint = Blueprint(embedder.network, *embedder.pixel_scale)
            kind = IntegerNetwork if for_openvino else ExportedIntegers
            self.integers = kind(blueprint, embedder.ranges, "reference", torch.device("cpu"))

    @property
    def outputs(self) -> list[str]:
        """What `forward` gives, in order: "rows" (gh * gw, q), and the "vector" (d,) of the whole, not reduced."""
        return ["rows"] * self.at_patches + ["vector"] * self.whole

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Of pixels (h, w, 3), uint8, what `outputs` says."""
        layers = self._layers(pixels[None])
        own = len(layers)
        found = []
        if self.at_patches:
            if self.looks_twice:
                layers = [*layers, self.context * self._layers(self._halved(pixels[None]))[-1]]
            found.append(self._rows(layers))
        if self.whole:
            found.append(pool_whole(layers[:own])[0])
        return tuple(found)

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        if self.integers is not None:
            return self.integers(pixels)
        # Channels first: one number for a whole plane is multiplied ten times as fast as another for every value.
        scale, shift = (values.view(1, -1, 1, 1) for values in (self._scale, self._shift))
        return self.network(pixels.permute(0, 3, 1, 2).float() * scale - shift)

    def _halved(self, pixels: Tensor) -> Tensor:
        """Means of 2 × 2 pixels, of fewer at the ends of odd sides, as uint8; see `Embedder.context`."""
        down, right = (_of_pairs(side) for side in self.size)
        means = down @ (pixels.float().permute(0, 3, 1, 2) @ right.T)
        return means.round().to(torch.uint8).permute(0, 2, 3, 1)

    def _rows(self, layers: list[Tensor]) -> Tensor:
        if not isinstance(self.reduction, PCA):
            averaged = [self._to_grid(F.avg_pool2d(layer, 3, stride=1, padding=1)) for layer in layers]
            rows = torch.cat(averaged, dim=1).permute(0, 2, 3, 1).reshape(self.grid[0] * self.grid[1], -1)
            return reduced(self.reduction, rows)
        projection, offset = self.reduction.linear
        total = offset.view(1, -1, 1, 1)
        for layer, part in zip(layers, projection.split([int(layer.shape[1]) for layer in layers]), strict=True):
            kernel = part.T[:, :, None, None].contiguous()
            if kernel.shape[0] < kernel.shape[1]:  # before it is pooled where that leaves fewer channels to pool
                values = F.avg_pool2d(F.conv2d(layer, kernel), 3, stride=1, padding=1)
            else:
                values = F.conv2d(F.avg_pool2d(layer, 3, stride=1, padding=1), kernel)
            total = total + self._to_grid(values)
        return total.permute(0, 2, 3, 1).reshape(self.grid[0] * self.grid[1], -1)

    def _to_grid(self, level: Tensor) -> Tensor:
        """A level (1, c, h, w) on the grid, as `embedding.embedder` brings it there, by two matrix products."""
        shape = int(level.shape[2]), int(level.shape[3])
        if shape == self.grid:
            return level
        shrinks = shape[0] > self.grid[0] or shape[1] > self.grid[1]
        down, right = (
            (_averaging if shrinks else _bilinear)(side, cells) for side, cells in zip(shape, self.grid, strict=True)
        )
        return down @ (level @ right.T)


def reduced(reduction: Reduction, rows: Tensor) -> Tensor:
    """Rows (n, d) after a reduction, (n, q)."""
    if isinstance(reduction, PCA):
        projection, offset = reduction.linear
        return rows @ projection + offset
    if not isinstance(reduction, Standardizer):
        raise ValueError(f"a reduction of the class {type(reduction).__name__} cannot be exported")
    mean, scale = (torch.from_numpy(values.astype(np.float32)) for values in (reduction.mean_, reduction.scale_))
    return (rows - mean) / scale


def embedded(module: Embedding, opset: int) -> Callable[[Graph, Name], list[Name]]:
    """What writes a module into a graph, given pixels float32 (h, w, 3), whole numbers; its `outputs` come back."""
    integers = module.integers
    if not isinstance(integers, ExportedIntegers):
        in_floats = _exported(module, opset)
        return lambda g, pixels: g.splice(in_floats, {"pixels": pixels})
    signed = _exported(module, opset)
    module.integers = integers.unsigned()
    unsigned = _exported(module, opset)

    def written(g: Graph, pixels: Name) -> list[Name]:
        stored = g.cast(pixels, np.uint8)
        signed_body, unsigned_body = g.body(), g.body()
        return g.choices(
            sums_are_exact(g, stored),
            (signed_body, signed_body.splice(signed, {"pixels": stored})),
            (unsigned_body, unsigned_body.splice(unsigned, {"pixels": stored})),
            [_FLOAT] * len(module.outputs),
        )

    return written


def _exported(module: Embedding, opset: int) -> Any:
    """A module as an ONNX model of the input "pixels", uint8 (h, w, 3).

    But for `ExportedIntegers`, what is uint8 in torch is float32, the input too: such values were rounded and cut off
    before, so that floats hold them as well, and runtimes lack some operators for uint8.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter by TorchScript: in torch 2.14 it takes 0.2 s where the other takes 3 and another package. It says
        # that it is not the default any more, and that sizes will not change, which they do not.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(*module.size, 3, dtype=torch.uint8),),
            buffer,  # type: ignore[arg-type]  # its annotation forgets files
            dynamo=False,
            opset_version=opset,
            input_names=["pixels"],
        )
    model = onnx.load_from_string(buffer.getvalue())
    if isinstance(module.integers, ExportedIntegers):
        return model
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.UINT8:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.UINT8:
                attribute.i = TensorProto.FLOAT
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.UINT8:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    if module.integers is not None:
        _keep_sums_apart(model.graph)
    return model


def _keep_sums_apart(graph: Any) -> None:
    """Round the sums of integer convolutions, which are whole numbers already, before they are multiplied.

    Else runtimes multiply the weights by the scale instead, and sums are rounded: values that lie half way between two
    steps then fall to the other side, and vectors of bottles were 0.5 % off on the average.
    """
    from onnx import helper

    multiplied = {node.input[0] for node in graph.node if node.op_type == "Mul"}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        if node.op_type == "Conv" and node.output[0] in multiplied:
            sums = f"{node.output[0]}_sums"
            whole, graph.node[-1].output[0] = node.output[0], sums
            graph.node.append(helper.make_node("Round", [sums], [whole]))


# By numpy, so that what is made here stands in the graph as numbers, not as the operators that make them.


def _averaging(side: int, cells: int) -> Tensor:
    """float32 (cells, side): means of what lies in a cell, as torch's adaptive pooling."""
    weights = np.zeros((cells, side), dtype=np.float32)
    for i in range(cells):
        first, end = i * side // cells, -(-(i + 1) * side // cells)
        weights[i, first:end] = 1 / (end - first)
    return torch.from_numpy(weights)


def _of_pairs(side: int) -> Tensor:
    """float32 (cells, side): means of two neighbours, and the last alone where their number is odd."""
    weights = np.repeat(np.eye(-(-side // 2), dtype=np.float32), 2, axis=1)[:, :side]
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


def _bilinear(side: int, cells: int) -> Tensor:
    """float32 (cells, side): between the two nearest, as torch's interpolation with align_corners=False."""
    middles = np.clip((np.arange(cells) + 0.5) * (side / cells) - 0.5, 0, side - 1)
    weights = np.maximum(0, 1 - np.abs(middles[:, None] - np.arange(side)))
    return torch.from_numpy(weights.astype(np.float32))
