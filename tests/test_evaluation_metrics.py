import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from anomalib_lite.evaluation.metrics import (
    UndefinedMetricError,
    auroc,
    auroc_interval,
    average_precision,
    binomial_interval,
    f1_max,
    fpr_at_full_recall,
    image_metrics,
    misordered_pairs,
    per_kind_auroc,
)


@pytest.fixture(params=["continuous", "ties"])
def labelled(request):
    rng = np.random.default_rng(7)
    labels = rng.random(150) < 0.4
    scores = rng.normal(size=150) + labels
    return labels, (np.round(scores) if request.param == "ties" else scores)


class TestAgreementWithScikitLearn:
    def test_auroc(self, labelled):
        assert auroc(*labelled) == pytest.approx(roc_auc_score(*labelled), abs=1e-12)

    def test_average_precision(self, labelled):
        assert average_precision(*labelled) == pytest.approx(average_precision_score(*labelled), abs=1e-12)

    def test_f1_max(self, labelled):
        labels, scores = labelled
        best, threshold = f1_max(labels, scores)
        assert best == pytest.approx(max(f1_score(labels, scores >= t) for t in scores), abs=1e-12)
        assert f1_score(labels, scores >= threshold) == pytest.approx(best, abs=1e-12)

    def test_fpr_at_full_recall(self, labelled):
        fpr, tpr, _ = roc_curve(*labelled, drop_intermediate=False)
        assert fpr_at_full_recall(*labelled) == pytest.approx(fpr[tpr == 1.0].min(), abs=1e-12)


def test_misordered_pairs_counts_every_pair(labelled):
    labels, scores = labelled
    good, defective = scores[~labels], scores[labels][:, None]
    assert misordered_pairs(labels, scores) == (good > defective).sum() + (good == defective).sum() / 2


def test_metrics_see_only_ranks():
    rng = np.random.default_rng(3)
    labels = rng.random(80) < 0.5
    scores = rng.normal(size=80) + labels
    order = rng.permutation(80)
    expected = image_metrics(labels, scores)
    # 1e4 + tiny differences is where a sigmoid or float32 would tie everything.
    for same in (np.exp(scores), 1e4 + 1e-6 * scores):
        assert image_metrics(labels[order], same[order]) == expected


def test_per_kind_auroc_compares_each_kind_with_all_good_ones():
    labels = [0, 0, 1, 1, 1]
    kinds = ["good", "scratch", "bent", "scratch", "scratch"]  # the kind of a good one does not count
    scores = [1.0, 2.0, 3.0, 0.0, 1.5]
    assert per_kind_auroc(labels, kinds, scores) == {"bent": 1.0, "scratch": 0.25}


class TestAurocInterval:
    def test_agrees_with_a_bootstrap(self):
        rng = np.random.default_rng(0)
        good, defective = rng.normal(0, 1, 60), rng.normal(1, 1, 80)
        labels = np.repeat([0, 1], [60, 80])
        areas = [
            roc_auc_score(labels, np.concatenate([rng.choice(good, 60), rng.choice(defective, 80)])) for _ in range(600)
        ]
        interval = auroc_interval(labels, np.concatenate([good, defective]))
        assert interval == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.015)

    @pytest.mark.parametrize("true_area", [0.75, 0.95])
    def test_covers_the_true_area(self, true_area):
        rng = np.random.default_rng(1)
        shift = np.sqrt(2) * stats.norm.ppf(true_area)
        labels = np.repeat([0, 1], [25, 50])
        covered = 0
        for _ in range(400):
            low, high = auroc_interval(labels, rng.normal(size=75) + shift * labels)
            covered += low <= true_area <= high
        assert 0.91 <= covered / 400 <= 0.99

    def test_perfect_separation_does_not_prove_perfection(self):
        labels = np.repeat([0, 1], [22, 93])
        low, high = auroc_interval(labels, np.arange(115))
        assert 0.9 < low < 0.97
        assert high == 1.0
        assert auroc_interval(labels, -np.arange(115)) == pytest.approx((0.0, 1.0 - low))

    def test_one_misordered_pair_never_promises_more_than_none(self):
        labels = np.repeat([0, 1], [22, 93])
        scores = np.arange(115.0)
        perfect_low, _ = auroc_interval(labels, scores)
        scores[[21, 22]] = scores[[22, 21]]
        assert misordered_pairs(labels, scores) == 1
        assert auroc_interval(labels, scores)[0] <= perfect_low
        assert auroc_interval(labels, -scores)[1] >= 1.0 - perfect_low

    @pytest.mark.parametrize(
        ("labels", "scores"),
        [([0, 0, 1, 1], [1, 1, 1, 1]), ([0, 1], [0, 1]), ([0, 1, 1], [1, 2, 0])],
        ids=["all tied", "one each", "one good"],
    )
    def test_is_wide_where_delong_has_no_variance(self, labels, scores):
        low, high = auroc_interval(labels, scores)
        assert 0.0 <= low < auroc(labels, scores) <= high <= 1.0
        assert high - low > 0.5

    def test_level_widens_it(self, labelled):
        narrow, wide = auroc_interval(*labelled, level=0.8), auroc_interval(*labelled, level=0.99)
        assert wide[0] < narrow[0] < narrow[1] < wide[1]
        with pytest.raises(ValueError, match=r"level is 95"):
            auroc_interval(*labelled, level=95)


class TestUndefined:
    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            ([0, 0], "no defective sample among the 2"),
            ([1, 1], "no good sample among the 2"),
            ([], "no sample"),
        ],
    )
    def test_one_class_raises_and_image_metrics_gives_the_reason(self, labels, reason):
        scores = np.arange(len(labels))
        for metric in (
            auroc,
            auroc_interval,
            average_precision,
            f1_max,
            fpr_at_full_recall,
            misordered_pairs,
        ):
            with pytest.raises(UndefinedMetricError, match=reason):
                metric(labels, scores)
        metrics = image_metrics(labels, scores, kinds=["good"] * len(labels))
        assert metrics.image_auroc is metrics.image_auroc_ci is metrics.f1_max is None
        assert metrics.reason.startswith(reason)

    @pytest.mark.parametrize(
        ("labels", "scores", "message"),
        [
            ([0, 1], [0.1, np.nan], "NaN at position 1"),
            ([0, 2], [0.1, 0.2], r"0 \(good\) or 1 \(defective\), found \[0, 2\]"),
            ([0, 1], [0.1], "two vectors of one length"),
        ],
    )
    def test_wrong_input_is_named(self, labels, scores, message):
        with pytest.raises(ValueError, match=message):
            image_metrics(labels, scores)


class TestBinomial:
    @pytest.mark.parametrize(("successes", "n"), [(0, 22), (22, 22), (3, 40)])
    def test_interval_agrees_with_scipy(self, successes, n):
        exact = stats.binomtest(successes, n).proportion_ci(0.9, method="exact")
        assert binomial_interval(successes, n, 0.9) == pytest.approx((exact.low, exact.high), abs=1e-9)

    def test_impossible_counts_are_named(self):
        with pytest.raises(ValueError, match="5 successes of 4 trials"):
            binomial_interval(5, 4)
