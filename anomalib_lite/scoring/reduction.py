"""PCA learnt from all rows or chunk by chunk, with optional whitening.

Rows (n, d) go in, rows (n, n_components_) come out. Memory is d² numbers whatever n is: only the mean and the
scatter matrix are kept, updated by the pairwise rule of Chan, Golub and LeVeque (1983). With fewer rows
than dimensions, as for one vector per image, the eigenvectors come from the (n, n) Gram matrix instead.
scikit-learn's IncrementalPCA truncates between chunks and so depends on their order; this does not.
"""

from __future__ import annotations

import numpy as np
import torch

from anomalib_lite.scoring.base import check_state

# Components with less than this share of the largest variance are float32 rounding, not signal.
_NOISE_FLOOR = 1e-7
_CHUNK = 2048  # rows that `fit` takes in at a time


class PCA:
    """Principal component analysis by eigendecomposition of the covariance.

    Parameters
    ----------
    n_components : int, float in (0, 1), or None
        Number of components, or the share of variance they must explain together, or all.
    whiten : bool
        Scale every component to unit variance.
    standardize : bool
        Divide every dimension by its standard deviation first (PCA of the correlation matrix); dimensions
        without variance are left as they are.

    Attributes
    ----------
    mean_ : (d,), scale_ : (d,), components_ : (n_components_, d), explained_variance_ : (n_components_,), all float64;
    explained_variance_ratio_ : (n_components_,), as in scikit-learn; n_rows_ : rows seen.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(500, 3)) * [3.0, 1.0, 0.01]
    >>> pca = PCA(n_components=0.95).fit(X)
    >>> pca.n_components_, pca.transform(X).shape
    (2, (500, 2))
    """

    def __init__(self, n_components: int | float | None = None, *, whiten: bool = False, standardize: bool = False):
        share = isinstance(n_components, float)
        if n_components is not None and not (0 < n_components < 1 if share else n_components >= 1):
            raise ValueError(
                f"n_components={n_components!r}; give a number of components (1, 2, …), a share of variance "
                "between 0 and 1, or None for all"
            )
        self.n_components = n_components
        self.whiten = whiten
        self.standardize = standardize
        self._rows = 0
        self._mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    @property
    def n_components_(self) -> int:
        return len(self.components_)

    def fit(self, X: np.ndarray) -> PCA:
        """Learn from all rows `X` (n, d) at once.

        Raises
        ------
        ValueError
            As `partial_fit` and `finish`.
        """
        X = _checked(X)
        if 1 < len(X) < X.shape[1]:
            mean = X.mean(axis=0, dtype=np.float64)
            centred = X - mean
            scale = self._scales((centred**2).sum(axis=0), len(X))
            _, singular, axes = np.linalg.svd(centred / scale, full_matrices=False)
            self._mean = self._scatter = None
            self._settle(len(X), mean, scale, singular**2, axes)
            return self
        self.__dict__.pop("components_", None)
        self._rows, self._mean, self._scatter = 0, None, None
        for start in range(0, len(X), _CHUNK):  # what a chunk leaves behind while it is taken in stays in the cache
            self.partial_fit(X[start : start + _CHUNK])
        return self.finish()

    def partial_fit(self, X: np.ndarray) -> PCA:
        """Take in one more chunk of rows (n, d); call `finish` after the last.

        Raises
        ------
        ValueError
            If rows hold NaN or infinity, or their length differs from earlier chunks'.
        RuntimeError
            If it was learnt at once by `fit`, or loaded: what came before is not kept then.
        """
        X = _checked(X)
        if self._scatter is None and hasattr(self, "components_"):
            raise RuntimeError("this PCA was not learnt chunk by chunk, so no chunk can be added; begin with a new one")
        if self._mean is not None and X.shape[1] != len(self._mean):
            raise ValueError(f"rows have {X.shape[1]} dimensions, earlier chunks had {len(self._mean)}")
        if len(X) == 0:
            return self
        mean = X.mean(axis=0, dtype=np.float64)
        centred = X - mean.astype(X.dtype)
        # Products in the rows' own precision (fast), sums across chunks in float64. By torch, as in `transform`.
        factor = torch.from_numpy(centred)
        scatter = (factor.T @ factor).numpy().astype(np.float64)
        if self._mean is None or self._scatter is None:
            self._rows, self._mean, self._scatter = len(X), mean, scatter
            return self
        total = self._rows + len(X)
        step = mean - self._mean
        self._scatter += scatter + np.outer(step, step) * (self._rows * len(X) / total)
        self._mean = self._mean + step * (len(X) / total)
        self._rows = total
        return self

    def finish(self) -> PCA:
        """Turn what the chunks left into components; more chunks may follow.

        Raises
        ------
        ValueError
            If fewer than two rows were seen, they are all the same, or `n_components` exceeds their dimension.
        """
        if self._mean is None or self._scatter is None:
            raise ValueError("PCA has seen no rows; call partial_fit first")
        scale = self._scales(np.diag(self._scatter), self._rows)
        variances, axes = np.linalg.eigh(self._scatter / np.outer(scale, scale))
        self._settle(self._rows, self._mean, scale, variances[::-1], axes.T[::-1])
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Project rows (n, d) to (n, n_components_) float32.

        Raises
        ------
        ValueError
            If rows have another dimension than those learnt from.
        """
        X = self._rows_like_learnt(X)
        # (x - mean) P = x P - mean P: one pass over X instead of two. By torch, whose threads the network uses
        # too: numpy's own pool would spin against them (measured: scoring one image 1.6 times slower).
        return torch.addmm(self._offset, torch.from_numpy(X), self._projection).numpy()

    @property
    def linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Projection (d, n_components_) and offset (n_components_,), float32: `transform` is X @ these + offset."""
        return self._projection, self._offset

    def residual(self, X: np.ndarray) -> np.ndarray:
        """Distance (n,) of rows (n, d) to the subspace of the components, in the (standardised) unit of the rows.

        Raises
        ------
        ValueError
            If rows have another dimension than those learnt from.
        """
        X = self._rows_like_learnt(X)
        # Rebuilt and subtracted, not |x|² - |inside|²: that would cancel for rows near the subspace.
        centred = torch.from_numpy((X - self.mean_.astype(np.float32)) / self.scale_.astype(np.float32))
        axes = torch.from_numpy(self.components_.astype(np.float32))
        return (centred - (centred @ axes.T) @ axes).norm(dim=1).numpy().astype(np.float64)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `from_state` rebuilds the learnt projection."""
        return {
            "mean": self.mean_.astype(np.float32),
            "scale": self.scale_.astype(np.float32),
            "components": self.components_.astype(np.float32),
            "explained_variance": self.explained_variance_,
            "explained_variance_ratio": self.explained_variance_ratio_,
            "rows_whiten_standardize": np.array([self.n_rows_, self.whiten, self.standardize], dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> PCA:
        check_state(
            state,
            mean="d",
            scale="d",
            components="q d",
            explained_variance="q",
            explained_variance_ratio="q",
            rows_whiten_standardize="3",
        )
        rows, whiten, standardize = (int(value) for value in state["rows_whiten_standardize"])
        lengths = np.linalg.norm(state["components"].astype(np.float64), axis=1)
        if state["scale"].min() <= 0 or state["explained_variance"].min() <= 0 or np.abs(lengths - 1).max() > 1e-3:
            raise ValueError("a PCA has scales and variances above 0 and components of length 1")
        pca = cls(len(state["components"]), whiten=bool(whiten), standardize=bool(standardize))
        pca.mean_ = state["mean"].astype(np.float64)
        pca.scale_ = state["scale"].astype(np.float64)
        pca.components_ = state["components"].astype(np.float64)
        pca.explained_variance_ = state["explained_variance"]
        pca.explained_variance_ratio_ = state["explained_variance_ratio"]
        pca.n_rows_ = rows
        pca._prepare()
        return pca

    def _rows_like_learnt(self, X: np.ndarray) -> np.ndarray:
        X = np.asarray(X, dtype=np.float32)
        if X.ndim != 2 or X.shape[1] != len(self.mean_):
            raise ValueError(f"X has shape {X.shape}; this PCA was learnt on rows of {len(self.mean_)} dimensions")
        return X

    def _scales(self, squares: np.ndarray, rows: int) -> np.ndarray:
        """Standard deviation of every dimension from its sum of squares; 1 where there is none or none is asked."""
        if rows < 2:
            raise ValueError("PCA needs at least two rows")
        if not self.standardize:
            return np.ones(len(squares))
        deviations = np.sqrt(np.maximum(squares, 0) / (rows - 1)).astype(np.float64)
        return np.where(deviations > 1e-9 * max(deviations.max(), 1e-30), deviations, 1.0)

    def _settle(
        self, rows: int, mean: np.ndarray, scale: np.ndarray, scatter_values: np.ndarray, axes: np.ndarray
    ) -> None:
        variances = np.maximum(np.asarray(scatter_values, dtype=np.float64), 0) / (rows - 1)
        if variances[0] <= 0:
            raise ValueError("all rows are the same: there is no variance to explain (constant images?)")
        ratio = variances / variances.sum()
        count = self._count(ratio, rows, len(mean))
        keep = min(count, int((variances > _NOISE_FLOOR * variances[0]).sum()))
        # Signs are free; fix them so that equal data give equal components.
        signs = np.sign(axes[np.arange(keep), np.abs(axes[:keep]).argmax(axis=1)])
        # Rounded as `state` stores them, so that a loaded PCA does exactly what the learnt one did.
        self.n_rows_, self.mean_, self.scale_ = rows, _float32(mean), _float32(scale)
        self.components_ = _float32(axes[:keep] * signs[:, None])
        self.explained_variance_, self.explained_variance_ratio_ = variances[:keep], ratio[:keep]
        self._prepare()

    def _count(self, ratio: np.ndarray, rows: int, dimension: int) -> int:
        if self.n_components is None:
            return len(ratio)
        if isinstance(self.n_components, float):
            return int(np.searchsorted(np.cumsum(ratio), self.n_components)) + 1
        if self.n_components > min(rows, dimension):
            raise ValueError(
                f"n_components={self.n_components} is more than {rows} rows of {dimension} dimensions can give; "
                f"choose at most {min(rows, dimension)}, or a share of variance such as 0.95"
            )
        return self.n_components

    def _prepare(self) -> None:
        axes = self.components_.T / self.scale_[:, None]
        if self.whiten:
            axes = axes / np.sqrt(self.explained_variance_)
        self._projection = torch.from_numpy(np.ascontiguousarray(axes, dtype=np.float32))
        self._offset = torch.from_numpy(-(self.mean_ @ axes).astype(np.float32))


class Standardizer:
    """Centre every dimension and divide it by its standard deviation; no dimension is lost.

    Attributes
    ----------
    mean_, scale_ : (d,); dimensions without variance have scale 1.
    """

    def fit(self, X: np.ndarray) -> Standardizer:
        """Learn from rows (n, d)."""
        X = _checked(X)
        if len(X) < 2:
            raise ValueError("standardising needs at least two rows")
        deviation = X.std(axis=0, dtype=np.float64, ddof=1)
        self.mean_ = X.mean(axis=0, dtype=np.float64)
        self.scale_ = np.where(deviation > 1e-9 * max(deviation.max(), 1e-30), deviation, 1.0)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Standardised rows (n, d) float32.

        Raises
        ------
        ValueError
            If rows have another dimension than those learnt from.
        """
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != len(self.mean_):
            raise ValueError(f"X has shape {X.shape}; learnt on rows of {len(self.mean_)} dimensions")
        return ((X - self.mean_) / self.scale_).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean_, "scale": self.scale_}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Standardizer:
        check_state(state, mean="d", scale="d")
        if state["scale"].min() <= 0:
            raise ValueError("a standardiser has scales above 0")
        standardizer = cls()
        standardizer.mean_, standardizer.scale_ = state["mean"], state["scale"]
        return standardizer


Reduction = PCA | Standardizer


def restore_reduction(state: dict[str, np.ndarray]) -> Reduction:
    """The reduction whose `state` this is."""
    return PCA.from_state(state) if "components" in state else Standardizer.from_state(state)


def _float32(values: np.ndarray) -> np.ndarray:
    """float64 values that float32 can hold."""
    return values.astype(np.float32).astype(np.float64)


def _checked(X: np.ndarray) -> np.ndarray:
    X = np.asarray(X)
    if X.ndim != 2:
        raise ValueError(f"PCA takes rows (n, d), got shape {X.shape}")
    if X.dtype != np.float64:
        X = X.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        total = X.sum()
    if not np.isfinite(total) and not np.isfinite(X).all():
        raise ValueError("rows hold NaN or infinity; look for broken images or features")
    return X
