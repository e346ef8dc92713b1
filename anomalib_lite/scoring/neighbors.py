"""Nearest neighbours in a bank of vectors by Euclidean distance, without approximate index structures.

Queries (n, d) and a bank (m, d) go in, distances and bank indices (n, k) come out. Where the hardware
multiplies in bf16, one such product makes a short list per query and float32 decides among it; elsewhere faiss's
flat index does the search. Below 1e5 rows a flat search beats inverted lists. Reported distances are measured
from the vectors themselves, and a neighbour that lost its place in the short list to rounding was a near tie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomalib_lite.machine.hardware import has_fast_bf16, pick_device

_BLOCK = 1 << 22  # similarities computed at a time: what the last-level cache holds in bf16
_GROUP = 64  # bank rows whose maximum is taken first, so that the sort sees m / 64 values
_SPARE = 2  # candidates beyond k kept for the float32 decision
_PARTS = 3  # bf16 numbers that add up to one float32: 3 × 8 bits of mantissa


class NeighborIndex:
    """Answers nearest-neighbour queries against a fixed bank.

    Parameters
    ----------
    bank : float32 (m, d)
        Vectors to search; kept by reference.
    groups : int (m,), optional
        Group (image) of each bank row, needed to leave a query's own group out.
    """

    def __init__(self, bank: np.ndarray, groups: np.ndarray | None = None):
        if bank.ndim != 2 or len(bank) == 0:
            raise ValueError(f"a bank is (m, d) with at least one row, got shape {bank.shape}")
        self.bank = np.ascontiguousarray(bank, dtype=np.float32)
        self.groups = groups
        self._device = pick_device()
        self._low_precision = has_fast_bf16(self._device)
        self._faiss: Any = None
        self._prepared = False

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
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.bank.shape[1]:
            raise ValueError(f"queries have shape {queries.shape}, the bank holds {self.bank.shape[1]}-d vectors")
        if k > len(self.bank):
            raise ValueError(f"k={k} neighbours wanted from a bank of {len(self.bank)}; lower k or enlarge the bank")
        if exclude is None and not self._low_precision and self._device.type == "cpu":
            return self._search_faiss(queries, k)
        if exclude is not None and self.groups is None:
            raise ValueError("exclude= needs the groups of the bank rows")
        distances = np.empty((len(queries), k), dtype=np.float32)
        indices = np.empty((len(queries), k), dtype=np.int64)
        with torch.inference_mode():
            self._prepare()
            step = max(64, _BLOCK // len(self.bank))
            for start in range(0, len(queries), step):
                block = slice(start, start + step)
                excluded = None if exclude is None else torch.from_numpy(exclude[block]).to(self._device)
                near, which = self._search_block(torch.from_numpy(queries[block]).to(self._device), k, excluded)
                distances[block], indices[block] = near.cpu().numpy(), which.cpu().numpy()
        return distances, indices

    def _prepare(self) -> None:
        """Lay the bank out for the products: centred, padded to whole groups, in the product's precision."""
        if self._prepared:
            return
        m, d = self.bank.shape
        self._centre = torch.from_numpy(self.bank.mean(axis=0)).to(self._device)
        self._rows = torch.from_numpy(self.bank).to(self._device) - self._centre
        # Small banks gain nothing from groups.
        self._group = _GROUP if m >= 4 * _GROUP else 1
        padded = -(-m // self._group) * self._group
        dtype = torch.bfloat16 if self._low_precision else torch.float32
        rounded, ones, halves = _factors(self._rows, dtype)
        self._factors = torch.zeros(padded, d + 2 * _PARTS, device=self._device, dtype=dtype)
        self._factors[:m] = torch.cat([rounded, ones, halves], dim=1)
        self._factors[m:, -_PARTS] = -torch.inf  # padding can never win
        if self.groups is not None:
            self._row_groups = torch.full((padded,), -1, device=self._device, dtype=torch.int64)
            self._row_groups[:m] = torch.from_numpy(np.asarray(self.groups, dtype=np.int64)).to(self._device)
        self._prepared = True

    def _search_block(self, queries: Tensor, k: int, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
        centred = queries - self._centre
        rounded, ones, halves = _factors(centred, self._factors.dtype)
        # q·b - |q|²/2 - |b|²/2 = -|q - b|²/2, summed in float32 inside the product: near zero for near rows, so
        # rounding the result costs a share of the distance, not of the much larger norms.
        similarity = torch.cat([rounded, halves, ones], dim=1) @ self._factors.T
        if excluded is not None:
            similarity.masked_fill_(excluded[:, None] == self._row_groups[None, :], -torch.inf)
        shortlist = _largest(similarity, min(k + _SPARE, len(self._rows)), self._group)  # (n, c)
        allowed = torch.isfinite(similarity.gather(1, shortlist))
        shortlist = shortlist.clamp(max=len(self._rows) - 1)  # padding is never allowed; keep it in range
        distance = torch.cdist(centred[:, None, :], self._rows[shortlist])[:, 0]
        distance.masked_fill_(~allowed, torch.inf)
        order = distance.argsort(dim=1, stable=True)[:, :k]
        return distance.gather(1, order), shortlist.gather(1, order)

    def _search_faiss(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        if self._faiss is None:
            self._middle = self.bank.mean(axis=0)
            self._faiss = faiss.IndexFlatL2(self.bank.shape[1])
            self._faiss.add(self.bank - self._middle)
        distances = np.empty((len(queries), k), dtype=np.float32)
        indices = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            _, near = self._faiss.search(queries[block] - self._middle, k)
            # faiss expands |q - b|², which cancels for close rows; a row must be at distance 0 from itself.
            measured = np.linalg.norm(self.bank[near] - queries[block, None, :], axis=2)
            order = measured.argsort(axis=1, kind="stable")
            distances[block] = np.take_along_axis(measured, order, axis=1)
            indices[block] = np.take_along_axis(near, order, axis=1)
        return distances, indices


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
