"""K-means on good rows: the score is the distance to the nearest centroid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from anomalib_lite.scoring.base import check_fitted, check_rows, check_state, read_only
from anomalib_lite.scoring.coreset import greedy_k_center
from anomalib_lite.scoring.neighbors import NeighborIndex

_CANDIDATES = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # cluster counts tried by the silhouette
SILHOUETTE_ROWS = 2000  # the silhouette is quadratic in rows


class KMeansScorer:
    """Euclidean distance to the nearest of `n_clusters` centroids of good rows (Lloyd 1982).

    Lloyd's iterations start from a greedy k-center traversal, so rare good rows get centroids of their own;
    random starts spend most centroids on the commonest rows.

    Parameters
    ----------
    n_clusters : int or "silhouette"
        Number of centroids. "silhouette" takes the count between 2 and 32 with the highest mean silhouette
        (Rousseeuw 1987); it finds groups that are well apart, which is rarely the count that detects best.
    max_iter : int
    random_state : int
    device : str
        Where to search; does not change scores beyond rounding.

    Attributes
    ----------
    centroids_ : float32 (n_clusters, d); inertia_ : float, mean squared distance of good rows to their centroid;
    silhouettes_ : dict from candidate count to mean silhouette, empty unless chosen by it.

    Examples
    --------
    >>> good = np.random.default_rng(0).normal(size=(300, 2)) + np.repeat([[0, 0], [20, 20], [0, 20]], 100, axis=0)
    >>> scorer = KMeansScorer(n_clusters="silhouette").fit(good)
    >>> len(scorer.centroids_), bool(scorer.score([[10, 10]])[0] > scorer.score([[20, 20]])[0])
    (3, True)
    """

    name: ClassVar[str] = "kmeans"

    def __init__(
        self,
        *,
        n_clusters: int | Literal["silhouette"] = 1024,
        max_iter: int = 20,
        random_state: int = 0,
        device: str = "auto",
    ):
        if not (n_clusters == "silhouette" or (isinstance(n_clusters, int) and n_clusters >= 1)):
            raise ValueError(f"n_clusters={n_clusters!r}; give a number of clusters or 'silhouette'")
        self.n_clusters = n_clusters
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    @property
    def max_rows(self) -> int:
        """Rows worth showing to `fit`."""
        return 65_536 if self.n_clusters == "silhouette" else max(65_536, 2 * self.n_clusters)

    def fit(self, X: np.ndarray, groups: np.ndarray | None = None) -> KMeansScorer:
        """Place centroids on rows `X` (n, d); `groups` is not used.

        With fewer distinct rows than `n_clusters`, every distinct row becomes a centroid.

        Raises
        ------
        ValueError
            If rows are not finite, or too few (3) for the silhouette.
        """
        X = check_rows(X)
        silhouettes: dict[int, float] = {}
        if self.n_clusters == "silhouette":
            silhouettes = self._silhouettes(X)
            count = max(silhouettes, key=silhouettes.__getitem__)
        else:
            count = int(self.n_clusters)
        centroids, inertia = lloyd(X, count, max_iter=self.max_iter, random_state=self.random_state)
        self.silhouettes_ = silhouettes
        self.inertia_ = inertia
        self._set(centroids)
        return self

    def score(self, X: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,) of rows (n, d): distance to the nearest centroid; higher = more anomalous."""
        check_fitted(self, "centroids_")
        return self._index.search(check_rows(X, self.centroids_.shape[1]))[0][:, 0].astype(np.float64)

    def parameters(self) -> dict[str, Any]:
        return {"n_clusters": self.n_clusters, "max_iter": self.max_iter, "random_state": self.random_state}

    def state(self) -> dict[str, np.ndarray]:
        return {"centroids": self.centroids_}

    @classmethod
    def from_state(
        cls, parameters: dict[str, Any], state: dict[str, np.ndarray], *, device: str = "auto"
    ) -> KMeansScorer:
        scorer = cls(**parameters, device=device)
        check_state(state, centroids="k d")
        scorer._set(state["centroids"])
        return scorer

    def _set(self, centroids: np.ndarray) -> None:
        self._index = NeighborIndex(centroids, device=self.device)
        self.centroids_ = read_only(centroids)

    def _silhouettes(self, X: np.ndarray) -> dict[int, float]:
        rng = np.random.default_rng(self.random_state)
        sample = X if len(X) <= SILHOUETTE_ROWS else X[rng.choice(len(X), SILHOUETTE_ROWS, replace=False)]
        found = silhouettes(sample, _CANDIDATES, max_iter=self.max_iter, random_state=self.random_state)
        results = {count: float(values.mean()) for count, _, values in found}
        if not results:
            raise ValueError(
                f"the silhouette needs at least 3 rows that are not all the same, got {len(X)}; "
                "set n_clusters to a number"
            )
        return results


def lloyd(X: np.ndarray, count: int, *, max_iter: int = 20, random_state: int = 0) -> tuple[np.ndarray, float]:
    """Lloyd's iterations from a k-center start: centroids (count, d) of rows (n, d), and the inertia per row.

    With fewer distinct rows than `count`, every distinct row is a centroid.
    """
    from sklearn.cluster import KMeans

    start, radius = greedy_k_center(X, count, random_state=random_state)
    if radius == 0 or len(start) == len(X):
        return X[start], 0.0
    model = KMeans(len(start), init=X[start], n_init=1, max_iter=max_iter).fit(X)
    return model.cluster_centers_.astype(np.float32), float(model.inertia_ / len(X))


def silhouettes(
    X: np.ndarray, counts: Iterable[int], *, max_iter: int = 20, random_state: int = 0
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Cluster rows (n, d) into each of `counts`: the count, labels (n,) and float64 silhouettes (n,) (Rousseeuw 1987).

    Counts that leave one cluster only, or each row alone, have no silhouette and are passed over.
    """
    from sklearn.metrics import silhouette_samples

    for count in counts:
        if count >= len(X):
            continue
        labels = NeighborIndex(lloyd(X, count, max_iter=max_iter, random_state=random_state)[0]).search(X)[1][:, 0]
        if 1 < len(np.unique(labels)) < len(X):
            yield count, labels, silhouette_samples(X, labels).astype(np.float64)
