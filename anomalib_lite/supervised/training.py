"""The one training loop: early stopping, schedules, the best epoch kept, a kill survived.

It knows no images: a step turns positions of samples into a loss. Every epoch draws from a generator seeded by its
number, so a training that was killed goes on from its last epoch as if nothing had happened.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from anomalib_lite.files.checkpoints import load_checkpoint, save_checkpoint

OptimizerName = Literal["adam", "sgd", "rmsprop"]
ScheduleName = Literal["plateau", "one-cycle", "constant"]
Validation = Literal["learn", "watch"]

Step = Callable[[np.ndarray, torch.Generator | None], tuple[Tensor, Tensor]]
"""Positions (b,) and the generator of training (None when validating) to the mean loss and the share of hits."""


class TrainingError(ValueError):
    """A training whose settings or data lead nowhere, such as one whose loss is no number any more."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Parameters
    ----------
    epochs : int
        At most; `patience` ends it sooner.
    batch_size : int
    learning_rate : float
        Of groups of parameters that do not say otherwise.
    optimizer : "adam", "sgd" (Nesterov momentum 0.9) or "rmsprop"
    weight_decay : float
    schedule : "plateau", "one-cycle" or "constant"
        "plateau" divides the rate by 3 when the validation loss has not fallen for half the patience; "one-cycle"
        goes up and down once over all epochs (Smith and Topin 2019).
    patience : int
        Epochs without a lower loss in validation (in training, if nothing is kept for it) before training stops.
        "one-cycle" is not stopped.
    random_state : int
    checkpoint : path, optional
        File that holds the state after every epoch; a training that finds its own goes on from it.
    progress : bool
        A progress bar on stderr.
    """

    epochs: int = 30
    batch_size: int = 16
    learning_rate: float = 1e-3
    optimizer: OptimizerName = "adam"
    weight_decay: float = 1e-4
    schedule: ScheduleName = "one-cycle"
    patience: int = 10
    random_state: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.patience) < 1:
            raise ValueError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, patience={self.patience}: each is at least 1"
            )
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise ValueError(f"learning_rate={self.learning_rate}, weight_decay={self.weight_decay}: must be positive")
        for value, known in ((self.optimizer, ("adam", "sgd", "rmsprop")), (self.schedule, _SCHEDULES)):
            if value not in known:
                raise ValueError(f"{value!r} is not known here; choose one of {', '.join(known)}")


_SCHEDULES = ("plateau", "one-cycle", "constant")


@dataclass
class History:
    """Loss and accuracy per epoch, which epoch was kept (counted from 1), and the seconds taken.

    The one with the lowest validation loss is kept, or the last where nothing was kept for validation.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0

    @property
    def curves(self) -> dict[str, list[float]]:
        """Those of the four curves that there are, for `plotting.curves.plot_training`."""
        return {name: values for name, values in vars(self).items() if isinstance(values, list) and values}

    def add(self, learnt: tuple[float, float], watched: tuple[float, float] | None) -> bool:
        """Note an epoch's loss and accuracy in training and validation; whether its loss is the lowest so far."""
        deciding = self.train_loss if watched is None else self.validation_loss
        lowest = min(deciding, default=math.inf)
        self.train_loss.append(learnt[0])
        self.train_accuracy.append(learnt[1])
        if watched is not None:
            self.validation_loss.append(watched[0])
            self.validation_accuracy.append(watched[1])
        improved = deciding[-1] < lowest
        # A training loss tells the best epoch only by chance: dropout and changed copies make it noisy.
        if improved or watched is None:
            self.best_epoch = len(self.train_loss)
        return improved


def train(
    network: nn.Module,
    step: Step,
    training: np.ndarray,
    validation: np.ndarray,
    options: TrainingOptions,
    *,
    groups: Iterable[tuple[list[nn.Parameter], float]] | None = None,
    sampling: np.ndarray | None = None,
    label: str = "training",
    identity: dict[str, Any] | None = None,
) -> History:
    """Train `network` in place and leave it at its best epoch.

    Parameters
    ----------
    step : see `Step`
    training, validation : int (n,), (m,)
        Positions of samples. Without any to validate on, the last epoch is kept.
    groups : pairs of parameters and learning rate, optional
        By default all parameters at ``options.learning_rate``.
    sampling : float (n,), optional
        Draw training samples in proportion to these, with replacement, instead of each once per epoch.
    label : str, of the progress bar
    identity : dict of plain values, optional
        What else makes this training differ from others, kept with a checkpoint.

    Raises
    ------
    TrainingError
        If a loss is not finite; the network is left at the best epoch before.
    CheckpointError
        If the checkpoint is damaged or of another training.
    """
    pairs = (
        [([p for p in network.parameters() if p.requires_grad], options.learning_rate)] if groups is None else groups
    )
    optimizer = _optimizer(list(pairs), options)
    batches = -(-len(training) // options.batch_size)
    schedule = _schedule(optimizer, options, batches)
    run = _identity(options, training, validation, identity)
    path = None if options.checkpoint is None else Path(options.checkpoint)

    def restore(state: dict[str, Any]) -> tuple[History, dict[str, Tensor], int]:
        network.load_state_dict(state["best"])  # whether it fits
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        if schedule is not None:
            schedule.load_state_dict(state["schedule"])
        return History(**state["history"]), state["best"], int(state["waited"])

    fresh = History(), copy.deepcopy(network.state_dict()), 0
    history, best, waited = load_checkpoint(path, run, restore) or fresh
    epochs = range(len(history.train_loss), options.epochs)
    bar = tqdm(
        epochs, label, options.epochs, initial=epochs.start, unit="epoch", file=sys.stderr, disable=not options.progress
    )
    for epoch in bar:
        if options.schedule != "one-cycle" and waited >= options.patience:
            break
        start = time.perf_counter()
        try:
            with _seeded(options.random_state, epoch) as generator:
                learnt = _epoch(
                    network, step, _order(training, sampling, generator), options, optimizer, generator, schedule
                )
            watched = _validate(network, step, validation, options) if len(validation) else None
            _check_finite(label, epoch, learnt, watched, options)
        except TrainingError:
            network.load_state_dict(best)
            raise
        waited = 0 if history.add(learnt, watched) else waited + 1
        if history.best_epoch == len(history.train_loss):
            best = copy.deepcopy(network.state_dict())
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step((watched or learnt)[0])
        history.seconds += time.perf_counter() - start
        bar.set_postfix(loss=f"{(watched or learnt)[0]:.3f}")
        if path is not None:
            state = {
                "network": network.state_dict(),
                "best": best,
                "optimizer": optimizer.state_dict(),
                "schedule": None if schedule is None else schedule.state_dict(),
                "history": asdict(history),
                "waited": waited,
            }
            save_checkpoint(path, state, run)
    network.load_state_dict(best)
    network.eval()
    return history


@contextmanager
def _seeded(random_state: int, epoch: int) -> Iterator[torch.Generator]:
    """A generator for one epoch; torch's own, which dropout draws from, is seeded too, and put back as it was after."""
    seed = random_state * 100_003 + epoch
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_rng_state(before)


def _order(training: np.ndarray, sampling: np.ndarray | None, generator: torch.Generator) -> np.ndarray:
    if sampling is None:
        return training[torch.randperm(len(training), generator=generator).numpy()]
    weights = torch.from_numpy(np.asarray(sampling, np.float64))
    return training[torch.multinomial(weights, len(training), replacement=True, generator=generator).numpy()]


def _epoch(
    network: nn.Module,
    step: Step,
    order: np.ndarray,
    options: TrainingOptions,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    schedule: Any,
) -> tuple[float, float]:
    """One pass over the training samples: mean loss and accuracy."""
    network.train()
    total = right = 0.0
    for begin in range(0, len(order), options.batch_size):
        chosen = order[begin : begin + options.batch_size]
        loss, correct = step(chosen, generator)
        value = loss.item()
        if not math.isfinite(value):
            return value, 0.0  # before it reaches the parameters
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR):
            schedule.step()
        total += value * len(chosen)
        right += correct.item() * len(chosen)
    return total / len(order), right / len(order)


def _validate(network: nn.Module, step: Step, positions: np.ndarray, options: TrainingOptions) -> tuple[float, float]:
    network.eval()
    total = right = 0.0
    with torch.no_grad():
        for begin in range(0, len(positions), options.batch_size):
            chosen = positions[begin : begin + options.batch_size]
            loss, correct = step(chosen, None)
            total += loss.item() * len(chosen)
            right += correct.item() * len(chosen)
    return total / len(positions), right / len(positions)


def _check_finite(
    label: str, epoch: int, learnt: tuple[float, float], watched: tuple[float, float] | None, options: TrainingOptions
) -> None:
    losses = [learnt[0]] + ([] if watched is None else [watched[0]])
    if not all(map(math.isfinite, losses)):
        raise TrainingError(
            f"{label}: the loss became {losses[-1] if math.isfinite(losses[0]) else losses[0]} in epoch {epoch + 1}; "
            f"lower learning_rate (it is {options.learning_rate:g}), or train with dtype='float32'"
        )


def _optimizer(groups: list[tuple[list[nn.Parameter], float]], options: TrainingOptions) -> torch.optim.Optimizer:
    parameters = [{"params": found, "lr": rate} for found, rate in groups]
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, options.learning_rate, momentum=0.9, nesterov=True, weight_decay=options.weight_decay
        )
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, options.learning_rate, weight_decay=options.weight_decay)
    # Decay apart from the gradient's scaling, as Loshchilov and Hutter (ICLR 2019) found Adam to want it.
    return torch.optim.AdamW(parameters, options.learning_rate, weight_decay=options.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, options: TrainingOptions, batches: int) -> Any:
    if options.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=1 / 3, patience=options.patience // 2)
    if options.schedule == "one-cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(2, options.epochs * batches))
    return None


def _identity(
    options: TrainingOptions, training: np.ndarray, validation: np.ndarray, identity: dict[str, Any] | None
) -> dict[str, Any]:
    """Plain values that tell one training from another; where it is kept and whether it shows progress do not count."""
    settings = {key: value for key, value in asdict(options).items() if key not in ("checkpoint", "progress")}
    return {**settings, "training": training.tolist(), "validation": validation.tolist(), **(identity or {})}
