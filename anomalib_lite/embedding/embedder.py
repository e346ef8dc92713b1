"""From images to embeddings: preprocessing, the truncated forward pass, in floats or integers, and pooling.

uint8 RGB batches (n, h, w, 3) go in; float32 patch grids (n, gh, gw, d) or global vectors (n, d) come out.
Preprocessing is done here (`pixels`) and nowhere else, so that fitting, scoring and benchmarks cannot drift apart. The
network runs in float32, bf16 or 8-bit integers (`quantization`), and its layers are pooled to patches or one vector
(`pooling`).

With `context` the coarsest layer comes a second time, of the images at half their size: what a patch is part of is then
in its vector too (two levels of an image pyramid: Adelson et al., RCA Engineer 29 (1984)).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from anomalib_lite.embedding import backbones
from anomalib_lite.embedding.arithmetic import pick_arithmetic
from anomalib_lite.embedding.builtin import BUILTIN, build_builtin
from anomalib_lite.embedding.joined import build_joined, joint_fingerprint, names_in
from anomalib_lite.embedding.network import CHANNELS, SmallNetwork
from anomalib_lite.embedding.pixels import IMAGENET_MEAN, IMAGENET_STD, both_sides, halved
from anomalib_lite.embedding.pooling import Features, finest_grid
from anomalib_lite.embedding.quantization import Blueprint, IntegerNetwork, NotQuantizableError, Ranges
from anomalib_lite.embedding.weights import IMAGENET, Weights
from anomalib_lite.images.framing import Frame
from anomalib_lite.machine.hardware import pick_device, pick_dtype
from anomalib_lite.machine.integers import EngineName, onednn_fault, pick_engine
from anomalib_lite.machine.processes import check_process

Level = Literal["patch", "global"]

# Pixels of one pass: larger batches take more memory, and are no faster. Eight images of 512 × 512.
_PASS_PIXELS = 1 << 21
# Share of a layer's length that integers may change it by. On metal_nut those of the built-in network change by 5 %, of
# ResNet18 by 6, of MobileNetV2 by 9.
_LARGEST_ERROR = 0.25


class Embedder:
    """Embeds images with one backbone at one level.

    Parameters
    ----------
    backbone : str
        "builtin" (ships with the package, no download), the name of a torchvision classification model, or several
        with a plus between, side by side: "builtin+mobilenet_v2" (`embedding.joined`).
    layers : sequence of str or comma-separated str, optional
        Layers to combine; "penultimate" for the classic vector before the classifier (global level only).
        Default: the backbone's own choice in `embedding.backbones.BACKBONES`.
    level : "patch" or "global"
        One vector per patch of the image, or one per image.
    weights : "imagenet", path, or state dict
        Where a torchvision backbone's weights come from; see `embedding.weights.load_weights`, of several
        `embedding.joined.build_joined`.
    image_size : int or (height, width), optional
        Pixels of the images that `embed` is given; one number for a square. Default: the backbone's own.
    device, dtype : str
        "auto" chooses CUDA when there is one, and of float32 and bf16 the quicker one (`machine.measuring`). "int8"
        computes in integers, once `calibrate` has shown it images, or `calibrated` was given what those left.
    engine : "auto", "onednn" or "reference"
        What computes integers; see `machine.integers`.
    batch_size : int
        Images per forward pass; changes speed and memory, not results beyond float rounding.
    context : float, not negative
        Patch level: weight of what the coarsest layer says of the images at half their size; 0 for none.
    to_be_calibrated : bool
        Whether `calibrate` will be called, so that "auto" may choose "int8" too.

    Raises
    ------
    ValueError
        If a name is unknown or "penultimate" is combined with the patch level.
    WeightsError
        If the weights cannot be had.
    """

    def __init__(
        self,
        backbone: str = BUILTIN,
        *,
        layers: str | Sequence[str] | None = None,
        level: Level = "patch",
        weights: Weights | None = None,
        image_size: int | tuple[int, int] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        engine: EngineName = "auto",
        batch_size: int = 8,
        context: float = 0.0,
        to_be_calibrated: bool = False,
    ):
        if not 0 <= context < 100:
            raise ValueError(f"context={context} is the weight of the images at half their size, from 0 on")
        self.context = float(context)
        if level not in ("patch", "global"):
            raise ValueError(f"level={level!r}; choose 'patch' or 'global', or 'both' for a detector")
        self.backbone = backbone
        self.level = level
        size = both_sides(backbones.default_input_size(backbone) if image_size is None else image_size)
        self.frame = Frame(size, stretches=True)
        self._shapes: dict[tuple[tuple[int, int], Level], tuple[int, ...]] = {}
        self._wanted_batch = batch_size
        self.device = pick_device(device)
        self._asked_for = engine
        self.engine = pick_engine(engine, self.device)
        if dtype not in ("auto", "int8"):
            dtype = _float_name(dtype, self.device)
        self.ranges: Ranges | None = None
        self._integers: IntegerNetwork | None = None
        self._integers_of_halves: IntegerNetwork | None = None  # laid out for another size
        self._names = names_in(backbone)
        if BUILTIN in self._names or len(self._names) > 1:
            if layers is not None:
                whose = "the built-in backbone" if backbone == BUILTIN else backbone
                raise ValueError(f"{whose} has its own layers; leave them out")
            self.layers: tuple[str, ...] = ()
        else:
            self.layers = backbones.resolve_layers(backbone, layers)
            if level == "patch" and backbones.PENULTIMATE in self.layers:
                raise ValueError("the penultimate layer has one vector per image; use level='global'")
        self._weights = weights
        network = self.fresh_network()
        self.fingerprint = joint_fingerprint(network)
        self.weight_count = sum(tensor.numel() for tensor in network.parameters())
        mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.pixel_scale = 1 / (255 * deviation), mean / deviation  # pixels are multiplied by, and then lowered by
        self._scale, self._shift = (values.to(self.device) for values in self.pixel_scale)
        self.dtype = "float32"
        if dtype == "auto":
            dtype = pick_arithmetic(self) if to_be_calibrated else _float_name("auto", self.device)
        self.dtype = dtype
        network.eval().to(self.device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        self.network = network.to(memory_format=torch.channels_last)

    def fresh_network(self) -> nn.Module:
        """Another copy of the network, float32 and in evaluation mode, to be changed or stored."""
        if len(self._names) > 1:
            return build_joined(self._names, self._weights)
        if self.backbone == BUILTIN:
            return build_builtin(self._weights)
        return backbones.build(self.backbone, self.layers, IMAGENET if self._weights is None else self._weights)

    def at_level(self, level: Level) -> Embedder:
        """The same network, pooled at another level; shares its parameters."""
        if level == "patch" and backbones.PENULTIMATE in self.layers:
            raise ValueError("the penultimate layer has one vector per image; use level='global'")
        return self._but(level=level)

    def framed(self, frame: Frame) -> Embedder:
        """The same network for pictures that come to it by another frame; shares its parameters."""
        return self if frame == self.frame else self._but(frame=frame)

    @property
    def takes_any_size(self) -> bool:
        """Whether pictures are shown to it as large as they are; networks of ImageNet do best at what they learnt."""
        return BUILTIN in self._names

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what it is shown at a time."""
        return self.frame.window

    @property
    def own_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of what it is shown at a time; (1, 1) at the global level."""
        shape = self.output_shape
        return (shape[0], shape[1]) if len(shape) == 3 else (1, 1)

    @property
    def batch_size(self) -> int:
        """Images per forward pass: as many as were asked for, and as the memory of a pass takes."""
        return max(1, min(self._wanted_batch, _PASS_PIXELS // (self.image_size[0] * self.image_size[1])))

    @property
    def awaits_calibration(self) -> bool:
        """Whether it computes in integers, and has not been shown images yet."""
        return self.dtype == "int8" and self._integers is None

    def uncalibrated(self) -> Embedder:
        """The same network, to be calibrated anew; shares its parameters."""
        return self._but(ranges=None, _integers=None, _integers_of_halves=None)

    def with_context(self, context: float) -> Embedder:
        """The same network with another weight of images at half their size; shares its parameters."""
        if not 0 <= context < 100:
            raise ValueError(f"context={context} is the weight of the images at half their size, from 0 on")
        return self if context == self.context else self.uncalibrated()._but(context=float(context), _shapes={})

    @property
    def looks_twice(self) -> bool:
        """Whether images are shown to the network at half their size too."""
        return self.context > 0 and self.level == "patch"

    def calibrate(self, images: np.ndarray) -> None:
        """Learn from uint8 images (n, h, w, 3), as for `embed`, what range the values at every place have.

        Where integers give embeddings that are too far from float32's, it goes on in float32, with a warning.

        Raises
        ------
        NotQuantizableError
            If the network is of a kind that cannot be brought to integers.
        RuntimeError
            In a process forked after its parent computed.
        """
        check_process()
        try:
            blueprint = Blueprint(self.network, *self.pixel_scale)
        except NotQuantizableError as error:
            raise NotQuantizableError(
                f"{self.backbone} cannot be computed in int8 ({error}); choose dtype='float32' or 'auto'"
            ) from error
        step = min(2, self.batch_size)  # values of every layer are looked at: few at a time take little memory
        batches = [images[start : start + step] for start in range(0, len(images), step)]
        if self.looks_twice:
            batches += [halved(batch) for batch in batches]
        with torch.inference_mode():
            self._use(blueprint, blueprint.observe(self.preprocess(batch) for batch in batches))
            trial = batches[0][:2]
            change = _relative_error(self._layers(trial), self.network(self.preprocess(trial)))
        if change > _LARGEST_ERROR:
            warnings.warn(
                f"8-bit integers change what {self.backbone} gives by {change:.0%}; it computes in float32 instead. "
                "Choose dtype='float32' to say so",
                stacklevel=2,
            )
            self.dtype, self.ranges, self._integers, self._integers_of_halves = "float32", None, None, None

    def calibrated(self, ranges: Ranges) -> Embedder:
        """The same network in integers, with the `ranges` that another was calibrated to.

        Raises
        ------
        ValueError
            If they are not those of this network.
        """
        other = self.uncalibrated()
        other._use(Blueprint(self.network, *self.pixel_scale), ranges)
        return other

    def in_floats(self) -> Embedder:
        """The same network in float32 or bf16, whichever is quicker here, if it would be calibrated; else itself."""
        if self.dtype != "int8":
            return self
        other = self.uncalibrated()
        other.dtype = _float_name("auto", self.device)
        if other.dtype == "bfloat16":
            network = self.fresh_network().eval().to(self.device, torch.bfloat16)
            other.network = network.to(memory_format=torch.channels_last)
        return other

    def _but(self, **changed: Any) -> Embedder:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__ | changed)
        return other

    def __getstate__(self) -> dict[str, Any]:  # what computes integers is made of functions, which cannot be sent
        return {**self.__dict__, "_integers": None, "_integers_of_halves": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.ranges is not None:
            self._use(Blueprint(self.network, *self.pixel_scale), self.ranges)

    def _use(self, blueprint: Blueprint, ranges: Ranges) -> None:
        if self.engine == "reference" and self._asked_for == "auto" and self.device.type == "cpu":
            warnings.warn(
                f"int8 is computed in float32 here, with the same scores but no quicker: {onednn_fault()}", stacklevel=3
            )
        self._integers = IntegerNetwork(blueprint, ranges, self.engine, self.device, batch_size=self.batch_size)
        if self.looks_twice:
            self._integers_of_halves = self._integers.by(self.engine)
        self.ranges, self.dtype = dict(ranges), "int8"

    def parameters(self) -> dict[str, np.ndarray]:
        """Parameters in use, float32, to be stored with a model; read again, since they may run in bf16 here."""
        return {key: tensor.numpy() for key, tensor in self.fresh_network().state_dict().items()}

    def describe(self) -> dict[str, object]:
        """What another machine needs to build the same embedder, JSON-able; but for the `ranges` of int8."""
        return {
            "backbone": self.backbone,
            "layers": list(self.layers),
            "level": self.level,
            "context": self.context,
            "frame": self.frame.to_dict(),
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
        }

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embed one batch of uint8 RGB images (n, h, w, 3), resized to `image_size` already.

        Returns
        -------
        float32 (n, gh, gw, d) at the patch level, (n, d) at the global level.
        """
        own, whole = self.embed_both(images)
        return whole if own is None else own

    def embed_both(self, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Embed one batch, as `embed` does: patches (n, gh, gw, d), None at the global level; and whole images (n, d).

        Raises
        ------
        RuntimeError
            In a process forked after its parent computed.
        """
        features = self.features(images)
        return None if self.level == "global" else features.patches(), features.whole()

    def features(self, images: np.ndarray) -> Features:
        """What the network says of one batch, as for `embed`, not pooled yet.

        Raises
        ------
        RuntimeError
            In a process forked after its parent computed.
        """
        check_process()
        with torch.inference_mode():
            layers = self._layers(images)
            own = len(layers)
            if self.looks_twice:
                layers = [*layers, self.context * self._layers(halved(images), of_halves=True)[-1]]
            return Features(layers, self.image_size, own)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what `embed` gives for one: (gh, gw, d) at the patch level, (d,) at the global level."""
        if (known := self._shapes.get((self.image_size, self.level))) is None:
            known = self._shapes[self.image_size, self.level] = self._output_shape()
        return known

    def _output_shape(self) -> tuple[int, ...]:
        if self.backbone == BUILTIN:
            sizes = SmallNetwork.map_sizes(*self.image_size)
            return self._shape_of([(channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)])
        # A pass without memory or arithmetic. The first of a process imports torch's tracing, 200 MB and a second.
        empty = {key: tensor.to("meta") for key, tensor in self.network.state_dict().items()}
        kind = next(iter(empty.values())).dtype
        pixels = torch.empty(1, 3, *self.image_size, device="meta", dtype=kind)
        with torch.inference_mode():
            outputs = torch.func.functional_call(self.network, empty, (pixels,))
        return self._shape_of([tuple(output.shape[1:]) for output in outputs])

    def _shape_of(self, layers: list[tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of an embedding of layers of the shapes (c, h, w), or (c,)."""
        if self.level == "patch":
            channels = sum(layer[0] for layer in [*layers, *layers[-1:] * self.looks_twice])
            return (*finest_grid([layer[1:] for layer in layers], self.image_size), channels)
        return (sum(layer[0] * (2 if len(layer) == 3 else 1) for layer in layers),)

    def preprocess(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, 3) to the network's standardised input (n, 3, h, w), channels last in memory."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        kind = torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        return (pixels * self._scale - self._shift).to(kind).permute(0, 3, 1, 2)

    def _layers(self, images: np.ndarray, *, of_halves: bool = False) -> list[Tensor]:
        if self.dtype != "int8":
            return self.network(self.preprocess(images))
        integers = self._integers_of_halves if of_halves else self._integers
        if integers is None:
            raise RuntimeError("an embedder with dtype='int8' is shown images by calibrate first")
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        try:
            return integers(pixels)
        except RuntimeError as error:
            if integers.engine == "reference":
                raise
            warnings.warn(
                f"engine 'onednn' failed ({str(error).strip().splitlines()[0]}); 'reference' goes on, which gives the "
                "same scores and takes longer",
                stacklevel=2,
            )
            integers = integers.by("reference")
            if of_halves:
                self._integers_of_halves = integers
            else:
                self._integers = integers
            return integers(pixels)


def _float_name(dtype: str, device: torch.device) -> str:
    return str(pick_dtype(dtype, device)).removeprefix("torch.")


def _relative_error(outputs: list[Tensor], expected: list[Tensor]) -> float:
    """The largest share, among the layers, that rounding changes of their length."""
    pairs = zip(outputs, expected, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12)) for a, b in pairs)
