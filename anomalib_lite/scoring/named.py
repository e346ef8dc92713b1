"""Scorers by name, with the parameters that suit the level they work at."""

from __future__ import annotations

from typing import Literal

from anomalib_lite.scoring.base import Scorer
from anomalib_lite.scoring.dbscan import DBSCANScorer
from anomalib_lite.scoring.kmeans import KMeansScorer
from anomalib_lite.scoring.knn import KNNScorer, Selection
from anomalib_lite.scoring.subspace import SubspaceScorer

ScorerName = Literal["knn", "kmeans", "dbscan", "subspace"]

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer for scorer in (KNNScorer, KMeansScorer, DBSCANScorer, SubspaceScorer)
}


def can_be_stored(scorer: Scorer) -> bool:
    """Tell whether a model file can hold this scorer: only those named here are known where it is opened."""
    return SCORERS.get(scorer.name) is type(scorer)


def make_scorer(
    name: str,
    level: Literal["patch", "global"] = "patch",
    *,
    bank_size: int = 10_000,
    selection: Selection = "k-center",
    k: int = 2,
    n_clusters: int | Literal["silhouette", "auto"] = "auto",
    eps: float | Literal["knee"] = "knee",
    min_samples: int = 5,
    random_state: int = 0,
    device: str = "auto",
) -> Scorer:
    """Make an unfitted scorer; parameters that do not concern it are left aside.

    Raises
    ------
    ValueError
        If there is no scorer of that name or a parameter is out of range.
    """
    if name == "knn":
        return KNNScorer(bank_size=bank_size, selection=selection, k=k, random_state=random_state, device=device)
    if name == "kmeans":
        if n_clusters == "auto":
            # Parts are a continuum that many centroids tile: elbow and silhouette pick fewer, and detect less well.
            n_clusters = 1024 if level == "patch" else 32
        return KMeansScorer(n_clusters=n_clusters, random_state=random_state, device=device)
    if name == "dbscan":
        return DBSCANScorer(eps=eps, min_samples=min_samples, device=device)
    if name == "subspace":
        return SubspaceScorer()
    raise ValueError(f"scorer={name!r}; choose one of {', '.join(SCORERS)}, or pass a Scorer")
