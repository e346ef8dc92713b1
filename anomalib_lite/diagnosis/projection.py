"""Embedding maps: image vectors in two dimensions by t-SNE or UMAP, reproducible from a seed.

Both look at neighbours only: near points are alike, but distances between groups, and the size of a group, mean nothing
(van der Maaten and Hinton 2008; McInnes et al. 2018). Vectors are standardised and reduced by PCA first, which
removes noise and makes both fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from anomalib_lite.scoring.base import check_rows
from anomalib_lite.scoring.coreset import greedy_k_center
from anomalib_lite.scoring.reduction import PCA

Method = Literal["tsne", "umap"]

_COMPONENTS = 50  # what both papers' authors use
_MOST = 2000  # points that a page can show and two cores can place in seconds


@dataclass(frozen=True)
class EmbeddingMap:
    """Points in the plane.

    Attributes
    ----------
    points : float64 (m, 2)
    rows : int (m,), positions of the points among the rows given
    subsampled : whether some rows were left out
    method : "tsne" or "umap"
    """

    points: np.ndarray
    rows: np.ndarray
    subsampled: bool
    method: str


class Projector:
    """Places rows in the plane; with UMAP also rows that come later.

    Parameters
    ----------
    method : "tsne" or "umap"
        UMAP places many rows quicker (2 000 in 3.6 s of a core, t-SNE in 7.1), but compiles itself at every start in
        8.1 s, so that one map is drawn sooner by t-SNE.
    neighbors : int
        Neighbours that each point keeps: UMAP's n_neighbors, t-SNE's perplexity. Lowered for few rows.
    most : int
        More rows than this are thinned to a greedy k-center coreset, which keeps the odd ones.
    random_state : int
        The same seed gives the same coordinates on the same machine; UMAP then runs on one core.
    """

    def __init__(
        self, method: Method = "tsne", *, neighbors: int = 15, most: int = _MOST, random_state: int = 0
    ) -> None:
        if method not in ("tsne", "umap"):
            raise ValueError(f"method={method!r}; choose 'tsne' or 'umap'")
        if neighbors < 2:
            raise ValueError(f"neighbors={neighbors}; at least 2")
        self.method = method
        self.neighbors = neighbors
        self.most = most
        self.random_state = random_state

    def fit(self, X: ArrayLike) -> EmbeddingMap:
        """Place rows (n, d).

        Raises
        ------
        ValueError
            If there are fewer than five rows, or they are not finite.
        """
        rows = check_rows(np.asarray(X))
        if len(rows) < 5:
            raise ValueError(f"{len(rows)} images are too few for a map; give at least five")
        chosen = np.arange(len(rows))
        pca = PCA(min(_COMPONENTS, *rows.shape), standardize=True).fit(rows)
        reduced = pca.transform(rows)
        if len(rows) > self.most:
            chosen = np.sort(greedy_k_center(reduced, self.most, random_state=self.random_state)[0])
        points = self._place(reduced[chosen])
        self.pca_ = pca
        return EmbeddingMap(points, chosen, len(chosen) < len(rows), self.method)

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Points (m, 2) of new rows (m, d) on the map that was fitted.

        Raises
        ------
        ValueError
            For t-SNE, which has no place for new rows.
        """
        if self.method == "tsne":
            raise ValueError("t-SNE places all rows at once; fit it on old and new rows together, or use method='umap'")
        return np.asarray(self.umap_.transform(self.pca_.transform(check_rows(np.asarray(X)))), dtype=np.float64)

    def _place(self, rows: np.ndarray) -> np.ndarray:
        neighbors = min(self.neighbors, len(rows) - 2)
        if self.method == "tsne":
            from sklearn.manifold import TSNE

            # Barnes–Hut asks for a perplexity below a third of the rows.
            perplexity = min(neighbors, max(2, (len(rows) - 1) // 3))
            model = TSNE(perplexity=perplexity, init="pca", random_state=self.random_state)
            return np.asarray(model.fit_transform(rows), dtype=np.float64)
        from umap import UMAP

        # Few points leave the spectral start without enough eigenvectors.
        start = "spectral" if len(rows) > 20 else "random"
        self.umap_ = UMAP(n_neighbors=neighbors, init=start, random_state=self.random_state, n_jobs=1)
        return np.asarray(self.umap_.fit_transform(rows), dtype=np.float64)
