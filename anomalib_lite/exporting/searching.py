"""Scorers as ONNX operators: rows (n, d) in, anomaly scores (n,) float64 out.

Of a large bank, a product of 8-bit integers makes a short list per row and float32 decides among it, as in
`scoring.neighbors`; rows that the integers leave a doubt about are searched again in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from anomalib_lite.exporting.graph import Graph, Name, f32, f64, i64
from anomalib_lite.scoring import DBSCANScorer, KMeansScorer, KNNScorer, Scorer, SubspaceScorer
from anomalib_lite.scoring.reduction import PCA

# Products of rows with a bank at a time, of 4 bytes each: what the next operator finds in a processor's cache.
_PRODUCTS = 1 << 21
_FEWEST = 64  # rows at a time, however large the bank
_SPARE = 2  # candidates beyond k, whose distances are measured from the vectors themselves,
_SPARE_INTEGERS = 12  # and where integers made the list
_LARGE = 1024  # rows of a bank, from which on integers are used, and groups
_GROUP = 64  # rows whose nearest is found first
_NEVER = 1e30  # what is no neighbour has in place of half a squared distance
_DEVIATIONS = 5.0  # of the rounding of integers, that a doubt reaches
_MIDDLE = 64  # the 0 of a row's integers. They have 7 bits: without VNNI, sums of pairs of 8 and 8 would leave 16 bits


class Found(NamedTuple):
    """What a scorer says of rows: scores (n,) float64; of kNN the nearest bank rows (n,) and distances (n,) to them."""

    scores: Name
    nearest: Name | None = None
    distances: Name | None = None


def scored(g: Graph, scorer: Scorer, rows: Name, n: int) -> Found:
    """The scores of rows (n, d).

    Raises
    ------
    ValueError
        If the scorer is of a class of the user's own.
    """
    if type(scorer) is KNNScorer:
        return _by_neighbors(g, rows, n, scorer.bank_, scorer.k, scorer.units_)
    if type(scorer) is KMeansScorer:
        return Found(_by_neighbors(g, rows, n, scorer.centroids_, 1, None).scores)
    if type(scorer) is DBSCANScorer:
        return Found(_by_neighbors(g, rows, n, scorer.core_samples_, 1, None).scores)
    if type(scorer) is SubspaceScorer:
        return Found(_by_subspace(g, rows, scorer))
    raise ValueError(
        f"a {type(scorer).__name__} cannot be exported: a graph holds ONNX operators, no Python, and those of knn, "
        "kmeans, dbscan and subspace alone are known. Fit with one of these, or score with the library"
    )


def _by_neighbors(g: Graph, rows: Name, n: int, bank: np.ndarray, k: int, units: np.ndarray | None) -> Found:
    """Mean distance to the k nearest of a bank (m, d), in units (m,) if there are any."""
    centre = bank.mean(axis=0)
    centred = np.ascontiguousarray(bank - centre, dtype=np.float32)
    halves = (centred.astype(np.float64) ** 2).sum(axis=1) / 2
    queries = g("Sub", rows, f32(centre))
    count = -(-n * len(bank) // _PRODUCTS)
    sizes = [len(part) for part in np.array_split(np.arange(n), min(count, -(-n // _FEWEST)))]
    parts = [queries] if len(sizes) == 1 else g.several("Split", len(sizes), queries, i64(sizes), axis=0)
    large = len(bank) >= max(_LARGE, _GROUP * (k + _SPARE_INTEGERS))
    search = _nearest_by_integers if large and not g.for_openvino else _nearest
    found = [search(g, part, centred, f32(halves), k) for part in parts]
    distances, which = (
        (names[0] if len(names) == 1 else g("Concat", *names, axis=0)) for names in zip(*found, strict=True)
    )
    measured = distances if units is None else g("Div", distances, g("Gather", f32(units), which, axis=0))
    scores = g("ReduceMean", g.cast(measured, np.float64), i64([1]), keepdims=0)
    return Found(scores, *(g("Gather", name, i64(0), axis=1) for name in (which, distances)))


def _nearest(g: Graph, queries: Name, bank: np.ndarray, halves: np.ndarray, k: int) -> tuple[Name, Name]:
    """Distances and bank rows (n, k) of centred queries (n, d), ascending."""
    # |b|²/2 - q·b, which is the squared distance but for what depends on the query alone: makes a short list.
    filled, added = _filled(bank, 0), _filled(halves, _NEVER)
    short = g("Gemm", queries, filled, added, alpha=-1.0, transB=1)
    return _decided(g, queries, bank, _smallest(g, short, len(filled), min(k + _SPARE, len(bank)))[1], k)


def _nearest_by_integers(g: Graph, queries: Name, bank: np.ndarray, halves: np.ndarray, k: int) -> tuple[Name, Name]:
    """The same, by a short list of products of 7 and 8 bits; doubts are those of `scoring.neighbors`."""
    steps = np.maximum(np.abs(bank).max(axis=1), 1e-30) / 127  # (m,)
    stored = np.ascontiguousarray(_filled(np.round(bank / steps[:, None]).astype(np.int8), 0).T)
    step = g("Div", g("ReduceMax", g("Abs", queries), keepdims=0), f32(_MIDDLE - 1))
    step = g("Max", step, f32(1e-30))
    zero = np.asarray(_MIDDLE, dtype=np.uint8)
    # onnxruntime computes these four in one.
    sums = g("MatMulInteger", g("QuantizeLinear", queries, step, zero), stored, zero)
    short = g("Mul", g.cast(sums, np.float32), g("Mul", step, f32(_filled(-steps, 0))))
    short = g("Add", short, _filled(halves, _NEVER))  # |b|²/2 - q·b, as above
    count = k + _SPARE_INTEGERS
    values, listed = _smallest(g, short, stored.shape[1], count)
    distances, which = _decided(g, queries, bank, listed, k)
    # The nearest row outside of the list may be as near as its last one, and by rounding a little nearer.
    farthest = g("Gather", distances, i64(k - 1), axis=1)
    squared = g("ReduceSum", g("Mul", queries, queries), i64([1]), keepdims=0)
    length = g("Sqrt", squared)
    share = float(np.sqrt(np.mean((steps / np.maximum(np.linalg.norm(bank, axis=1), 1e-30)) ** 2)))
    rounding = g("Sqrt", g("Add", g("Mul", step, step), g("Mul", squared, f32(share**2))))
    doubt = g("Mul", g("Mul", rounding, g("Add", length, farthest)), f32(_DEVIATIONS / np.sqrt(12)))
    outside = g("Sub", g("Gather", values, i64(count - 1), axis=1), doubt)
    outside = g("Add", squared, g("Mul", outside, f32(2.0)))  # squared distance, at least
    doubtful = g("NonZero", g("Greater", g("Mul", farthest, farthest), outside))
    rows = g("Transpose", doubtful, perm=[1, 0])  # (t, 1)
    again = _nearest(g, g("GatherND", queries, rows), bank, halves, k)
    return g("ScatterND", distances, rows, again[0]), g("ScatterND", which, rows, again[1])


def _filled(rows: np.ndarray, value: float) -> np.ndarray:
    """Rows (m, ...) of a large bank, to which as many of a value are added as the last group lacks."""
    lacking = -len(rows) % _GROUP if len(rows) >= _LARGE else 0
    return np.concatenate([rows, np.full((lacking, *rows.shape[1:]), value, dtype=rows.dtype)])


def _smallest(g: Graph, values: Name, m: int, count: int) -> tuple[Name, Name]:
    """The smallest values of every row (n, m), ascending, and where: (n, count)."""
    groups = m // _GROUP
    if m < _LARGE or groups < count:
        found, where = g.several("TopK", 2, values, i64([count]), axis=1, largest=0)
        return found, where
    grouped = g("Reshape", values, i64([0, groups, _GROUP]))
    # The j-th smallest value lies in one of the j groups with the smallest minima.
    _, best = g.several("TopK", 2, g("ReduceMin", grouped, i64([2]), keepdims=0), i64([count]), axis=1, largest=0)
    members = g(
        "Reshape", g("GatherND", grouped, g("Unsqueeze", best, i64([2])), batch_dims=1), i64([0, count * _GROUP])
    )
    found, places = g.several("TopK", 2, members, i64([count]), axis=1, largest=0)
    group = g("GatherElements", best, g("Div", places, i64(_GROUP)), axis=1)
    return found, g("Add", g("Mul", group, i64(_GROUP)), g("Mod", places, i64(_GROUP)))


def _decided(g: Graph, queries: Name, bank: np.ndarray, listed: Name, k: int) -> tuple[Name, Name]:
    """The k nearest of those listed (n, s), by distances measured from the vectors themselves."""
    off = g("Sub", g("Gather", bank, listed, axis=0), g("Unsqueeze", queries, i64([1])))  # (n, s, d)
    distances = g("Sqrt", g("ReduceSum", g("Mul", off, off), i64([2]), keepdims=0))
    nearest, order = g.several("TopK", 2, distances, i64([k]), axis=1, largest=0)
    return nearest, g("GatherElements", listed, order, axis=1)


def _by_subspace(g: Graph, rows: Name, scorer: SubspaceScorer) -> Name:
    """Mahalanobis distance inside, and the residual outside; see `scoring.subspace`."""
    inside = g.cast(_projected(g, scorer.pca_, rows), np.float64)
    squared = g("ReduceSum", g("Div", g("Mul", inside, inside), f64(scorer.variances_)), i64([1]), keepdims=0)
    axes = scorer.pca_.components_.astype(np.float32)
    centred = g("Div", g("Sub", rows, f32(scorer.pca_.mean_)), f32(scorer.pca_.scale_))
    rest = g("Sub", centred, g("MatMul", g("MatMul", centred, np.ascontiguousarray(axes.T)), axes))
    rest = g.cast(g("ReduceSum", g("Mul", rest, rest), i64([1]), keepdims=0), np.float64)
    return g("Sqrt", g("Add", squared, g("Div", rest, f64(scorer.residual_variance_))))


def _projected(g: Graph, pca: PCA, rows: Name) -> Name:
    projection, offset = (part.numpy() for part in pca.linear)
    return g("Add", g("MatMul", rows, projection), offset)
