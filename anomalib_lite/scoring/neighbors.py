"""Nearest neighbours in a bank of vectors by Euclidean distance, without approximate index structures.

Queries (n, d) and a bank (m, d) go in, distances and bank indices (n, k) come out. Where the hardware
multiplies in bf16, one such product makes a short list per query and float32 decides among it: reported
distances are exact, and a neighbour that lost its place in the short list to bf16 rounding was a near tie.
Elsewhere faiss's flat index does the search. Below 1e5 rows a flat search beats inverted lists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anomalib_lite.hardware import has_fast_bf16, pick_device

_BLOCK = 1024  # queries at a time: their similarities to a bank of thousands stay in cache
_GROUP = 64  # bank rows whose maximum is taken first, so that the sort sees m / 64 values
_SPARE = 3  # candidates beyond k kept for the float32 decision


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
        self._faiss = None
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
            for start in range(0, len(queries), _BLOCK):
                block = slice(start, start + _BLOCK)
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
        self._factors = torch.zeros(padded, d, device=self._device, dtype=dtype)
        self._factors[:m] = self._rows.to(dtype)
        # q·b - |b|²/2 is largest where |q - b| is smallest; padding can never win.
        self._offsets = torch.full((padded,), -torch.inf, device=self._device, dtype=dtype)
        self._offsets[:m] = (-(self._rows**2).sum(dim=1) / 2).to(dtype)
        if self.groups is not None:
            self._row_groups = torch.full((padded,), -1, device=self._device, dtype=torch.int64)
            self._row_groups[:m] = torch.from_numpy(np.asarray(self.groups, dtype=np.int64)).to(self._device)
        self._prepared = True

    def _search_block(self, queries: Tensor, k: int, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
        centred = queries - self._centre
        similarity = torch.nn.functional.linear(centred.to(self._factors.dtype), self._factors, self._offsets)
        if excluded is not None:
            similarity.masked_fill_(excluded[:, None] == self._row_groups[None, :], -torch.inf)
        shortlist = _largest(similarity, min(k + _SPARE, len(self._rows)), self._group)  # (n, c)
        allowed = torch.isfinite(similarity.gather(1, shortlist))
        shortlist = shortlist.clamp(max=len(self._rows) - 1)  # padding is never allowed; keep it in range
        distance = (self._rows[shortlist] - centred[:, None, :]).norm(dim=2)
        distance.masked_fill_(~allowed, torch.inf)
        order = distance.argsort(dim=1, stable=True)[:, :k]
        return distance.gather(1, order), shortlist.gather(1, order)

    def _search_faiss(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        if self._faiss is None:
            self._faiss = faiss.IndexFlatL2(self.bank.shape[1])
            self._faiss.add(self.bank)
        squared, indices = self._faiss.search(queries, k)
        return np.sqrt(np.maximum(squared, 0)), indices  # faiss reports squared distances


def _largest(values: Tensor, count: int, group: int) -> Tensor:
    """Indices of the `count` largest values per row (n, m): first among group maxima, then within those groups."""
    n, m = values.shape
    if group == 1 or m // group <= count:
        return values.topk(count, dim=1).indices
    grouped = values.view(n, m // group, group)
    # The j-th largest value lies in one of the j groups with the largest maxima.
    best = grouped.amax(dim=2).topk(count, dim=1).indices  # (n, count)
    members = grouped.gather(1, best[:, :, None].expand(-1, -1, group)).flatten(1)  # (n, count × group)
    position = members.topk(count, dim=1).indices
    return best.gather(1, position // group) * group + position % group
