"""Scorers as ONNX operators: rows (n, d) in, anomaly scores (n,) float64 out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from anomalib_lite.exporting.graph import Graph, Name, f32, f64, i64
from anomalib_lite.scoring import DBSCANScorer, KMeansScorer, KNNScorer, Scorer, SubspaceScorer
from anomalib_lite.scoring.reduction import PCA

_QUERIES = 1024  # rows compared with a bank at a time: their products with 10 000 take 40 MB
_SPARE = 2  # candidates beyond k, whose distances are measured from the vectors themselves


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
    sizes = [len(part) for part in np.array_split(np.arange(n), -(-n // _QUERIES))]
    parts = [queries] if len(sizes) == 1 else g.several("Split", len(sizes), queries, i64(sizes), axis=0)
    found = [_nearest(g, part, centred, f32(halves), k) for part in parts]
    distances, which = (
        (names[0] if len(names) == 1 else g("Concat", *names, axis=0)) for names in zip(*found, strict=True)
    )
    measured = distances if units is None else g("Div", distances, g("Gather", f32(units), which, axis=0))
    scores = g("ReduceMean", g.cast(measured, np.float64), i64([1]), keepdims=0)
    return Found(scores, *(g("Gather", name, i64(0), axis=1) for name in (which, distances)))


def _nearest(g: Graph, queries: Name, bank: np.ndarray, halves: np.ndarray, k: int) -> tuple[Name, Name]:
    """Distances and bank rows (n, k) of centred queries (n, d), ascending."""
    # |b|²/2 - q·b, which is the squared distance but for what depends on the query alone: makes a short list.
    short = g("Gemm", queries, bank, halves, alpha=-1.0, transB=1)
    _, listed = g.several("TopK", 2, short, i64([min(k + _SPARE, len(bank))]), axis=1, largest=0)
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
