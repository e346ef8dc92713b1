"""Pixel metrics against slow, plain references."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_lite.evaluation.pixel_metrics import PixelCurves, PixelMetrics


def slow_aupro(maps, masks):
    """Plain definition: every distinct threshold, every region."""
    points = [(0.0, 0.0)]
    regions = []
    for index, mask in enumerate(masks):
        labelled, n = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, labelled == region) for region in range(1, n + 1)]
    good = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    for threshold in np.unique(maps)[::-1]:
        share = np.mean([(maps[index][region] >= threshold).mean() for index, region in regions])
        points.append((np.mean(good >= threshold), share))
    x, y = np.array(points).T
    grid = np.linspace(0, 0.3, 30_001)
    keep = np.append(x[1:] != x[:-1], True)  # np.interp wants one value per x: the top of each step
    return np.trapezoid(np.interp(grid, x[keep], y[keep]), grid) / 0.3


def random_set(decimals=None):
    """Three defective images and a good one; the maps rise in the defects, which touch only at corners."""
    rng = np.random.default_rng(5)
    masks = np.zeros((4, 24, 24), dtype=bool)
    masks[0, 2:5, 2:5] = masks[0, 5:7, 5:9] = masks[1, 10:22, 3:20] = masks[2, 0, 0] = masks[2, 20:23, 5] = True
    maps = rng.normal(size=masks.shape) + 1.2 * masks
    return (maps if decimals is None else np.round(maps, decimals)), masks


def curves_of(maps, masks):
    curves = PixelCurves()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        curves.update(anomaly_map, mask)
    return curves.result()


class TestPixelCurves:
    @pytest.mark.parametrize("decimals", [None, 0], ids=["continuous", "ties"])
    def test_agrees_with_plain_definitions(self, decimals):
        maps, masks = random_set(decimals)
        result = curves_of(maps, masks)
        assert result.pixel_auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-4)
        assert result.pixel_ap == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-4)
        assert result.aupro == pytest.approx(slow_aupro(maps, masks), abs=1e-3)
        assert (result.n_images, result.n_regions, result.reason) == (4, 4, None)

    def test_small_regions_weigh_as_much_as_large_ones(self):
        masks = np.zeros((1, 20, 20), dtype=bool)
        masks[0, :10, :10] = masks[0, 19, 19] = True
        found_large = np.where(masks & (np.arange(20) < 10), 1.0, 0.0)
        # Half of the regions at FPR 0, then everything at FPR 1: a line from 0.5 to 1, cut at 0.3.
        assert curves_of(found_large, masks).aupro == pytest.approx(0.575)

    def test_uninformative_maps_score_as_chance(self):
        _, masks = random_set()
        result = curves_of(np.ones(masks.shape), masks)
        assert result.pixel_auroc == 0.5
        assert result.aupro == pytest.approx(0.15)
        assert result.pixel_ap == pytest.approx(masks.mean())

    def test_order_and_monotone_scale_do_not_matter(self):
        maps, masks = random_set()
        expected = curves_of(maps, masks)
        for result in (
            curves_of(maps[::-1], masks[::-1]),
            curves_of(8 * maps, masks),
            curves_of(np.exp(maps), masks),
        ):
            assert (result.pixel_auroc, result.pixel_ap, result.aupro) == pytest.approx(
                (expected.pixel_auroc, expected.pixel_ap, expected.aupro), abs=1e-3
            )

    def test_orders_every_float(self):
        ordered = np.array([[-np.inf, -1e30, -2.0, -1e-40, -0.0, 1e-40, 1.0, 1.001, 3e38, 1e300]])
        for split in range(1, ordered.size):
            assert curves_of([ordered], [np.arange(ordered.size)[None] >= split]).pixel_auroc == 1.0
        assert curves_of([np.array([[0.0, -0.0]])], [np.array([[True, False]])]).pixel_auroc == 0.5

    def test_good_images_only_move_the_false_positives(self):
        maps, masks = random_set()
        without = curves_of(maps[:3], masks[:3])
        bad_background = curves_of([*maps[:3], maps[3] + 9], masks)
        assert bad_background.n_regions == without.n_regions
        assert bad_background.pixel_auroc < without.pixel_auroc - 0.1

    @pytest.mark.parametrize(
        ("fill", "reason"),
        [(False, "no defective pixel in the masks of 1"), (True, "no good pixel in the masks of 1")],
    )
    def test_one_class_gives_a_reason(self, fill, reason):
        result = curves_of([np.ones((3, 3))], [np.full((3, 3), fill)])
        assert result.pixel_auroc is result.pixel_ap is result.aupro is None
        assert result.reason.startswith(reason)

    def test_no_image_gives_a_reason(self):
        assert PixelCurves().result() == PixelMetrics(None, None, None, 0, 0, "no image was given")

    @pytest.mark.parametrize(
        ("anomaly_map", "mask", "message"),
        [
            ([[np.nan, 1.0]], [[True, False]], "1 NaN pixels"),
            ([[0.5, 1.0]], [[True], [False]], r"\(1, 2\) and mask \(2, 1\)"),
            ([[0.5, 1.0]], [[0.3, 0.0]], "mask of type float64"),
            (np.ones((0, 4)), np.ones((0, 4), dtype=bool), "no pixel"),
        ],
    )
    def test_wrong_input_is_named_and_not_counted(self, anomaly_map, mask, message):
        curves = PixelCurves()
        with pytest.raises(ValueError, match=message):
            curves.update(anomaly_map, mask)
        assert curves.result().n_images == 0

    def test_masks_of_255_are_masks(self):
        maps, masks = random_set()
        assert curves_of(maps, masks.astype(np.uint8) * 255) == curves_of(maps, masks)

    def test_a_line_scan_picture_takes_little_more_than_its_map(self):
        """Counts of all pixels at once took 60 bytes for each."""
        curves = PixelCurves()
        anomaly_map = np.random.default_rng(0).random((12_000, 300), dtype=np.float32)  # 14 MB
        mask = np.zeros(anomaly_map.shape, dtype=bool)
        mask[3000:3100, 20:30] = mask[9000, 5] = True
        curves.update(anomaly_map[:10], mask[:10])  # touches the bins
        tracemalloc.start()
        try:
            curves.update(anomaly_map, mask)
            assert tracemalloc.get_traced_memory()[1] < 60e6
        finally:
            tracemalloc.stop()
        assert curves.result().n_regions == 2
