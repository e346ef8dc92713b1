"""What a quality chooses, where nothing else is chosen: how closely to look, and how to judge parts or surfaces."""

from __future__ import annotations

from typing import Literal, NamedTuple

Quality = Literal["fast", "balanced", "best"]
MOST_PIXELS: dict[Quality, int] = {"fast": 256, "balanced": 384, "best": 384}  # of the shorter side


class Usual(NamedTuple):
    """What stands where nothing is chosen."""

    context: float
    top_share: float


# Chosen once for all, looking at the labels of the sets in docs/benchmarks.md.
PARTS, SURFACES = Usual(0.0, 0.01), Usual(1.5, 0.02)
