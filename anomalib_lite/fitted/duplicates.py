"""Images that are there twice: vectors in, pairs that lie much closer than images of different parts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from anomalib_lite.scoring.base import check_rows
from anomalib_lite.scoring.neighbors import NeighborIndex


@dataclass(frozen=True)
class NearDuplicate:
    """Two images so alike that they are probably the same picture; `distance` is relative to the typical one."""

    first: str
    second: str
    distance: float


def near_duplicates(
    X: ArrayLike,
    ids: Sequence[str],
    others: ArrayLike | None = None,
    other_ids: Sequence[str] = (),
    *,
    share: float = 0.3,
) -> list[NearDuplicate]:
    """Pairs of images whose vectors lie closer than `share` of the typical distance to a nearest neighbour.

    Parameters
    ----------
    X : (n, d), one vector per image, with its ids
    others : (m, d), optional
        Compare with these, such as test images, instead of among X.
    share : float
        Of the median distance of X to its nearest neighbour.

    Returns
    -------
    list of NearDuplicate, the closest first.
    """
    rows = check_rows(np.asarray(X))
    if len(rows) < 3:
        return []
    own, nearest = NeighborIndex(rows).search(rows, 2)
    typical = float(np.median(own[:, 1]))
    if others is None:
        # Rows that coincide may come in either order.
        partner = np.where(nearest[:, 0] == np.arange(len(rows)), nearest[:, 1], nearest[:, 0])
        found = {
            (min(i, j), max(i, j)): float(d) for i, (j, d) in enumerate(zip(partner.tolist(), own[:, 1], strict=True))
        }
        pairs = [(ids[i], ids[j], d) for (i, j), d in found.items()]
    else:
        distances, at = NeighborIndex(rows).search(check_rows(np.asarray(others), rows.shape[1]))
        pairs = [
            (ids[j], other_ids[i], float(d)) for i, (j, d) in enumerate(zip(at[:, 0], distances[:, 0], strict=True))
        ]
    close = [NearDuplicate(a, b, d / max(typical, 1e-12)) for a, b, d in pairs if d < share * typical or d == 0]
    return sorted(close, key=lambda pair: pair.distance)
