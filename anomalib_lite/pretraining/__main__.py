"""Rebuild the built-in network's weights from a seed.

    python -m anomalib_lite.pretraining --teachers FOLDER -o builtin.safetensors --work work

Draws a pool of formula images, trains, and prints the error on formula images it has not seen. A run that was killed
goes on from its last checkpoint in the `--work` folder. With `--road classes` no teacher is needed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_lite.embedding.builtin import build_builtin
from anomalib_lite.embedding.network import DEPTHS, WIDTHS, SmallNetwork
from anomalib_lite.embedding.pixels import standardised
from anomalib_lite.embedding.weights import Weights, fingerprint, weights_in
from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.machine.hardware import pick_device, pick_dtype
from anomalib_lite.pretraining import classification, distillation, scenes
from anomalib_lite.pretraining.augmentation import augmented, disturbed, grained
from anomalib_lite.pretraining.growing import begin_with
from anomalib_lite.pretraining.pool import draw_pool
from anomalib_lite.pretraining.training import train

_HELD_OUT = 512  # pool images never trained on
_CLASSES = 600
_IDENTITY = ("road", "images", "pool_side", "side", "batch", "seed", "widths", "depths")
"""Arguments that tell one run from another, beside those that `train` is given."""


def main() -> None:
    arguments = _parse()
    device = pick_device(arguments.device)
    dtype = pick_dtype("auto", device)
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    network = SmallNetwork(widths=arguments.widths, depths=arguments.depths, normalize=True)
    batches = Batches(arguments, device)
    identity = {name: getattr(arguments, name) for name in _IDENTITY}
    if arguments.begin is not None:
        trained_before = build_builtin(arguments.begin)
        identity["begin"] = fingerprint(trained_before)
        begin_with(network, trained_before.state_dict(), _shown(batches.train(-20)[1]).cpu())
    if arguments.road == "teacher":
        teacher = distillation.Teacher(_weights_of_teachers(arguments), arguments.side, device, arguments.batch)
        identity["teachers"] = [embedder.fingerprint for embedder in teacher.embedders]
        teacher.calibrate([batches.train(-1 - i)[1] for i in range(16)])
        trained: nn.Module = network
        loss_of: Loss = functools.partial(_distillation_loss, teacher)
        export: Export = distillation.exported
    else:
        trained = classification.FormulaClassifier(network, _CLASSES)
        loss_of, export = _classification_loss, classification.exported
    trained = trained.to(device).to(memory_format=torch.channels_last)

    def report(step: int, loss: float, averaged: nn.Module, seconds: float) -> None:
        with torch.inference_mode():
            held_out = np.mean([float(loss_of(averaged, *batches.held_out(i))) for i in range(8)])
        print(f"step {step}: loss {loss:.4f}, held out {held_out:.4f}, {seconds:.0f} s", flush=True)
        save(export(averaged), arguments.output)

    train(
        trained,
        lambda network, step: loss_of(network, *batches.train(step)),
        steps=arguments.steps,
        lr=arguments.lr,
        optimizer=arguments.optimizer,
        dtype=dtype,
        checkpoint=arguments.work / f"{arguments.output.stem}.checkpoint",
        report=report,
        report_every=arguments.report_every,
        identity=identity,
    )


Loss = Callable[..., Tensor]
Export = Callable[..., SmallNetwork]


class Batches:
    """Training and held-out batches as functions of their number.

    Each is uint8 crops (n, side, side, 3) for the network that is trained, the same crops for its teachers, and pool
    indices (n,). In training the network sees them disturbed: it learns to look past what its teachers did not see.
    """

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        draw = scenes.scene if arguments.road == "teacher" else _labelled
        path = arguments.work / f"{arguments.road}-{arguments.images}-{arguments.pool_side}-{arguments.seed}.npy"
        first = arguments.seed * 100_000_000
        pool = draw_pool(path, draw, arguments.images, arguments.pool_side, first=first)
        self.pool = pool.to(device)
        self.mix = arguments.road == "teacher"  # a mixture has no one class
        self.side, self.batch, self.seed = arguments.side, arguments.batch, arguments.seed

    def train(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        crops, indices, generator = self._draw(2 * (step + 10_000), _HELD_OUT, len(self.pool))
        if self.mix:
            crops = grained(crops, generator)
        return _as_bytes(disturbed(crops, generator)), _as_bytes(crops), indices

    def held_out(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        crops, indices, _ = self._draw(2 * number + 1, 0, _HELD_OUT)
        return _as_bytes(crops), _as_bytes(crops), indices

    def _draw(self, number: int, low: int, high: int) -> tuple[Tensor, Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        indices = torch.randint(low, high, (self.batch,), generator=generator)
        images = self.pool[indices.sort().values.to(self.pool.device)]
        return augmented(images, self.side, generator, mix=self.mix), indices.sort().values, generator


def _as_bytes(images: Tensor) -> Tensor:
    """(n, 3, h, w) in [0, 1] to uint8 (n, h, w, 3)."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).contiguous()


def _shown(crops: Tensor) -> Tensor:
    """uint8 crops (n, h, w, 3) as the network that is trained sees them."""
    return standardised(crops.permute(0, 3, 1, 2).float() / 255)


def _weights_of_teachers(arguments: argparse.Namespace) -> dict[str, Weights]:
    files = weights_in(arguments.teachers).items()
    found = {name: path for name, path in files if distillation.network_of(name) in distillation.TEACHERS}
    wanted = arguments.teacher or list(found)
    if missing := set(wanted) - set(found):
        raise FileNotFoundError(f"{arguments.teachers} has no weights of {', '.join(sorted(missing))}")
    return {name: found[name] for name in wanted}


def save(network: SmallNetwork, path: Path) -> None:
    """Write the network in fp16, as it ships."""
    from safetensors.torch import save as serialized

    write_atomically(path, serialized({key: value.half().contiguous() for key, value in network.state_dict().items()}))


def _distillation_loss(
    teacher: distillation.Teacher, network: nn.Module, seen: Tensor, crops: Tensor, indices: Tensor
) -> Tensor:
    loss = distillation.relative_loss if network.training else distillation.distillation_loss
    return loss(network(_shown(seen)), teacher(crops))


def _classification_loss(network: nn.Module, seen: Tensor, crops: Tensor, indices: Tensor) -> Tensor:
    return F.cross_entropy(network(_shown(seen)).float(), (indices % _CLASSES).to(seen.device))


def _labelled(seed: int, side: int) -> np.ndarray:
    return scenes.texture(seed % _CLASSES, seed, side)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--road", choices=["teacher", "classes"], default="teacher")
    parser.add_argument("--teachers", type=Path, help="folder of torchvision state dicts, named as resnet18.pth")
    parser.add_argument("--teacher", nargs="+", help="which of them; default: all")
    parser.add_argument("--widths", type=int, nargs=3, default=WIDTHS, help="channels at strides 4, 8 and 16")
    parser.add_argument("--depths", type=int, nargs=3, default=DEPTHS, help="residual blocks at each")
    parser.add_argument("--begin", type=Path, help="weights of a trained network, as wide or narrower, to begin with")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the weights, .safetensors")
    parser.add_argument("--work", type=Path, default=Path("pretraining-work"), help="pool and checkpoint")
    parser.add_argument("--images", type=int, default=16_000, help="images in the pool")
    parser.add_argument("--pool-side", type=int, default=160, help="their side in pixels")
    parser.add_argument("--side", type=int, default=128, help="side of the crops trained on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--report-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    arguments.widths, arguments.depths = tuple(arguments.widths), tuple(arguments.depths)
    if arguments.road == "teacher" and arguments.teachers is None:
        parser.error("--road teacher needs --teachers, a folder of weights")
    return arguments


if __name__ == "__main__":
    main()
