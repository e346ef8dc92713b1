"""Which arithmetic a network runs quickest in on this machine: float32, bf16 or 8-bit integers, by measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from anomalib_lite.embedding.quantization import Blueprint, IntegerNetwork, NotQuantizableError
from anomalib_lite.machine.hardware import wait_for, worth_trying
from anomalib_lite.machine.measuring import measured, quickest

# Integers first: their scores are the same on any machine, and float32's nearly.
ORDER = ("int8", "float32", "bfloat16")
_IMAGES = 4


class Measurable(Protocol):
    """What is known of an embedder before it is settled what it computes in; see `embedder.Embedder`."""

    backbone: str
    layers: tuple[str, ...]
    device: torch.device
    engine: str
    weight_count: int
    pixel_scale: tuple[torch.Tensor, torch.Tensor]

    @property
    def image_size(self) -> tuple[int, int]: ...

    def fresh_network(self) -> torch.nn.Module: ...

    def preprocess(self, images: np.ndarray) -> torch.Tensor: ...


def pick_arithmetic(embedder: Measurable) -> str:
    """The quickest arithmetic for a network that will be calibrated, of those that work here."""
    return quickest(arithmetic_times(embedder), ORDER)


def arithmetic_times(embedder: Measurable) -> dict[str, float]:
    """Milliseconds of a pass of four images, by arithmetic, measured once per machine, network and size.

    Integers are measured only where kernels for them work.
    """
    place = f"{embedder.device.type}, {embedder.engine}"
    layers = "+".join(embedder.layers)
    height, width = embedder.image_size
    question = (
        f"network on {place}: {embedder.backbone} {layers} {embedder.weight_count}, {_IMAGES} × {height} × {width}"
    )
    return measured(question, lambda: _trials(embedder), among="float32")


def _trials(embedder: Measurable) -> dict[str, Callable[[], object]]:
    size = (_IMAGES, *embedder.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, size=size, dtype=np.uint8)
    network = embedder.fresh_network().eval().to(embedder.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    short = embedder.fresh_network().eval().to(embedder.device, torch.bfloat16)
    short.to(memory_format=torch.channels_last)
    pixels = embedder.preprocess(images).float()

    def run(compute: Callable[[], object]) -> Callable[[], object]:
        def trial() -> None:
            with torch.inference_mode():
                compute()
            wait_for(embedder.device)

        return trial

    trials = {"float32": run(lambda: network(pixels)), "bfloat16": run(lambda: short(pixels.bfloat16()))}
    if "bfloat16" not in worth_trying(embedder.device):
        del trials["bfloat16"]
    if embedder.engine == "onednn":
        try:
            blueprint = Blueprint(network, *embedder.pixel_scale)
            integers = IntegerNetwork(blueprint, blueprint.observe([pixels]), "onednn", embedder.device)
        except NotQuantizableError:
            return trials
        trials["int8"] = run(lambda: integers(torch.from_numpy(images)))
    return trials
