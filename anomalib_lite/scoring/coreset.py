"""Greedy k-center coreset: the farthest-first traversal of a set of vectors, exact and fast.

Rows (n, d) go in, the indices of the chosen centres come out. Every step takes the row farthest from
all centres so far (Gonzalez 1985; used for memory banks by Roth et al., PatchCore, CVPR 2022, section 3.2).

The plain loop reads all n rows once per centre and is bound by memory. Here distances to old centres,
which can only shrink, serve as upper bounds: the next centre is looked for in a small pool of the
rows with the largest bounds, and as long as the best of the pool beats every bound outside, it *is* the
farthest row. Only when it no longer does are all rows brought up to date, against every centre chosen
meanwhile, in one matrix product. Within the pool, distances to the few rows that are likely next are computed together.
The traversal is the same as the plain loop's. Where there is much to do and the machine multiplies bf16 quicker, the
bounds are rounded to some thousandths: the row taken is then the farthest but for that.

Leaving out rows that the triangle inequality keeps at their centre (Elkan, ICML 2003, for k-means) was tried: it
spares 7 % of patch rows, and saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from anomalib_lite.machine.hardware import worth_trying
from anomalib_lite.machine.measuring import measured, quickest
from anomalib_lite.machine.processes import check_process
from anomalib_lite.scoring.neighbors import factors_of, lowered_by, maxima_of_negative

_POOL = 2048  # rows among which the next centres are looked for
_LIKELY = 64  # of these, the farthest, whose distances to the pool are computed in one product
_BLOCK = 4096  # rows per block when rows are brought up to date: block × pending centres stay in cache
_MUCH = 1 << 25  # distances, from which on rounding is worth it
_TRIAL = (4096, 512, 128)  # rows, centres, dimensions that are measured


def greedy_k_center(X: np.ndarray, size: int, *, random_state: int = 0) -> tuple[np.ndarray, float]:
    """Choose `size` rows of `X` that cover the others with a small largest distance.

    Time is that of one (n, d) × (d, size) matrix product plus small change; memory is one copy of `X` in
    float32.

    Parameters
    ----------
    X : array (n, d)
        Vectors; compared by Euclidean distance.
    size : int
        Number of centres wanted. Fewer come back when `X` has fewer distinct rows.
    random_state : int
        Seed for the first centre, the only choice left open by the rule.

    Returns
    -------
    indices : int64 array (m,), m <= size
        Chosen rows in the order of choice: any prefix is a greedy coreset too.
    radius : float
        Covering radius: largest distance of a row to its nearest centre.

    Raises
    ------
    ValueError
        If there is no row, `size` is below 1, or a row is not finite or too long for its square to be.

    Examples
    --------
    >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
    >>> indices, radius = greedy_k_center(X, 2)
    >>> sorted((X[indices, 0] > 5).tolist()), radius
    ([False, True], 1.0)
    """
    rows = torch.as_tensor(np.ascontiguousarray(X, dtype=np.float32))
    n = len(rows)
    if n == 0 or size < 1:
        raise ValueError(f"a coreset needs at least one row and one centre, got {n} rows and size={size}")
    check_process()
    # Centring loses nothing and keeps |x|² - 2xy + |y|² from cancelling.
    rows = rows - rows.mean(dim=0)
    norms = (rows * rows).sum(dim=1)
    if not torch.isfinite(norms).all():
        raise ValueError("rows hold NaN, infinity or values whose squares overflow; look for broken images or features")
    first = int(np.random.default_rng(random_state).integers(n))
    chosen = [first]
    bounds = torch.full((n,), float("inf"))
    rounded = n * size >= _MUCH and quickest(product_times(), ("float32", "bfloat16")) == "bfloat16"
    tighten = _Rounded(rows, norms) if rounded else _Exact(rows, norms)
    tighten(bounds, [first])

    while len(chosen) < min(size, n):
        pending = _traverse_pool(bounds, rows, norms, size - len(chosen))
        if not pending:  # every row coincides with a centre
            break
        chosen += pending
        tighten(bounds, pending)
    return np.asarray(chosen, dtype=np.int64), float(bounds.max().sqrt())


def _traverse_pool(bounds: Tensor, rows: Tensor, norms: Tensor, wanted: int) -> list[int]:
    """Take centres from the rows with the largest bounds for as long as they are surely the farthest."""
    size = min(_POOL, len(bounds))
    farthest, pool = torch.topk(bounds, size, sorted=True)  # (size,) squared
    outside = float(farthest[-1]) if size < len(bounds) else 0.0
    members, member_norms = rows[pool], norms[pool]
    distance = farthest.numpy()
    taken: list[int] = []
    while len(taken) < wanted:
        likely = torch.from_numpy(np.argpartition(-distance, min(_LIKELY, size) - 1)[:_LIKELY].copy())
        squared = torch.addmm(member_norms, members[likely], members.T, alpha=-2).add_(member_norms[likely][:, None])
        to_likely = _without_rounding(squared, member_norms).numpy()
        position = {row: i for i, row in enumerate(likely.tolist())}
        while len(taken) < wanted:
            best = int(distance.argmax())
            if distance[best] <= 0 or (distance[best] < outside and taken):
                return pool[taken].tolist()
            if best not in position:
                break
            taken.append(best)
            np.minimum(distance, to_likely[position[best]], out=distance)
            distance[best] = 0
    return pool[taken].tolist()


class _Exact:
    """Lowers bounds (n,) in place to the squared distance of rows (n, d) to the nearest of some centres."""

    def __init__(self, rows: Tensor, norms: Tensor):
        self.rows, self.norms = rows, norms

    def __call__(self, bounds: Tensor, centres: list[int]) -> None:
        vectors, centre_norms = self.rows[centres], self.norms[centres]
        for start in range(0, len(self.rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            squared = torch.addmm(centre_norms, self.rows[block], vectors.T, alpha=-2).amin(dim=1) + self.norms[block]
            torch.minimum(bounds[block], _without_rounding(squared, self.norms[block]), out=bounds[block])
        bounds[centres] = 0


class _Rounded:
    """The same by products in bf16, which round the squared distance to some thousandths of itself."""

    def __init__(self, rows: Tensor, norms: Tensor):
        self.norms = norms
        rounded, ones, halves = factors_of(rows, torch.bfloat16, lowered=True)
        self.rows = torch.cat([rounded, halves, ones], dim=1)
        rounded, ones, halves = factors_of(rows, torch.bfloat16)
        self.centres = torch.cat([rounded, ones, halves], dim=1)

    def __call__(self, bounds: Tensor, centres: list[int]) -> None:
        vectors = self.centres[centres].T
        for start in range(0, len(self.rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            nearest = maxima_of_negative(self.rows[block] @ vectors, dim=1).float()
            squared = (-2 * nearest - 2 * lowered_by(self.norms[block])).clamp_(min=0)
            torch.minimum(bounds[block], _without_rounding(squared, self.norms[block]), out=bounds[block])
        bounds[centres] = 0


def product_times() -> dict[str, float]:
    """Milliseconds of lowering the bounds of some rows, by dtype, measured once per machine."""
    n, count, d = _TRIAL

    def trials() -> dict[str, Callable[[], object]]:
        rows = torch.from_numpy(np.random.default_rng(0).normal(size=(n, d)).astype(np.float32))
        norms, bounds, centres = (rows * rows).sum(dim=1), torch.full((n,), torch.inf), list(range(count))
        kinds = {"float32": _Exact, "bfloat16": _Rounded}
        made = {name: kinds[name](rows, norms) for name in worth_trying(torch.device("cpu"))}
        return {name: lambda tighten=tighten: tighten(bounds, centres) for name, tighten in made.items()}  # type: ignore[misc]

    return measured(f"coreset: {n} × {count} × {d}", trials, among="float32")


def _without_rounding(squared: Tensor, norms: Tensor) -> Tensor:
    """Squared distances, zero where they are only what float32 leaves of the distance of a row to itself."""
    return squared.masked_fill(squared <= 1e-6 * norms, 0)
