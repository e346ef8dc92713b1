"""Several pictures of one part: vectors in, groups of images that lie much closer together than to any other out.

How far images of different parts lie from each other differs from product to product, and in a set where every part
was taken several times the nearest distances are those of the copies. So nothing is measured against a
typical distance: a group is what stands apart, its widest gap inside small beside the gap around it. Inside and
around are single linkage: the clusters at every distance are the stretches between long steps of a walk that always
goes on to the image nearest to those visited (Prim, Bell System Technical Journal 36 (1957)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from anomalib_lite.scoring.base import check_rows
from anomalib_lite.scoring.reduction import PCA

# How many times wider the gap around a group is than any inside. Of single pictures (five real sets and drawn ones, 10
# to 30 at a time) 2.05 groups none but for solar cells, 13 %, where some are twins in truth. Of five shots each of
# eight parts, with noise, light and a pixel of play under a fixed camera, it groups 6 bottles of 10, of others 9 or
# more.
_APART = 2.05
_SAME = 1e-3  # of the widest gap: below it pictures are the same but for rounding
_COMPONENTS = 64
# More alike pictures than this, or than a third of all, are a product or a set-up among others rather than one part.
_MOST_SHOTS = 32

# Images without a twin are scored as if unseen whatever the others are. Of n images with m twins they alone promise
# n / (n - m) times the rate: at a quarter 4/3 of it. Of 1146 draws of single pictures (see above) one had more twins.
_TOLERATED_SHARE = 0.25


@dataclass(frozen=True)
class NearDuplicate:
    """Two images so alike that they show the same part; `distance` is relative to the nearest image of another."""

    first: str
    second: str
    distance: float


def duplicate_groups(X: ArrayLike) -> np.ndarray:
    """Which images seem to show the same part, from one vector (mean and deviation of the layers) per image.

    Time grows with the square of n (a second for 4000 images, some for 10 000), memory with n. Shots are told from
    parts that happen to be alike only among three parts or more, and up to 32 of each; exact copies always.

    Parameters
    ----------
    X : (n, d), n at least 1

    Returns
    -------
    int64 (n,), the same number for images of one part, counted from 0 in the order of their first images.

    Examples
    --------
    >>> parts = np.random.default_rng(0).normal(size=(6, 20))
    >>> duplicate_groups(np.vstack([parts, parts[:2] + 0.01])).tolist()
    [0, 1, 2, 3, 4, 5, 0, 1]
    """
    return _grouped(X)[1]


def has_twin(groups: np.ndarray) -> np.ndarray:
    """Which images share their group (n,) with another, (n,) bool: those are not scored as if they were unseen."""
    return np.bincount(groups)[groups] > 1


def too_many_twins(groups: np.ndarray) -> bool:
    """Whether so many images have a twin that a false-alarm rate calibrated on them is no promise."""
    return bool(has_twin(groups).mean() > _TOLERATED_SHARE)


def describe_groups(groups: np.ndarray) -> str:
    """Say such as "8 parts seem to have been photographed 5 times each"; "" if none was more than once."""
    shots = np.bincount(groups)
    shots = shots[shots > 1]
    if not len(shots):
        return ""
    often = " to ".join(str(times) for times in sorted({int(shots.min()), int(shots.max())}))
    who, each = ("1 part seems", "") if len(shots) == 1 else (f"{len(shots)} parts seem", " each")
    return f"{who} to have been photographed {often} times{each}"


def near_duplicates(
    X: ArrayLike, ids: Sequence[str], others: ArrayLike | None = None, other_ids: Sequence[str] = ()
) -> list[NearDuplicate]:
    """Pairs of images of one part: the first of every group with each of the others; see `duplicate_groups`.

    Parameters
    ----------
    X : (n, d), one vector per image, with its ids
    others : (m, d), optional
        Look for these, such as test images, among X instead.

    Returns
    -------
    list of NearDuplicate, the closest first.
    """
    rows = check_rows(np.asarray(X))
    if others is not None:
        rows = np.concatenate([rows, check_rows(np.asarray(others), rows.shape[1])])
    names = [*ids, *other_ids]
    reduced, groups, around = _grouped(rows)
    first = np.unique(groups, return_index=True)[1][groups]  # (n,)
    apart = np.linalg.norm(reduced - reduced[first], axis=1) / around[groups]
    candidates = range(len(rows)) if others is None else range(len(ids), len(rows))
    pairs = [
        NearDuplicate(names[first[i]], names[i], float(apart[i])) for i in candidates if first[i] < min(i, len(ids))
    ]
    return sorted(pairs, key=lambda pair: pair.distance)


def _grouped(X: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reduced rows (n, q), the group of each (n,), and for every group the gap around it (infinite if not found)."""
    rows = check_rows(np.asarray(X))
    n = len(rows)
    if (rows == rows[0]).all():
        return rows, np.zeros(n, dtype=np.int64), np.full(1, np.inf)
    pca = PCA(min(_COMPONENTS, *rows.shape), standardize=True).fit(rows)
    # The opposite of whitening: parts differ in the strong components, shots of one part in the weak ones too.
    reduced = pca.transform(rows) * pca.explained_variance_**0.25
    order, steps = _walk(reduced)
    same = _SAME * steps[1:].max()
    clusters: list[tuple[int, int, int, float]] = []
    stack = [(0, n, np.inf)]
    while stack:
        start, stop, around = stack.pop()
        if stop - start > 1:
            cut = start + 1 + int(steps[start + 1 : stop].argmax())
            clusters.append((start, cut, stop, around))
            stack += [(start, cut, float(steps[cut])), (cut, stop, float(steps[cut]))]
    leader = np.arange(n)
    gaps = np.full(n, np.inf)
    covered: dict[tuple[int, int], bool] = {}
    for start, cut, stop, around in reversed(clusters):  # the small ones first
        inside = max(steps[cut], same)
        few = stop - start <= min(n / 3, _MOST_SHOTS) or inside == same
        # Parts that are alike stand apart from the others together too, and are two for all that.
        by_halves = covered.get((start, cut), False) and covered.get((cut, stop), False)
        covered[start, stop] = by_halves or (few and around >= _APART * inside)
        if covered[start, stop] and not by_halves:
            first = order[start:stop].min()
            leader[order[start:stop]], gaps[first] = first, around
    leaders, groups = np.unique(leader, return_inverse=True)
    return reduced, groups, gaps[leaders]


def _walk(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Visit rows (n, q), each time the one nearest to those visited: the order (n,), and how far each was (n,)."""
    norms = np.einsum("ij,ij->i", rows, rows)
    order, steps = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), np.inf)
    nearest = np.full(len(rows), np.inf)  # squared, to those visited
    visited = np.zeros(len(rows), dtype=bool)
    for position in range(1, len(rows)):
        last = order[position - 1]
        visited[last] = True
        np.minimum(nearest, norms + norms[last] - 2 * (rows @ rows[last]), out=nearest)
        order[position] = np.where(visited, np.inf, nearest).argmin()
        steps[position] = np.sqrt(max(nearest[order[position]], 0.0))
    return order, steps
