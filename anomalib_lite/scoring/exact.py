"""The same scorer with its search in float32 from end to end: what others are compared with.

A short list made by bf16 or integers may lose a neighbour to a near tie. Where distances are measured in `local` units,
which differ from row to row, the score of that patch then differs by some per cent.
"""

from __future__ import annotations

import copy

from anomalib_lite.scoring.base import Scorer
from anomalib_lite.scoring.neighbors import NeighborIndex


def searching_exactly(scorer: Scorer) -> Scorer:
    """A copy of a scorer whose index makes its short lists in float32; itself where it searches nothing."""
    index = getattr(scorer, "_index", None)
    if not isinstance(index, NeighborIndex):
        return scorer
    other = copy.copy(scorer)
    other._index = NeighborIndex(index.bank, device="cpu", product="float32")  # type: ignore[attr-defined]
    return other
