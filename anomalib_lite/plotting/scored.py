"""What drawings need of scored images, by shape: `results.Scores` has it, and it may call the drawings in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Scored(Protocol):
    """Scores of images; see `results.Scores` for what each of these is."""

    @property
    def ids(self) -> list[str]: ...
    @property
    def scores(self) -> np.ndarray: ...
    @property
    def p_values(self) -> np.ndarray: ...
    @property
    def alarms(self) -> np.ndarray: ...
    @property
    def threshold(self) -> float: ...
    @property
    def map_scale(self) -> tuple[float, float]: ...
    @property
    def nearest(self) -> Sequence[Any] | None: ...
    def anomaly_map(self, i: int) -> np.ndarray: ...
