"""Nearest neighbours in a bank of vectors by Euclidean distance, without approximate index structures.

Queries (n, d) and a bank (m, d) go in, distances and bank indices (n, k) come out. Where the hardware
multiplies in bf16, one such product makes a short list per query and float32 decides among it; elsewhere faiss's
flat index does the search. Below 1e5 rows a flat search beats inverted lists. Reported distances are measured
from the vectors themselves, and a neighbour that lost its place in the short list to rounding was a near tie.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anomalib_lite.machine.hardware import has_fast_bf16, pick_device
from anomalib_lite.machine.processes import check_process

_BLOCK = 1 << 22  # similarities computed at a time: what the last-level cache holds in bf16
_GROUP = 64  # bank rows whose maximum is taken first, so that the sort sees m / 64 values
_SPARE = 2  # candidates beyond k kept for the float32 decision
_PARTS = 3  # bf16 numbers that add up to one float32: 3 × 8 bits of mantissa


class NeighborIndex:
    """Answers nearest-neighbour queries against a fixed bank, from any number of threads.

    Parameters
    ----------
    bank : float32 (m, d)
        Vectors to search; kept by reference.
    groups : int (m,), optional
        Group (image) of each bank row, needed to leave a query's own group out.
    device : str
        Where to search; see `machine.hardware.pick_device`.
    """

    def __init__(self, bank: np.ndarray, groups: np.ndarray | None = None, *, device: str = "auto"):
        if bank.ndim != 2 or len(bank) == 0:
            raise ValueError(f"a bank is (m, d) with at least one row, got shape {bank.shape}")
        check_process()
        self.bank = np.ascontiguousarray(bank, dtype=np.float32)
        where = pick_device(device)
        # All that a search reads is built here, so that threads find it whole.
        on_faiss = where.type == "cpu" and not has_fast_bf16(where)
        self._flat = _FlatSearch(self.bank) if on_faiss else None
        self._product = None if on_faiss and groups is None else _ProductSearch(self.bank, groups, where)

    def search(
        self, queries: np.ndarray, k: int = 1, *, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` nearest bank rows of every query.

        Parameters
        ----------
        queries : (n, d)
        k : int
            Neighbours wanted, at most m.
        exclude : int (n,), optional
            For every query the group of bank rows that do not count.

        Returns
        -------
        distances : float32 (n, k), ascending; infinite where fewer than k rows are allowed
        indices : int64 (n, k)

        Raises
        ------
        ValueError
            If k exceeds the bank or dimensions differ.
        RuntimeError
            In a process forked after its parent computed.
        """
        check_process()
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.bank.shape[1]:
            raise ValueError(f"queries have shape {queries.shape}, the bank holds {self.bank.shape[1]}-d vectors")
        if k > len(self.bank):
            raise ValueError(f"k={k} neighbours wanted from a bank of {len(self.bank)}; lower k or enlarge the bank")
        if exclude is None and self._flat is not None:
            return self._flat.search(queries, k)
        if self._product is None or (exclude is not None and self._product.groups is None):
            raise ValueError("exclude= needs the groups of the bank rows")
        return self._product.search(queries, k, exclude)


class _FlatSearch:
    """faiss's flat index, its distances measured again."""

    def __init__(self, bank: np.ndarray):
        import faiss

        self.bank = bank
        self.centre = bank.mean(axis=0)
        self.index = faiss.IndexFlatL2(bank.shape[1])
        self.index.add(bank - self.centre)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distances = np.empty((len(queries), k), dtype=np.float32)
        indices = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            _, near = self.index.search(queries[block] - self.centre, k)
            # faiss expands |q - b|², which cancels for close rows; a row must be at distance 0 from itself.
            measured = np.linalg.norm(self.bank[near] - queries[block, None, :], axis=2)
            order = measured.argsort(axis=1, kind="stable")
            distances[block] = np.take_along_axis(measured, order, axis=1)
            indices[block] = np.take_along_axis(near, order, axis=1)
        return distances, indices


class _ProductSearch:
    """One matrix product, in bf16 where the hardware has it, makes a short list; float32 decides among it."""

    def __init__(self, bank: np.ndarray, groups: np.ndarray | None, device: torch.device):
        m, d = bank.shape
        self.device = device
        self.centre = bank.mean(axis=0)
        self.rows = torch.from_numpy(bank - self.centre).to(device)
        # Small banks gain nothing from grouped maxima.
        self.group = _GROUP if m >= 4 * _GROUP else 1
        padded = -(-m // self.group) * self.group
        dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
        self.factors = torch.zeros(padded, d + 2 * _PARTS, device=device, dtype=dtype)
        self.factors[:m] = torch.cat(_factors(self.rows, dtype), dim=1)
        self.factors[m:, -_PARTS] = -torch.inf  # padding can never win
        self.groups: Tensor | None = None
        if groups is not None:
            self.groups = torch.full((padded,), -1, device=device, dtype=torch.int64)
            self.groups[:m] = torch.from_numpy(np.asarray(groups, dtype=np.int64)).to(device)

    def search(self, queries: np.ndarray, k: int, exclude: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        distances = np.empty((len(queries), k), dtype=np.float32)
        indices = np.empty((len(queries), k), dtype=np.int64)
        step = max(64, _BLOCK // len(self.rows))
        with torch.inference_mode():
            for start in range(0, len(queries), step):
                block = slice(start, start + step)
                excluded = None if exclude is None else torch.from_numpy(exclude[block]).to(self.device)
                centred = torch.from_numpy(queries[block] - self.centre).to(self.device)
                near, which = self._search_block(centred, k, excluded)
                distances[block], indices[block] = near.cpu().numpy(), which.cpu().numpy()
        return distances, indices

    def _search_block(self, centred: Tensor, k: int, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
        rounded, ones, halves = _factors(centred, self.factors.dtype)
        # q·b - |q|²/2 - |b|²/2 = -|q - b|²/2, summed in float32 inside the product: near zero for near rows, so
        # rounding the result costs a share of the distance, not of the much larger norms.
        similarity = torch.cat([rounded, halves, ones], dim=1) @ self.factors.T
        if excluded is not None and self.groups is not None:
            similarity.masked_fill_(excluded[:, None] == self.groups[None, :], -torch.inf)
        shortlist = _largest(similarity, min(k + _SPARE, len(self.rows)), self.group)  # (n, c)
        allowed = torch.isfinite(similarity.gather(1, shortlist))
        shortlist = shortlist.clamp(max=len(self.rows) - 1)  # padding is never allowed; keep it in range
        distance = torch.cdist(centred[:, None, :], self.rows[shortlist])[:, 0]
        distance.masked_fill_(~allowed, torch.inf)
        order = distance.argsort(dim=1, stable=True)[:, :k]
        return distance.gather(1, order), shortlist.gather(1, order)


def _factors(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n, d) in `dtype`, ones (n, parts), and minus half the squared norms in as many parts."""
    rounded = rows.to(dtype)
    left = -(rounded.float() ** 2).sum(dim=1, keepdim=True) / 2
    parts = []
    for _ in range(_PARTS):
        parts.append(left.to(dtype))
        left = left - parts[-1].float()
    return rounded, rounded.new_ones(len(rows), _PARTS), torch.cat(parts, dim=1)


def _largest(values: Tensor, count: int, group: int) -> Tensor:
    """Indices of the `count` largest values per row (n, m): first among group maxima, then within those groups."""
    n, m = values.shape
    groups = m // group
    if group == 1 or groups <= count:
        return values.topk(count, dim=1).indices
    # A group's members lie `groups` apart: the maximum then runs over whole contiguous rows, 4 times faster.
    grouped = values.view(n, group, groups)
    # The j-th largest value lies in one of the j groups with the largest maxima.
    best = grouped.amax(dim=1).topk(count, dim=1).indices  # (n, count)
    members = grouped.gather(2, best[:, None, :].expand(-1, group, -1)).flatten(1)  # (n, group × count)
    position = members.topk(count, dim=1).indices
    return position // count * groups + best.gather(1, position % count)
