"""What this machine computes with, and what was measured to be quickest on it: a table, for people and for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anomalib_lite.embedding import arithmetic
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.machine import measuring
from anomalib_lite.machine.hardware import DTYPES, dtype_times, pick_device
from anomalib_lite.machine.integers import onednn_fault
from anomalib_lite.machine.processes import check_process
from anomalib_lite.machine.threads import cpu_quota
from anomalib_lite.scoring import neighbors

SIZES = (256, 384, 512)
_BANKS = (4096, 16_384, 32_768)
_DIMENSION = 128


@dataclass(frozen=True)
class Choice:
    """What was measured of one thing, milliseconds by candidate, and what "auto" takes for it."""

    what: str
    milliseconds: dict[str, float]
    picked: str


@dataclass(frozen=True)
class Examination:
    """The machine, whether its integers can be used, and the choices made on it.

    Attributes
    ----------
    machine : what measurements depend on
    integers : why int8 cannot be quick here; empty where it can
    quota : cores' worth of time that a container allows, None for no limit
    cache : file that the measurements are kept in
    choices : list of Choice
    """

    machine: dict[str, str]
    integers: str
    quota: float | None
    cache: str
    choices: list[Choice]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def explain(self) -> str:
        """A text to read, with one table."""
        names = [
            name
            for name in ("int8", "float32", "bfloat16", "faiss")
            if any(name in c.milliseconds for c in self.choices)
        ]
        width = max(len(choice.what) for choice in self.choices)
        lines = [f"{key}: {value}" for key, value in self.machine.items() if value]
        integers = (
            f"not quick here: {self.integers}" if self.integers else "computed by torch (oneDNN), found exact here"
        )
        lines += [
            f"container's quota: {'none' if self.quota is None else f'{self.quota:g} cores'}",
            f"integers: {integers}",
            f"kept in: {self.cache}",
            "",
            f"{'milliseconds':{width}}  " + "".join(f"{name:>10}" for name in names) + "  auto takes",
        ]
        for choice in self.choices:
            times = "".join(
                f"{choice.milliseconds[name]:10.2f}" if name in choice.milliseconds else f"{'–':>10}" for name in names
            )
            lines.append(f"{choice.what:{width}}  {times}  {choice.picked}")
        return "\n".join(lines)


def examine(
    *,
    backbones: Sequence[str] = ("builtin", "resnet18"),
    sizes: Sequence[int] = SIZES,
    device: str = "auto",
    again: bool = False,
) -> Examination:
    """Measure what is not known yet, and tell everything.

    Parameters
    ----------
    backbones : names, see `Detector`; torchvision's are measured with random weights, which take as long
    sizes : sides of the pictures in pixels
    device : see `Detector`
    again : forget what was measured before

    Raises
    ------
    ValueError
        If there is no such backbone, size or device.
    """
    check_process()
    where = pick_device(device)
    if again:
        measuring.forget()
    choices = []
    for backbone in backbones:
        for size in sizes:
            weights = None if backbone == "builtin" else "random"
            embedder = Embedder(backbone, weights=weights, image_size=size, device=device, dtype="float32")
            times = arithmetic.arithmetic_times(embedder)
            picked = measuring.quickest(times, arithmetic.ORDER)
            choices.append(Choice(f"{backbone}, 4 pictures of {size} px", times, picked))
    for rows in _BANKS:
        times = neighbors.search_times(rows, _DIMENSION, where)
        what = f"search of {neighbors.TRIAL_QUERIES} in {rows} × {_DIMENSION}"
        choices.append(Choice(what, times, measuring.quickest(times, neighbors.ORDER)))
    times = dtype_times(where)
    choices.append(Choice("training, two convolutions", times, measuring.quickest(times, DTYPES)))
    return Examination(
        measuring.describe_machine(),
        onednn_fault() if where.type == "cpu" else f"it is for CPUs, and this computes on {where.type}",
        cpu_quota(),
        str(measuring.cache_file()),
        choices,
    )
