"""Exact nearest neighbours in a large bank that lies in clumps: whole blocks of it are left out by their distance.

A few rounds of k-means cut the bank into blocks of rows, each with a centre and a radius. A row of a block is no nearer
to a query than the centre is, less the radius (triangle inequality); so a query is compared with its nearest block
first, and then only with blocks that may hold a nearer row than those found. What is compared, is so in float32.
Patches of good images lie like this; a bank that was thinned to be spread evenly does not, and is not cut.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ROWS = 128  # of a block, about: fewer leave out more, and cost more calls
_LEARNING = 32  # rows per block that k-means learns from
_ROUNDS = 5
_QUERIES = 4096  # searched at a time
_SPARE = 2  # candidates beyond k that are measured
_ASSIGNED = 8192  # rows at a time
_ASKED = 256  # rows of the bank that tell which share of it is compared
_MARGIN = 2.0**-10  # of a query's length: more than float32 loses where a distance comes of squares that cancel
FROM_ROWS = 1 << 16  # of a bank that is cut: smaller ones are searched whole in the time that the cutting takes
MOST_SHARE = 0.1  # compared, up to which blocks are quicker than the quickest product of the whole bank


class BlockSearch:
    """Searches a bank float32 (m, d) cut into blocks, a sorted copy of it; from any number of threads.

    `share` is how much of the bank some of its own rows were compared with: from 0 to 1.
    """

    def __init__(self, bank: np.ndarray):
        generator = torch.Generator().manual_seed(0)
        self.centre = bank.mean(axis=0)
        rows = torch.from_numpy(bank - self.centre)
        count = max(2, len(rows) // _ROWS)
        sample = rows[torch.randperm(len(rows), generator=generator)[: count * _LEARNING]]
        centres = sample[:count].clone()
        for _ in range(_ROUNDS):
            nearest = _nearest(sample, centres)[0]
            sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
            sizes = torch.bincount(nearest, minlength=count)
            centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        nearest = _nearest(rows, centres)[0]
        self.order = nearest.argsort(stable=True)
        self.rows = rows[self.order]
        self.norms = self.rows.square().sum(dim=1)
        self.ends = torch.bincount(nearest, minlength=count).cumsum(0).tolist()
        self.starts = [0, *self.ends[:-1]]
        self.centres = centres
        away = (self.rows - centres[nearest[self.order]]).norm(dim=1)
        self.radii = torch.zeros(count).scatter_reduce_(0, nearest[self.order], away, "amax")
        asked = self.rows[torch.randperm(len(rows), generator=generator)[:_ASKED]]
        self.share = self._search(asked, min(3, len(rows)))[2] / len(asked) / len(rows)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and indices (n, k), as `NeighborIndex.search`."""
        distances = np.empty((len(queries), k), dtype=np.float32)
        indices = np.empty((len(queries), k), dtype=np.int64)
        with torch.inference_mode():
            for start in range(0, len(queries), _QUERIES):
                block = slice(start, start + _QUERIES)
                near, which, _ = self._search(torch.from_numpy(queries[block] - self.centre), k)
                distances[block], indices[block] = near.numpy(), which.numpy()
        return distances, indices

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor, int]:
        """Distances and indices (n, k) of centred queries, and how many rows were compared for them together."""
        kept = min(k + _SPARE, len(self.rows))
        n, compared = len(queries), 0
        # Squared distances less |q|², and positions among the sorted rows.
        best = torch.full((n, kept), torch.inf)
        which = torch.zeros(n, kept, dtype=torch.int64)
        own, away = _nearest(queries, self.centres, every=True)

        def compare(block: int, asking: Tensor) -> None:
            nonlocal compared
            start, end = self.starts[block], self.ends[block]
            if start == end or not len(asking):
                return
            compared += (end - start) * len(asking)
            squared = torch.addmm(self.norms[start:end], queries[asking], self.rows[start:end].T, alpha=-2)
            some = (squared.amin(dim=1) < best[asking, -1]).nonzero()[:, 0]
            if not len(some):
                return
            if len(some) < len(asking):
                asking, squared = asking[some], squared[some]
            near, where = squared.topk(min(kept, end - start), dim=1, largest=False, sorted=False)
            all_near = torch.cat([best[asking], near], dim=1)
            all_where = torch.cat([which[asking], where + start], dim=1)
            near, chosen = all_near.topk(kept, dim=1, largest=False)
            best[asking], which[asking] = near, all_where.gather(1, chosen)

        order = own.argsort()
        for block, asking in zip(*_groups(own[order], order), strict=True):
            compare(block, asking)
        reach = self._measured(queries, best, which).sort(dim=1).values[:, k - 1]
        needed = away - self.radii < (reach + _MARGIN * queries.norm(dim=1))[:, None]
        needed[torch.arange(n), own] = False
        blocks, asking = needed.T.nonzero(as_tuple=True)
        for block, some in zip(*_groups(blocks, asking), strict=True):
            compare(block, some)
        distance = self._measured(queries, best, which)
        order = distance.argsort(dim=1, stable=True)[:, :k]
        return distance.gather(1, order), self.order[which.gather(1, order)], compared

    def _measured(self, queries: Tensor, best: Tensor, which: Tensor) -> Tensor:
        """Distances (n, kept) from the vectors themselves, infinite where nothing was found."""
        rows = self.rows.index_select(0, which.flatten()).view(*which.shape, -1)
        return rows.sub_(queries[:, None, :]).square_().sum(dim=2).sqrt_().masked_fill_(best.isinf(), torch.inf)


def _groups(numbers: Tensor, members: Tensor) -> tuple[list[int], list[Tensor]]:
    """Members by their sorted numbers."""
    different, sizes = numbers.unique_consecutive(return_counts=True)
    return different.tolist(), list(members.split(sizes.tolist()))


def _nearest(rows: Tensor, centres: Tensor, *, every: bool = False) -> tuple[Tensor, Tensor]:
    """The nearest centre of every row (n,), and if asked for the distances (n, count) to all."""
    norms = centres.square().sum(dim=1)
    found, distances = [], []
    for part in rows.split(_ASSIGNED):
        squared = torch.addmm(norms, part, centres.T, alpha=-2)
        found.append(squared.argmin(dim=1))
        if every:
            distances.append(squared.add_(part.square().sum(dim=1)[:, None]).clamp_(min=0).sqrt_())
    return torch.cat(found), torch.cat(distances) if every else torch.empty(0)
