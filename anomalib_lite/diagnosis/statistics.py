"""Numbers that say whether good images look as one expects: arrays in, small frozen results out.

How many groups there are (elbow, silhouette), how dense they lie (k-distance, DBSCAN over eps), how many dimensions
they need (explained variance), which training images look like defects, and which images are there twice. No
function here draws, reads an image or runs a network; `advice` does, and `figures` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.coverage import binomial_band, direction_of
from anomalib_lite.fitted.suspicion import far_out_limit
from anomalib_lite.scoring.base import check_rows
from anomalib_lite.scoring.dbscan import DBSCANScorer, knee, leave_out_k_distances
from anomalib_lite.scoring.kmeans import SILHOUETTE_ROWS, lloyd, silhouettes

COUNTS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)


@dataclass(frozen=True)
class Elbow:
    """K-means inertia over the number of clusters.

    Attributes
    ----------
    counts : int (m,)
    inertias : float64 (m,), mean squared distance of rows to their centroid
    k : count at the knee of the curve, the point farthest below its chord (Satopaa et al. 2011)
    """

    counts: np.ndarray
    inertias: np.ndarray
    k: int


@dataclass(frozen=True)
class Silhouette:
    """Mean silhouette over the number of clusters, and of every row at the best one (Rousseeuw 1987).

    Attributes
    ----------
    counts : int (m,); means : float64 (m,); k : count with the largest mean
    rows : int (s,), positions of the rows examined, all or a sample
    labels : int (s,), their cluster at k; values : float64 (s,), their silhouette, -1 (in the wrong one) to 1
    """

    counts: np.ndarray
    means: np.ndarray
    k: int
    rows: np.ndarray
    labels: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class KDistance:
    """Ascending distances (n,) of rows to their k-th neighbour in other images, and the eps at their knee."""

    distances: np.ndarray
    k: int
    knee: int
    eps: float


@dataclass(frozen=True)
class DBSCANSweep:
    """Clusters and share of noise of DBSCAN over eps, each (m,)."""

    eps: np.ndarray
    n_clusters: np.ndarray
    noise_share: np.ndarray
    min_samples: int


@dataclass(frozen=True)
class ExplainedVariance:
    """Share of the variance that each principal component explains, descending (d,)."""

    ratios: np.ndarray

    def components_for(self, share: float) -> int:
        """Components that together explain `share` of the variance."""
        return min(int(np.searchsorted(np.cumsum(self.ratios), share - 1e-9)) + 1, len(self.ratios))


@dataclass(frozen=True)
class ClusterMatch:
    """How well clusters match known labels: adjusted Rand index and normalised mutual information, 1 at best."""

    ari: float
    nmi: float


@dataclass(frozen=True)
class Suspicious:
    """Training images, the least like all others first.

    Attributes
    ----------
    ids : list of str
    scores : float64 (n,), descending, each by a scorer that has not learnt from the image
    p_values : float64 (n,), share of training images that score at least as high, the image itself included
    outlying : bool (n,), farther out than a sample of good images is expected to reach
    limit : the score above which that is so
    """

    ids: list[str]
    scores: np.ndarray
    p_values: np.ndarray
    outlying: np.ndarray
    limit: float


@dataclass(frozen=True)
class Batch:
    """How the good images of one day, batch or folder do at a threshold learnt from all others.

    Attributes
    ----------
    name : str
    n_images, alarms : int
    rate : the false-alarm rate that this threshold stands for
    direction : "above" or "below" the band of chance around it, or "within"
    """

    name: str
    n_images: int
    alarms: int
    rate: float
    direction: str

    @property
    def observed(self) -> float:
        """Share of its images that alarm."""
        return self.alarms / self.n_images


def batches(names: Sequence[str], scores: ArrayLike, false_alarm_rate: float) -> list[Batch]:
    """False alarms of every batch at the threshold of the others, in the order of their names.

    Parameters
    ----------
    names : of the batch of each image, n of at least two kinds
    scores : (n,), each by a scorer that has not learnt from the batch of the image
    false_alarm_rate : asked for; the smallest that the other images support is taken if that is larger

    Raises
    ------
    ValueError
        If all images are of one batch.
    """
    labels, values = np.asarray(names), np.asarray(scores, dtype=np.float64)
    found = []
    for name in sorted(set(names)):
        mine = labels == name
        if mine.all():
            raise ValueError(f"all images are of the batch {name!r}; there are no others to compare it with")
        calibration = Calibration(values[~mine], false_alarm_rate)
        alarms, n, rate = int(calibration.alarms(values[mine]).sum()), int(mine.sum()), calibration.guaranteed_rate
        found.append(Batch(name, n, alarms, rate, direction_of(alarms, binomial_band(rate, n))))
    return found


def elbow(X: ArrayLike, counts: Sequence[int] = COUNTS, *, random_state: int = 0) -> Elbow:
    """Cluster rows (n, d) into each of `counts` clusters and mark the knee of the inertia.

    Raises
    ------
    ValueError
        If there are fewer than four rows, or they are not finite.
    """
    rows, usable = _clusterable(X, counts)
    inertias = np.array([lloyd(rows, count, random_state=random_state)[1] for count in usable])
    return Elbow(np.array(usable), inertias, usable[knee(inertias, np.array(usable))])


def silhouette(X: ArrayLike, counts: Sequence[int] = COUNTS, *, random_state: int = 0) -> Silhouette:
    """Silhouettes of K-means clusters of rows (n, d), or of 2000 of them drawn at random.

    Raises
    ------
    ValueError
        If there are fewer than four rows, they are not finite, or all the same.
    """
    X, usable = _clusterable(X, counts)
    chosen = np.arange(len(X))
    if len(X) > SILHOUETTE_ROWS:
        chosen = np.sort(np.random.default_rng(random_state).choice(len(X), SILHOUETTE_ROWS, replace=False))
    found = list(silhouettes(X[chosen], usable, random_state=random_state))
    if not found:
        raise ValueError(f"all {len(chosen)} rows are the same, or nearly: they make no two clusters")
    means = np.array([values.mean() for _, _, values in found])
    k, labels, values = found[int(means.argmax())]
    return Silhouette(np.array([count for count, _, _ in found]), means, k, chosen, labels, values)


def k_distance(X: ArrayLike, groups: ArrayLike | None = None, *, k: int = 4) -> KDistance:
    """Distances of rows (n, d) to their k-th nearest row of another group (n,), and the eps their knee suggests.

    Raises
    ------
    ValueError
        If rows are not finite, or all of one group.
    """
    rows = check_rows(np.asarray(X))
    distances = leave_out_k_distances(rows, np.arange(len(rows)) if groups is None else np.asarray(groups), k)
    at = knee(distances)
    return KDistance(distances, k, at, float(distances[at]))


def dbscan_sweep(X: ArrayLike, eps: ArrayLike | None = None, *, min_samples: int = 5, steps: int = 16) -> DBSCANSweep:
    """Clusters and noise of DBSCAN on rows (n, d) over `eps`, by default from the closest rows to all."""
    rows = check_rows(np.asarray(X))
    if eps is None:
        distances = k_distance(rows, k=max(1, min_samples - 1)).distances
        reach = max(float(np.linalg.norm(rows - rows.mean(axis=0), axis=1).max()), 1e-12)
        radii = np.geomspace(max(0.8 * distances[0], 1e-6 * reach), 2 * reach, steps)
    else:
        radii = np.asarray(eps, dtype=np.float64)
    clusters, noise = [], []
    for radius in radii:
        try:
            fitted = DBSCANScorer(eps=float(radius), min_samples=min_samples).fit(rows)
        except ValueError:  # no row is a core sample: all is noise
            clusters.append(0)
            noise.append(1.0)
            continue
        clusters.append(fitted.n_clusters_)
        noise.append(fitted.n_noise_ / len(rows))
    return DBSCANSweep(radii, np.array(clusters), np.array(noise), min_samples)


def explained_variance(X: ArrayLike) -> ExplainedVariance:
    """Spectrum of the covariance of rows (n, d)."""
    rows = check_rows(np.asarray(X)).astype(np.float64)
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    return ExplainedVariance(values / max(values.sum(), 1e-300))


def cluster_match(labels: ArrayLike, known: ArrayLike) -> ClusterMatch:
    """Compare clusters (n,) with known labels (n,), such as defect kinds."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return ClusterMatch(float(adjusted_rand_score(known, labels)), float(normalized_mutual_info_score(known, labels)))


def suspicious(ids: Sequence[str], scores: ArrayLike) -> Suspicious:
    """Order training images by how unlike the others they are; see `far_out_limit`.

    Parameters
    ----------
    ids : n names
    scores : (n,), each image scored as if it had not been in training
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) != len(ids) or len(ids) == 0:
        raise ValueError(f"{len(ids)} ids and {len(values)} scores; give one score per image, and at least one image")
    limit = far_out_limit(values)
    order = np.argsort(-values, kind="stable")
    ascending = np.sort(values)
    at_least = len(values) - np.searchsorted(ascending, values[order], side="left")
    return Suspicious([ids[i] for i in order], values[order], at_least / len(values), values[order] > limit, limit)


def _clusterable(X: ArrayLike, counts: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    rows = check_rows(np.asarray(X))
    usable = [int(count) for count in counts if 1 <= count < len(rows)]
    if len(rows) < 4 or not usable:
        raise ValueError(f"{len(rows)} rows are too few to look for clusters; give at least four")
    return rows, usable
