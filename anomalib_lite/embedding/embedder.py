"""From images to embeddings: preprocessing, the truncated forward pass, and pooling to patches or one vector.

uint8 RGB batches (n, h, w, 3) go in; float32 patch grids (n, gh, gw, d) or global vectors (n, d) come out.
Preprocessing lives here and nowhere else, so that fitting, scoring and benchmarks cannot drift apart.

Patches: every layer is averaged over 3 × 3 neighbours (stride 1, padded) at its own resolution, then all
are brought to the finest grid in use, at finest one patch per 8 pixels, and their channels concatenated (Roth et al.,
PatchCore, CVPR 2022, section 3.1). Global: mean and standard deviation of every layer over the image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_lite.embedding import backbones
from anomalib_lite.embedding.builtin import BUILTIN, build_builtin
from anomalib_lite.embedding.weights import CACHED, IMAGENET, Weights, fingerprint
from anomalib_lite.machine.hardware import pick_device, pick_dtype
from anomalib_lite.machine.processes import check_process

Level = Literal["patch", "global"]

# Finer grids cost memory and time with the square and describe pixels rather than parts.
_FINEST_STRIDE = 8
LARGEST_SIDE = 2048  # a model file from a stranger must not ask for a picture that fills the memory
# Pixels of one pass: larger batches take more memory, and are no faster. Eight images of 512 × 512.
_PASS_PIXELS = 1 << 21
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Embedder:
    """Embeds images with one backbone at one level.

    Parameters
    ----------
    backbone : str
        "builtin" (ships with the package, no download) or the name of a torchvision classification model.
    layers : sequence of str or comma-separated str, optional
        Layers to combine; "penultimate" for the classic vector before the classifier (global level only).
        Default: the backbone's own choice in `embedding.backbones.BACKBONES`.
    level : "patch" or "global"
        One vector per patch of the image, or one per image.
    weights : "imagenet", path, or state dict
        Where a torchvision backbone's weights come from; see `embedding.weights.load_weights`.
    image_size : int, optional
        Images are resized to this square, in pixels. Default: the backbone's own.
    device, dtype : str
        "auto" chooses CUDA when there is one, and bf16 where the hardware computes it.
    batch_size : int
        Images per forward pass; changes speed and memory, not results beyond float rounding.

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
        image_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
    ):
        if level not in ("patch", "global"):
            raise ValueError(f"level={level!r}; choose 'patch' or 'global'")
        self.backbone = backbone
        self.level = level
        self.image_size = backbones.default_input_size(backbone) if image_size is None else image_size
        check_image_size(self.image_size)
        self.batch_size = max(1, min(batch_size, _PASS_PIXELS // self.image_size**2))
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        if backbone == BUILTIN:
            if layers is not None:
                raise ValueError("the built-in backbone has its own layers; leave them out")
            self.layers: tuple[str, ...] = ()
        else:
            self.layers = backbones.resolve_layers(backbone, layers)
            if level == "patch" and backbones.PENULTIMATE in self.layers:
                raise ValueError("the penultimate layer has one vector per image; use level='global'")
        self._weights = weights
        network = self.fresh_network()
        self.fingerprint = fingerprint(network)
        network.eval().to(self.device, self.dtype)
        self.network = network.to(memory_format=torch.channels_last)
        shape = (1, 1, 1, 3)
        mean, deviation = torch.tensor(_IMAGENET_MEAN), torch.tensor(_IMAGENET_STD)
        self._scale = (1 / (255 * deviation)).view(shape).to(self.device)
        self._shift = (mean / deviation).view(shape).to(self.device)

    def fresh_network(self) -> nn.Module:
        """Another copy of the network, float32 and in evaluation mode, to be changed or stored."""
        if self.backbone == BUILTIN:
            return build_builtin(self._weights)
        return backbones.build(self.backbone, self.layers, IMAGENET if self._weights is None else self._weights)

    def at_level(self, level: Level) -> Embedder:
        """The same network, pooled at another level; shares its parameters."""
        if level == "patch" and backbones.PENULTIMATE in self.layers:
            raise ValueError("the penultimate layer has one vector per image; use level='global'")
        other = copy.copy(self)
        other.level = level
        return other

    def parameters(self) -> dict[str, np.ndarray]:
        """Parameters in use, float32, to be stored with a model; read again, since they may run in bf16 here."""
        return {key: tensor.numpy() for key, tensor in self.fresh_network().state_dict().items()}

    def describe(self) -> dict[str, object]:
        """What another machine needs to build the same embedder, JSON-able."""
        return {
            "backbone": self.backbone,
            "layers": list(self.layers),
            "level": self.level,
            "image_size": self.image_size,
            "fingerprint": self.fingerprint,
        }

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embed one batch of uint8 RGB images (n, h, w, 3), resized to (image_size, image_size) already.

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
        check_process()
        with torch.inference_mode():
            outputs = self.network(self.preprocess(images))
            whole = pool_whole(outputs).cpu().numpy()
            patches = _patches(outputs, self.image_size) if self.level == "patch" else None
            return None if patches is None else patches.float().cpu().numpy(), whole

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one image's embedding: (gh, gw, d) at the patch level, (d,) at the global level; without a pass."""
        empty = {key: tensor.to("meta") for key, tensor in self.network.state_dict().items()}
        pixels = torch.empty(1, 3, self.image_size, self.image_size, device="meta", dtype=self.dtype)
        with torch.inference_mode():
            outputs = torch.func.functional_call(self.network, empty, (pixels,))
            pooled = _patches(outputs, self.image_size) if self.level == "patch" else pool_whole(outputs)
        return tuple(pooled.shape[1:])

    def preprocess(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, 3) to the network's standardised input (n, 3, h, w), channels last in memory."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return (pixels * self._scale - self._shift).to(self.dtype).permute(0, 3, 1, 2)


def weights_of(backbone: str, given: Weights | None, *, download: bool) -> Weights | None:
    """Weights to open a stored model with: those given, else the backbone's own, over the network only if told to."""
    if given is not None or backbone == BUILTIN:
        return given
    return IMAGENET if download else CACHED


def check_image_size(side: int, *, smallest: int = 32) -> None:
    """Raise ValueError for a side in pixels that no network can see, or that would fill the memory."""
    if not isinstance(side, int | np.integer) or not smallest <= side <= LARGEST_SIDE:
        raise ValueError(f"image_size={side}; networks take a whole number of pixels, {smallest} to {LARGEST_SIDE}")


def standardised(images: Tensor) -> Tensor:
    """RGB in [0, 1] (n, 3, h, w) as ImageNet's networks want it, channels last in memory."""
    mean, deviation = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
    return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)


def _patches(outputs: list[Tensor], image_size: int) -> Tensor:
    """Locally averaged layers on one grid, concatenated: (n, gh, gw, d)."""
    averaged = [F.avg_pool2d(output, kernel_size=3, stride=1, padding=1) for output in outputs]
    side = min(max(level.shape[-1] for level in averaged), image_size // _FINEST_STRIDE)
    return torch.cat([_to_grid(level, side) for level in averaged], dim=1).permute(0, 2, 3, 1)


def _to_grid(level: Tensor, side: int) -> Tensor:
    """Resize (n, c, h, w) to a square grid: averaging when it shrinks, bilinear when it grows."""
    if level.shape[-1] == side:
        return level
    if level.shape[-1] > side:
        return F.adaptive_avg_pool2d(level, side)
    return F.interpolate(level, size=(side, side), mode="bilinear", align_corners=False)


def pool_whole(outputs: list[Tensor]) -> Tensor:
    """Mean and standard deviation of every layer over the image, (n, 2 × channels); vectors pass unchanged."""
    pooled: list[Tensor] = []
    for output in outputs:
        if output.dim() == 2:
            pooled.append(output.float())
            continue
        n, c, h, w = output.shape
        values = output.permute(0, 2, 3, 1).reshape(n, h * w, c).float()  # a variance in bf16 would lose its digits
        # Means as products, which use all of a processor: a third of the time of a mean over height and width.
        weights = values.new_full((n, 1, h * w), 1 / (h * w))
        mean = weights @ values  # (n, 1, c)
        variance = weights @ (values - mean) ** 2
        # Of a constant channel the root has no slope; the addend gives it one, and is far below rounding elsewhere.
        pooled += [mean[:, 0], (variance[:, 0] + 1e-12).sqrt()]
    return torch.cat(pooled, dim=1)
