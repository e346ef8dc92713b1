"""From a float32 network to one of 8-bit integers: static, per output channel, calibrated on images.

A network is traced into a graph. Every convolution takes in the batch norm behind it, what is added to it and its ReLU,
and is computed by `machine.integers`; maxima and concatenation stay integers, everything else runs in float32 between
them. Pixels are 8-bit integers already, so their standardisation is folded into the first convolution and costs
nothing. Layers that are returned come back in float32.

What is learnt from images is a range per place where real numbers become 8 bits, and the mean of every channel there.
With the network's weights these determine everything, so that is all a model file keeps; any engine computes the same
from it. The means correct what rounding the weights does to the average output (Nagel et al., ICCV 2019, section 4.2):
weights are rounded once, and pixels and activations, which are not centred, multiply the same error everywhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from anomalib_lite.embedding.backbones import fold_batch_norm
from anomalib_lite.machine.integers import Convolution, Kernel, Steps, make_kernel

# By place: the lowest and the highest value, and the mean of every channel.
Ranges = Mapping[str, Sequence[float]]
PIXELS = "pixels"  # the place of the images themselves
# Values kept of a batch at every place, and the shares of their range that are tried.
_SAMPLE = 1 << 13
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_MAXIMA = (F.max_pool2d, torch.max_pool2d)
_JOINS = (torch.cat, torch.concat)


class NotQuantizableError(ValueError):
    """A network of a kind that cannot be brought to integers."""


class Blueprint:
    """A float32 network laid out for integers: which convolutions take in what, and where ranges are needed.

    Parameters
    ----------
    network : module
        In evaluation mode, float32; (n, 3, h, w) in, a list of layers out.
    scale, shift : float32 (3,)
        Of the pixels: the network is given pixel * scale - shift.

    Raises
    ------
    NotQuantizableError
        If it cannot be traced, or does more to its pixels before the first convolution than scale them.
    """

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor):
        try:
            self.graph = fx.symbolic_trace(network)
        except Exception as error:  # tracing runs the network's own code, which may raise anything
            raise NotQuantizableError(f"the network cannot be traced: {error}") from error
        fold_batch_norm(self.graph)
        self.modules = dict(self.graph.named_modules())
        where = next(network.parameters()).device
        scale, shift = scale.to(where), shift.to(where)
        self._scale, self._shift = scale, shift
        *nodes, output = self.graph.graph.nodes
        self.returned: Sequence[fx.Node] = output.args[0]
        behind: set[fx.Node] = set()  # convolutions, and what depends on one
        for node in nodes:
            if self._is_convolution(node) or behind & set(node.all_input_nodes):
                behind.add(node)
        self.nodes = [node for node in nodes if node in behind]
        # Convolutions that take in pixels, and the scale and shift (3,) by which each is given them.
        self.first = {
            node: self._affine(node.args[0], scale, shift)
            for node in self.nodes
            if self._is_convolution(node) and node.args[0] not in behind
        }
        used = {source for node in self.nodes if node not in self.first for source in node.all_input_nodes}
        if not self.first or not (used | set(self.returned)) <= behind | {n for n in nodes if n.op == "get_attr"}:
            raise NotQuantizableError("the network uses its pixels elsewhere than in its first convolution")
        self._take_in()
        self._find_places()

    def observe(self, batches: Iterable[Tensor]) -> dict[str, tuple[float, ...]]:
        """The range to be kept at every place, and the means there, of standardised images (n, 3, h, w), float32."""
        watcher = _Watcher(self.graph, {node.name for node in self.places})
        with torch.inference_mode():
            for images in batches:
                watcher.run(images)
                pixels = (images.permute(0, 2, 3, 1) + self._shift) / self._scale
                watcher.means.setdefault(PIXELS, []).append(pixels.mean(dim=(0, 1, 2)).cpu())
        return watcher.found()

    def steps(self, ranges: Ranges) -> dict[fx.Node, Steps]:
        """The steps at every place; places that are joined share theirs.

        Raises
        ------
        ValueError
            If the ranges are not those of this network.
        """
        if set(ranges) != {PIXELS, *(node.name for node in self.places)}:
            raise ValueError("the ranges of int8 are not those of this network")
        joint: dict[fx.Node, tuple[float, float]] = {}
        for node in self.places:
            low, high = (float(end) for end in ranges[node.name][:2])
            if not -1e9 < low <= high < 1e9:
                raise ValueError(f"the range of {node.name} is {low, high}")
            others = joint.get(self._root(node), (0.0, 0.0))
            joint[self._root(node)] = min(low, others[0]), max(high, others[1])
        return {node: Steps.spanning(*joint[self._root(node)]) for node in self.places}

    def _take_in(self) -> None:
        """Find what a convolution is computed together with: `tail`, the node it gives, and `added` to it before."""
        self.tail: dict[fx.Node, fx.Node] = {}
        self.added: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            if not self._is(node, (), _SUMS) or len(node.args) != 2 or node.kwargs:
                continue
            for convolution, other in (node.args, node.args[::-1]):
                alone = self._is_convolution(convolution) and len(convolution.users) == 1
                if alone and isinstance(other, fx.Node) and convolution not in self.added and other is not convolution:
                    self.added[convolution], self.tail[convolution] = other, node
                    break
        for node in self.nodes:
            if self._is_convolution(node):
                tail = self.tail.setdefault(node, node)
                user = next(iter(tail.users))
                if len(tail.users) == 1 and self._is(user, (nn.ReLU,), _RELUS):
                    self.tail[node] = user
                elif len(tail.users) == 1 and self._is(user, (nn.ReLU6,), ()) and self._feeds_convolutions(user):
                    self.tail[node] = user  # what is stored ends at its highest value, which is at most 6

    def _find_places(self) -> None:
        """Find what is stored as integers (`places`), and what of it has to share its steps."""
        integer = set(self.tail.values())
        self._home: dict[fx.Node, fx.Node] = {}
        # Sums are stored too, since oneDNN writes them where their second input was.
        places: set[fx.Node] = {*self.added.values(), *(self.tail[node] for node in self.added)}
        self.kept: set[fx.Node] = set()  # nodes that are computed by moving integers about
        for node in self.nodes:
            if self._is_convolution(node) and node not in self.first:
                places.add(node.args[0])
            moves = self._is(node, (nn.MaxPool2d,), _MAXIMA) or self._is(node, (), _JOINS)
            if moves and all(source in integer for source in node.all_input_nodes):
                if not self._is(node, (), _JOINS):
                    self.window(node)
                integer.add(node)
                self.kept.add(node)
                places |= {node, *node.all_input_nodes}
                for source in node.all_input_nodes:
                    if self._root(source) is not self._root(node):
                        self._home[self._root(source)] = self._root(node)
        self.places = [node for node in self.nodes if node in places]

    def window(self, node: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], bool]:
        """Side, stride and padding of a maximum, and whether the last window may leave the picture."""
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        if node.op == "call_module":
            given = {name: getattr(self.modules[node.target], name) for name in names}
        else:
            given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        if given.get("return_indices") or given.get("dilation", 1) not in (1, (1, 1)):
            raise NotQuantizableError(f"{node.name} takes maxima of a kind that is not known here")
        side = _pair(given["kernel_size"])
        return side, _pair(given.get("stride") or side), _pair(given.get("padding", 0)), bool(given.get("ceil_mode"))

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self._home:
            node = self._home[node]
        return node

    def _feeds_convolutions(self, node: fx.Node) -> bool:
        return all(self._is_convolution(user) for user in node.users)

    def _is_convolution(self, node: Any) -> bool:
        module = self.modules.get(node.target) if isinstance(node, fx.Node) and node.op == "call_module" else None
        return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def _is(self, node: Any, modules: tuple[type[nn.Module], ...], functions: tuple[Any, ...]) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[node.target], modules)
        return node.op in ("call_function", "call_method") and node.target in functions

    def _affine(self, node: Any, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift (3,) that bring pixels to the values of `node`."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for other in self.graph.graph.nodes:
            copies[other] = graph.node_copy(other, copies.__getitem__)
            if other is node:
                break
        graph.output(copies[node])
        before = fx.GraphModule(self.graph, graph)

        def given(pixels: Tensor) -> Tensor:
            return before((pixels * scale - shift).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        with torch.inference_mode():
            start = given(scale.new_zeros(1, 2, 2, 3))
            slope = (given(scale.new_full((1, 2, 2, 3), 255.0)) - start) / 255
            trial = torch.rand(4, 2, 2, 3, generator=torch.Generator().manual_seed(0)).to(scale.device) * 255
            same = start.shape == (1, 2, 2, 3) and torch.allclose(given(trial), trial * slope + start, atol=1e-4)
        if not same or not (slope > 0).all():
            raise NotQuantizableError(
                "the network does more to its pixels before the first convolution than scale them"
            )
        return slope[0, 0, 0].cpu(), -start[0, 0, 0].cpu()


@dataclass(frozen=True)
class _Step:
    """One value of the network: its node, those it is computed from (None is the pixels), and how.

    `overwritten` is a source in whose memory it is written.
    """

    node: fx.Node
    sources: tuple[Any, ...]
    compute: Callable[..., Any]
    overwritten: fx.Node | None = None


class IntegerNetwork:
    """A network computed in integers: uint8 RGB images in, the layers in use out, as the float32 network gives them.

    Parameters
    ----------
    blueprint : Blueprint
    ranges : mapping of place to (low, high, means of the channels)
        See `Blueprint.observe`.
    engine : "onednn" or "reference"
    device : torch.device
    batch_size : int
        Images of a full batch. Fewer are computed one by one: weights are laid out in memory for a number of images.

    Raises
    ------
    ValueError
        If the ranges are not those of this network.
    """

    def __init__(
        self, blueprint: Blueprint, ranges: Ranges, engine: str, device: torch.device, *, batch_size: int | None = None
    ):
        self.engine, self.device, self.batch_size = engine, device, batch_size
        self._made_of = blueprint, ranges
        self._ranges = ranges
        self._steps = blueprint.steps(ranges)
        self._returned = blueprint.returned
        graph = blueprint.graph.to(device)
        by_tail = {tail: node for node, tail in blueprint.tail.items()}
        # What a convolution takes in is computed with it, where the last of it stands.
        within = set(blueprint.tail) | {user for node in blueprint.added for user in node.users}
        self._program: list[_Step] = []
        for node in blueprint.nodes:
            if node in by_tail:
                self._program.append(self._convolution(blueprint, by_tail[node]))
            elif node in within:
                continue
            elif node in blueprint.kept:
                self._program.append(self._moving(blueprint, node))
            else:
                self._program.append(self._real(graph, node))
        last = {source: i for i, step in enumerate(self._program) for source in step.sources}
        last.update({node: len(self._program) for node in self._returned})
        self._done = [{s for s in step.sources if last[s] == i} for i, step in enumerate(self._program)]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Layers in float32, (n, c, h', w') or (n, c), of uint8 images (n, h, w, 3)."""
        if self.batch_size is not None and len(images) not in (1, self.batch_size):
            parts = [self(image) for image in images.split(1)]
            return [torch.cat(layers) for layers in zip(*parts, strict=True)]
        values: dict[fx.Node | None, Any] = {None: images.permute(0, 3, 1, 2)}
        for step, done in zip(self._program, self._done, strict=True):
            given = [
                values[source].clone() if source is step.overwritten and source not in done else values[source]
                for source in step.sources
            ]
            for source in done:
                del values[source]
            values[step.node] = step.compute(*given)
        return [self._as_real(node, values[node]) for node in self._returned]

    def by(self, engine: str) -> IntegerNetwork:
        """The same network, computed by another engine."""
        return IntegerNetwork(*self._made_of, engine, self.device, batch_size=self.batch_size)

    # An export writes these two in operators of its own.

    def kernel(self, convolution: Convolution) -> Kernel:
        """What computes a convolution."""
        return make_kernel(convolution, self.engine, self.device)

    def maxima(
        self, images: Tensor, side: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil: bool
    ) -> Tensor:
        """`max_pool2d` of uint8 (n, c, h, w)."""
        return _maxima(images, side, stride, padding, ceil)

    def _convolution(self, blueprint: Blueprint, node: Any) -> _Step:
        module: Any = blueprint.modules[node.target]
        weight = module.weight.detach().cpu().float()
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().cpu().float()
        source, padding, border = Steps(1.0), module.padding, None
        if node in blueprint.first:
            slope, shift = blueprint.first[node]
            bias = bias - (weight * shift.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
            weight = weight * slope.view(1, -1, 1, 1)
            # Around the picture lies what the network would be given as 0, to the nearest grey level.
            border = (shift / slope).round().clamp(0, 255).to(self.device, torch.uint8)
        else:
            source = self._steps[node.args[0]]
        scale = (weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / 127).view(-1, 1, 1, 1)
        rounded = (weight / scale).round()
        place = PIXELS if border is not None else node.args[0].name
        bias = bias + _lost(weight - rounded * scale, self._ranges[place][2:], module.groups)
        tail, added = blueprint.tail[node], blueprint.added.get(node)
        kernel = self.kernel(
            Convolution(
                rounded.to(torch.int8),
                scale.flatten(),
                bias,
                source,
                self._steps.get(tail),
                None if added is None else self._steps[added],
                blueprint._is(tail, (nn.ReLU, nn.ReLU6), _RELUS),
                module.stride,
                (0, 0) if border is not None else padding,
                module.dilation,
                module.groups,
            )
        )
        if border is not None:
            return _Step(tail, (None,), lambda images: kernel(_bordered(images, padding, border), None))
        if added is None:
            return _Step(tail, (node.args[0],), lambda images: kernel(images, None))
        return _Step(tail, (node.args[0], added), kernel, overwritten=added)

    def _moving(self, blueprint: Blueprint, node: Any) -> _Step:
        """Maxima and concatenation of integers."""
        sources = tuple(node.all_input_nodes)
        if blueprint._is(node, (), _JOINS):
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            return _Step(node, sources, lambda *parts: torch.cat(parts, dim=dim))
        side, stride, padding, ceil = blueprint.window(node)
        return _Step(node, sources, lambda images: self.maxima(images, side, stride, padding, ceil))

    def _real(self, graph: fx.GraphModule, node: Any) -> _Step:
        """Anything else, in float32."""
        sources = tuple(source for source in node.all_input_nodes)
        interpreter = fx.Interpreter(graph)

        def compute(*values: Any) -> Any:
            real = {s: self._as_real(s, value) for s, value in zip(sources, values, strict=True)}
            args = fx.node.map_arg(node.args, real.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, real.__getitem__)
            result = getattr(interpreter, node.op)(node.target, args, kwargs)
            return self._steps[node].quantized(result) if node in self._steps else result

        return _Step(node, sources, compute)

    def _as_real(self, node: fx.Node, value: Any) -> Any:
        return self._steps[node].real(value) if node in self._steps else value


class _Watcher(fx.Interpreter):
    """Runs a graph, and keeps values of some nodes: a sample, the lowest and highest, and the means of channels."""

    def __init__(self, graph: fx.GraphModule, names: set[str]):
        super().__init__(graph)
        self.names = names
        self.values: dict[str, list[Tensor]] = {name: [] for name in names}
        self.means: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            rows = result.permute(0, 2, 3, 1).reshape(-1, result.shape[1]) if result.dim() == 4 else result
            values = rows.flatten()
            ends = torch.stack(values.aminmax())
            self.values[n.name].append(torch.cat([values[:: max(1, len(values) // _SAMPLE)], ends]).float().cpu())
            self.means.setdefault(n.name, []).append(rows.mean(dim=0).cpu())
        return result

    def found(self) -> dict[str, tuple[float, ...]]:
        """By name, the range in which 256 steps round the values with the least squared error, and the means.

        Beyond it values are cut off; most of a wider one's steps would serve a few of them.
        """
        means = {
            name: tuple(float(f"{mean:.6g}") for mean in torch.stack(parts).mean(dim=0).tolist())
            for name, parts in self.means.items()
        }
        found: dict[str, tuple[float, ...]] = {PIXELS: (0.0, 255.0, *means[PIXELS])}
        for name, parts in sorted(self.values.items()):  # in an order that is the same in every process
            values = torch.cat(parts)
            low, high = (float(end) for end in values.aminmax())
            errors = {}
            for share in _SHARES:
                steps = Steps.spanning(share * low, share * high)
                errors[share] = float((steps.real(steps.quantized(values)) - values).square().mean())
            best = min(_SHARES, key=errors.__getitem__)
            found[name] = best * low, best * high, *means[name]
        return found


def _lost(rest: Tensor, means: Sequence[float], groups: int) -> Tensor:
    """What the average output (o,) loses by the part of the weights (o, i / groups, kh, kw) that rounding left over."""
    if len(means) != groups * rest.shape[1]:
        raise ValueError("the ranges of int8 are not those of this network")
    average = torch.tensor(means, dtype=torch.float32).view(groups, 1, -1)
    if not torch.isfinite(average).all():
        raise ValueError("the means of int8 are no numbers")
    return (rest.sum(dim=(2, 3)).view(groups, -1, rest.shape[1]) * average).sum(dim=2).flatten()


def _bordered(images: Tensor, padding: tuple[int, ...], border: Tensor) -> Tensor:
    """Images (n, 3, h, w) with a border in the colour (3,), channels last in memory."""
    down, right = padding
    framed, colour = images.permute(0, 2, 3, 1), border[None, None, None]
    for dim, width in ((1, down), (2, right)):
        if width:
            side = colour.expand(*(framed.shape[i] if i != dim else width for i in range(3)), 3)
            framed = torch.cat([side, framed, side], dim=dim)
    return framed.contiguous().permute(0, 3, 1, 2)


def _maxima(
    images: Tensor, side: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil: bool
) -> Tensor:
    """`max_pool2d` of uint8, which torch (2.14) refuses beyond 255 pixels: along one axis, then along the other."""
    for axis in (0, 1):
        length, dim = images.shape[2 + axis], 2 + axis
        span = length + 2 * padding[axis] - side[axis]
        count = (-(-span // stride[axis]) if ceil else span // stride[axis]) + 1
        if ceil and (count - 1) * stride[axis] >= length + padding[axis]:
            count -= 1  # a window must begin inside the picture or its left border
        before, needed = padding[axis], (count - 1) * stride[axis] + side[axis]
        if before or needed > length:  # 0 is the least there is, so it is never the maximum
            ends = (before, max(0, needed - before - length))
            images = F.pad(images, (*ends, 0, 0) if axis else (0, 0, *ends))
        parts = [images.narrow(dim, i, needed - side[axis] + 1) for i in range(side[axis])]
        steps = [part[:, :, :: stride[0]] if axis == 0 else part[:, :, :, :: stride[1]] for part in parts]
        images = steps[0]
        for other in steps[1:]:
            images = torch.maximum(images, other)
    return images.contiguous(memory_format=torch.channels_last)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
