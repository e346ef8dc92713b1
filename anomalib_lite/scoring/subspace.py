"""A Gaussian of good rows, seen through their principal subspace: residual plus Mahalanobis distance.

The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf 2004), which makes it
invertible with fewer rows than dimensions, and is kept as its leading components plus one variance for all that
lies outside them. The squared score is the Mahalanobis distance inside plus the squared residual over
that variance: what SPE and T² control charts watch separately, in one number.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from anomalib_lite.scoring.base import check_fitted, check_rows, check_state
from anomalib_lite.scoring.reduction import PCA


class SubspaceScorer:
    """Mahalanobis distance under a shrunk covariance kept as principal components and a residual.

    The model is small (components × d numbers) and needs no bank, whatever the number of rows.

    Parameters
    ----------
    n_components : int, float in (0, 1), or None
        Components kept, the share of variance they explain, or all.
    shrinkage : float in (0, 1] or "auto"
        Weight of the identity in the covariance; "auto" is Ledoit and Wolf's estimate.

    Attributes
    ----------
    pca_ : PCA of the standardised rows; shrinkage_ : float; variances_ : (q,), shrunk variances of the components;
    residual_variance_ : float, variance per dimension outside them.

    Examples
    --------
    >>> good = np.random.default_rng(0).normal(size=(200, 3)) * [5.0, 1.0, 0.1]
    >>> scorer = SubspaceScorer().fit(good)
    >>> bool(scorer.score([[0, 0, 2.0]])[0] > scorer.score([[5.0, 0, 0]])[0])
    True
    """

    name: ClassVar[str] = "subspace"
    max_rows: ClassVar[int] = 65_536

    def __init__(self, *, n_components: int | float | None = 0.99, shrinkage: float | str = "auto"):
        if shrinkage != "auto" and not (isinstance(shrinkage, (int, float)) and 0 < shrinkage <= 1):
            raise ValueError(f"shrinkage={shrinkage!r}; give a weight in (0, 1] or 'auto'")
        self.n_components = n_components
        self.shrinkage = shrinkage

    def fit(self, X: np.ndarray, groups: np.ndarray | None = None) -> SubspaceScorer:
        """Learn the subspace and variances from rows `X` (n, d), n >= 2; `groups` is not used.

        Raises
        ------
        ValueError
            If there is one row only, all rows are the same, or rows are not finite.
        """
        X = check_rows(X)
        pca = PCA(self.n_components, standardize=True).fit(X)
        shrinkage = self._shrinkage(X, pca) if self.shrinkage == "auto" else float(self.shrinkage)
        total = pca.explained_variance_.sum() / pca.explained_variance_ratio_.sum()
        target = total / X.shape[1]
        outside = max(0, min(len(X) - 1, X.shape[1]) - pca.n_components_)
        left = (total - pca.explained_variance_.sum()) / outside if outside else 0.0
        self.shrinkage_ = shrinkage
        self._set(
            pca,
            (1 - shrinkage) * pca.explained_variance_ + shrinkage * target,
            # Never zero, so that a direction unseen among good rows stays finite.
            max((1 - shrinkage) * left + shrinkage * target, 1e-6 * target),
        )
        return self

    def score(self, X: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,) of rows (n, d), in standard deviations of good rows; higher = more anomalous."""
        check_fitted(self, "pca_")
        X = check_rows(X, len(self.pca_.mean_))
        inside = self.pca_.transform(X).astype(np.float64)
        squared = (inside**2 / self.variances_).sum(axis=1)
        return np.sqrt(squared + self.pca_.residual(X) ** 2 / self.residual_variance_)

    def parameters(self) -> dict[str, Any]:
        return {"n_components": self.n_components, "shrinkage": self.shrinkage}

    def state(self) -> dict[str, np.ndarray]:
        learnt = {f"pca_{key}": value for key, value in self.pca_.state().items()}
        return {
            **learnt,
            "variances": self.variances_,
            "residual_variance": np.array([self.residual_variance_]),
        }

    @classmethod
    def from_state(
        cls, parameters: dict[str, Any], state: dict[str, np.ndarray], *, device: str = "auto"
    ) -> SubspaceScorer:
        scorer = cls(**parameters)
        pca = PCA.from_state({key.removeprefix("pca_"): value for key, value in state.items()})
        (q,) = check_state(state, variances="q", residual_variance="1")
        if q != pca.n_components_ or state["variances"].min() <= 0 or state["residual_variance"][0] <= 0:
            raise ValueError(f"{q} variances of {pca.n_components_} components: one each is needed, above 0")
        scorer._set(pca, state["variances"], float(state["residual_variance"][0]))
        return scorer

    def _set(self, pca: PCA, variances: np.ndarray, residual_variance: float) -> None:
        self.variances_ = variances
        self.residual_variance_ = residual_variance
        self.pca_ = pca

    def _shrinkage(self, X: np.ndarray, pca: PCA) -> float:
        from sklearn.covariance import ledoit_wolf_shrinkage

        # The estimate settles with a few thousand rows and costs d² per block of features.
        step = max(1, len(X) // 4096)
        rows = (X[::step].astype(np.float64) - pca.mean_) / pca.scale_
        return float(ledoit_wolf_shrinkage(rows, assume_centered=True))
