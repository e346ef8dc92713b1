"""Scorers: good rows (n, d) in, anomaly scores (n,) of new rows out. They know nothing of images.

`knn` compares with a bank of good rows, `kmeans` with centroids, `dbscan` with core samples, `subspace` with a
shrunk Gaussian. `coreset` chooses banks, `neighbors` searches them, `aggregation` makes image scores of patch scores.
"""

from anomalib_lite.scoring.aggregation import image_score
from anomalib_lite.scoring.base import Scorer
from anomalib_lite.scoring.coreset import greedy_k_center
from anomalib_lite.scoring.dbscan import DBSCANScorer
from anomalib_lite.scoring.kmeans import KMeansScorer
from anomalib_lite.scoring.knn import KNNScorer
from anomalib_lite.scoring.named import SCORERS, ScorerName, make_scorer
from anomalib_lite.scoring.subspace import SubspaceScorer

__all__ = [
    "SCORERS",
    "DBSCANScorer",
    "KMeansScorer",
    "KNNScorer",
    "Scorer",
    "ScorerName",
    "SubspaceScorer",
    "greedy_k_center",
    "image_score",
    "make_scorer",
]
