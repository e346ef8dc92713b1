"""The training loop: seeded, resumable, with one-cycle learning rates and averaged weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomalib_lite.files.checkpoints import load_checkpoint, save_checkpoint
from anomalib_lite.machine.hardware import autocast
from anomalib_lite.pretraining.optimizer import optimizers

Batch = Callable[[int], Any]


def train(
    network: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    *,
    steps: int,
    lr: float,
    optimizer: str = "muon",
    dtype: torch.dtype = torch.bfloat16,
    checkpoint: Path | None = None,
    report: Callable[[int, float, nn.Module, float], None] | None = None,
    report_every: int = 250,
    identity: dict[str, Any] | None = None,
) -> nn.Module:
    """Train `network` by `loss_of(network, step)` and return the running average of its weights.

    Batches are functions of the step, so a run that was killed goes on from its checkpoint as if nothing had
    happened. `report(step, loss, averaged network, seconds)` is called now and then. `identity` holds what else makes
    this run differ from others (plain values): seed, images, batch, teacher.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged or of another run.
    """
    averaged = copy.deepcopy(network).eval()
    parts = optimizers(network, lr, optimizer)
    run = {
        **(identity or {}),
        "steps": steps,
        "lr": lr,
        "optimizer": optimizer,
        "dtype": str(dtype),
        "network": {key: list(value.shape) for key, value in network.state_dict().items()},
    }

    def restore(state: dict[str, Any]) -> tuple[int, float]:
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        for part, saved in zip(parts, state["optimizers"], strict=True):
            part.load_state_dict(saved)
        return int(state["step"]), float(state["seconds"])

    begin, seconds = load_checkpoint(checkpoint, run, restore) or (0, 0.0)
    start = time.perf_counter() - seconds
    device = next(network.parameters()).device
    recent = 0.0
    for step in range(begin, steps):
        for part in parts:
            for group in part.param_groups:
                group["lr"] = lr * _one_cycle(step / steps)
        network.train()
        with autocast(device, dtype):
            loss = loss_of(network, step)
        loss.backward()
        for part in parts:
            part.step()
            part.zero_grad(set_to_none=True)
        _average(averaged, network, decay=min(0.998, step / (step + 20)))
        recent = loss.item() if step == begin else 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % report_every == 0 or step + 1 == steps:
            seconds = time.perf_counter() - start
            if checkpoint is not None:
                state = {
                    "step": step + 1,
                    "seconds": seconds,
                    "network": network.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimizers": [part.state_dict() for part in parts],
                }
                save_checkpoint(checkpoint, state, run)
            if report is not None:
                report(step + 1, recent, averaged, seconds)
    return averaged


def _one_cycle(progress: float) -> float:
    """Up over the first 5 %, then down to zero in a straight line, which suits Muon."""
    return min(progress / 0.05, (1 - progress) / 0.95, 1.0) + 1e-4


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    current = network.state_dict()
    for key, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[key], 1 - decay)
        else:
            value.copy_(current[key])
