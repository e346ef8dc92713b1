"""Which of many scored images: positions from what stands in brackets, and from an order."""

from __future__ import annotations

import operator
from typing import Any, Literal, Protocol, get_args

import numpy as np

Order = Literal["score", "p_value", "id"]


class Ordered(Protocol):
    """Scores, as far as an order of them needs; see `results.Scores` for what each of these is, here and below."""

    @property
    def ids(self) -> list[str]: ...
    @property
    def scores(self) -> np.ndarray: ...
    @property
    def p_values(self) -> np.ndarray: ...


def picked(chosen: Any, n: int) -> int | np.ndarray:
    """The position of one of n images, or int (m,) those of several; see `Scores.__getitem__`, also for errors."""
    if isinstance(chosen, list):
        chosen = np.array(chosen, dtype=None if chosen else np.int64)
    if isinstance(chosen, (slice, np.ndarray)):
        return np.atleast_1d(np.arange(n)[chosen])
    try:
        position = operator.index(chosen)
    except TypeError:
        raise TypeError(
            f"scores[{chosen!r}]: give a position, a slice, positions or a mask; of an id scores.ids.index(...) is the "
            "position"
        ) from None
    if not -n <= position < n:
        raise IndexError(f"scores[{position}]: there are {n} images")
    return position % n


def order(scores: Ordered, by: Order) -> np.ndarray:
    """Positions int (n,) in an order; see `Scores.sort`, also for errors."""
    if by not in get_args(Order):
        raise ValueError(f"by={by!r}; choose 'score', 'p_value' or 'id'")
    if by == "id":
        return np.array(sorted(range(len(scores.ids)), key=scores.ids.__getitem__), dtype=np.int64)
    return np.argsort(-scores.scores if by == "score" else scores.p_values, kind="stable")
