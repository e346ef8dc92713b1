"""When pictures have the same shape: proportions so close that stretching one to the other does no harm."""

from __future__ import annotations

import math

Size = tuple[int, int]  # (height, width)

# Proportions may differ by so much: kolektor's 500 × 1239 to 1285 pixels do by 2.3 % from their median.
STRETCH = 0.03


def same_proportions(one: Size, other: Size) -> bool:
    """Whether two sizes (height, width) have the same proportions, but for 3 %."""
    return abs(math.log((one[0] * other[1]) / (one[1] * other[0]))) <= math.log1p(STRETCH)
