"""How well anomaly maps separate good from defective pixels: pixel AUROC, pixel AP and AUPRO.

AUPRO: Bergmann et al., International Journal of Computer Vision 129 (2021), 1038-1059.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalib_lite.evaluation.metrics import Floats

# Above this false-positive rate a segmentation is of no use (Bergmann et al.); PRO is integrated up to it.
AUPRO_FPR_LIMIT = 0.3
_PIXELS = 2**20  # counted at a time, so that a long line-scan picture needs little more memory than its map


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel-level results; what cannot be computed is None, and `reason` says why."""

    pixel_auroc: float | None
    pixel_ap: float | None
    aupro: float | None
    n_images: int
    n_regions: int
    reason: str | None = None


class PixelCurves:
    """Pixel AUROC, AP and AUPRO over any number of images, in one pass and constant memory.

    Scores are counted as float32 in 2**21 bins of relative width 2**-12, so it takes at most 48 MB. Scores
    that share a bin count as tied: half a pair in AUROC, one point of the other curves. Where all scores
    lie within a thousandth of one another that is too coarse; subtract a constant first. Counting takes 4 bytes
    per pixel of a map with defects, and next to none for one without.

    Examples
    --------
    >>> curves = PixelCurves()
    >>> curves.update(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[False, True], [False, False]]))
    >>> curves.result()
    PixelMetrics(pixel_auroc=1.0, pixel_ap=1.0, aupro=1.0, n_images=1, n_regions=1, reason=None)
    """

    # Of a float32 the sign, the 8 exponent bits and 12 bits of mantissa.
    _BITS = 21

    def __init__(self) -> None:
        # np.zeros takes untouched pages from the system, so unused bins cost no memory.
        self._good = np.zeros(2**self._BITS, dtype=np.int64)
        self._defective = np.zeros(2**self._BITS, dtype=np.int64)
        self._covered = np.zeros(2**self._BITS, dtype=np.float64)  # each pixel weighs 1 / area of its region
        self._first, self._last = 2**self._BITS, -1  # the used range of bins
        self._n_images = 0
        self._n_regions = 0

    def update(self, anomaly_map: ArrayLike, mask: ArrayLike) -> None:
        """Count one image.

        Parameters
        ----------
        anomaly_map : (h, w) scores, higher = more anomalous, on one scale for all images.
        mask : (h, w) bool, or integers with 0 for good; all False for a good image.

        Raises
        ------
        ValueError
            If shapes differ or are not (h, w), the mask holds fractions, or the map holds NaN; nothing is
            counted.
        """
        from scipy import ndimage

        scores, truth = np.asarray(anomaly_map), np.asarray(mask)
        if scores.ndim != 2 or scores.shape != truth.shape:
            raise ValueError(f"anomaly map {scores.shape} and mask {truth.shape}: need the same (h, w)")
        if truth.dtype.kind not in "bui":
            raise ValueError(f"mask of type {truth.dtype}: need bool or integers (binarise after resizing)")
        truth = truth.astype(bool, copy=False)
        if scores.size == 0:
            raise ValueError(f"anomaly map {scores.shape}: it holds no pixel")
        step = max(1, _PIXELS // scores.shape[1])
        blocks = [slice(top, top + step) for top in range(0, len(scores), step)]
        if n_nan := sum(int(np.isnan(scores[block]).sum()) for block in blocks):
            raise ValueError(f"anomaly map has {n_nan} NaN pixels; scores must be numbers")
        if truth.any():
            # 8-connected, as in the evaluation code of MVTec AD.
            regions, n_regions = ndimage.label(truth, structure=np.ones((3, 3)))
            areas = np.bincount(regions[truth])
            self._n_regions += n_regions
        for block in blocks:
            bins, defective = self._bins(scores[block]), truth[block]
            low, high = int(bins.min()), int(bins.max())
            used = slice(low, high + 1)
            bins -= low  # bincount then runs over the range of these rows, not over all bins
            self._good[used] += np.bincount(bins[~defective], minlength=high - low + 1)
            if defective.any():
                self._defective[used] += np.bincount(bins[defective], minlength=high - low + 1)
                weights = 1.0 / areas[regions[block][defective]]
                self._covered[used] += np.bincount(bins[defective], weights=weights, minlength=high - low + 1)
            self._first, self._last = min(self._first, low), max(self._last, high)
        self._n_images += 1

    def result(self) -> PixelMetrics:
        """Metrics of all images so far; more may follow."""
        used = slice(self._last, self._first - 1 if self._first > 0 else None, -1)  # highest score first
        good, defective, covered = self._good[used], self._defective[used], self._covered[used]
        filled = (good > 0) | (defective > 0)
        false_alarms, hits = np.cumsum(good[filled]), np.cumsum(defective[filled])
        reason = None
        if self._n_images == 0:
            reason = "no image was given"
        elif hits[-1] == 0:
            reason = f"no defective pixel in the masks of {self._n_images} images"
        elif false_alarms[-1] == 0:
            reason = f"no good pixel in the masks of {self._n_images} images"
        if reason is not None:
            return PixelMetrics(None, None, None, self._n_images, self._n_regions, reason)
        n_good, n_defective = int(false_alarms[-1]), int(hits[-1])
        x = np.concatenate([[0.0], false_alarms])
        overlap = np.concatenate([[0.0], np.cumsum(covered[filled]) / self._n_regions])
        aupro = _area_up_to(AUPRO_FPR_LIMIT, x / n_good, overlap) / AUPRO_FPR_LIMIT
        precision = hits / (hits + false_alarms)  # at every point something alarms
        return PixelMetrics(
            # Whole numbers until the division: no rounding. The straight line across a bin counts ties half.
            pixel_auroc=_area_up_to(n_good, x, np.concatenate([[0.0], hits])) / (n_good * n_defective),
            pixel_ap=float(np.sum(np.diff(hits, prepend=0) * precision) / n_defective),
            aupro=min(aupro, 1.0),  # the weights of a region sum to 1 but for rounding
            n_images=self._n_images,
            n_regions=self._n_regions,
        )

    def _bins(self, scores: np.ndarray) -> NDArray[np.int64]:
        """Bin of every score: the top bits of an integer that orders like the float."""
        with np.errstate(over="ignore"):  # beyond float32 counts as infinite
            values = scores.astype(np.float32) + np.float32(0.0)  # -0.0 becomes 0.0
        bits = values.view(np.int32)
        # Floats order by sign, then magnitude; with the magnitude bits of negatives flipped, like integers.
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        return (ordered >> (32 - self._BITS)).astype(np.int64) + 2 ** (self._BITS - 1)


def _area_up_to(limit: float, x: Floats, y: Floats) -> float:
    """Trapezoid area under a curve with rising x from x = 0 to the limit, cutting the last segment there."""
    inside = int(np.searchsorted(x, limit, "right"))  # a vertical step at the limit belongs to the inside
    if inside < x.size:
        slope = (y[inside] - y[inside - 1]) / (x[inside] - x[inside - 1])
        cut = y[inside - 1] + slope * (limit - x[inside - 1])
        x, y = np.append(x[:inside], limit), np.append(y[:inside], cut)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)
