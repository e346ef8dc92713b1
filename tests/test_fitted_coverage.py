"""Whether a promised rate held: the band of chance, both directions out of it, and what is said."""

import numpy as np
import pytest
from scipy import stats

from anomalib_lite.fitted.coverage import MEANING, binomial_band, coverage_verdict, direction_of


class TestBand:
    @pytest.mark.parametrize(("p", "n"), [(0.05, 100), (0.01, 22), (0.5, 7), (0.0, 5), (1.0, 5)])
    def test_agrees_with_scipy(self, p, n):
        low, high = binomial_band(p, n)
        assert (low, high) == (max(stats.binom.ppf(0.025, n, p), 0), stats.binom.ppf(0.975, n, p))
        assert stats.binom.cdf(high, n, p) - stats.binom.cdf(low - 1, n, p) >= 0.95

    def test_impossible_counts_are_named(self):
        with pytest.raises(ValueError, match="rate 5 and 100 trials"):
            binomial_band(5, 100)
        with pytest.raises(ValueError, match="level is 95: need a share"):
            binomial_band(0.05, 100, level=95)

    def test_its_ends_belong_to_it(self):
        assert [direction_of(count, (1, 10)) for count in (0, 1, 10, 11)] == ["below", "within", "within", "above"]


def p_values(share, n=100):
    """Of n good images, of which that share has the smallest p-value."""
    alarming = round(share * n)
    return np.array([0.01] * alarming + [0.9] * (n - alarming))


class TestVerdict:
    def test_counts_and_bands_are_those_of_each_rate(self):
        found = coverage_verdict(p_values(0.07), rates=(0.05, 0.2))
        assert found.n_good == 100
        assert [(at.rate, at.false_alarms, at.observed, at.band) for at in found.at_rates] == [
            (0.05, 7, 0.07, binomial_band(0.05, 100)),
            (0.2, 7, 0.07, binomial_band(0.2, 100)),
        ]
        assert [at.direction for at in found.at_rates] == ["within", "below"]

    def test_a_p_value_equal_to_the_rate_alarms(self):
        assert coverage_verdict([0.05, 0.06], rates=[0.05]).at_rates[0].false_alarms == 1

    @pytest.mark.parametrize(
        ("share", "told"),
        [
            (
                0.0,
                "Fewer alarms than promised: recall is given away (of 100 good images 0 at 5 %, 0 at 10 %, 0 at 20 %).",
            ),
            (
                0.4,
                "More alarms than promised: the threshold does not hold "
                "(of 100 good images 40 at 5 %, 40 at 10 %, 40 at 20 %).",
            ),
            (
                0.11,
                "More alarms than promised: the threshold does not hold (of 100 good images 11 at 5 %); "
                "fewer alarms than promised: recall is given away (of 100 good images 11 at 20 %).",
            ),
        ],
    )
    def test_says_on_which_side_the_alarms_lie(self, share, told):
        assert coverage_verdict(p_values(share)).explain() == told

    def test_uniform_p_values_keep_every_promise(self):
        found = coverage_verdict(np.arange(1, 201) / 200)
        assert {at.direction for at in found.at_rates} == {"within"}
        assert found.explain() == (
            "As many alarms as promised, give or take chance (of 200 good images 10 at 5 %, 20 at 10 %, 40 at 20 %)."
        )

    def test_a_few_good_images_prove_nothing(self):
        assert coverage_verdict([0.9] * 8).at_rates[-1].direction == "within"

    def test_below_the_smallest_rate_there_is_no_threshold(self):
        found = coverage_verdict(p_values(0.0), smallest_rate=1 / 11)
        assert [at.rate for at in found.at_rates] == [0.1, 0.2]
        assert found.unsupported == (0.05,)
        assert found.explain().endswith("at 20 %). The calibration images are too few for a threshold at 5 %.")
        nothing = coverage_verdict(p_values(0.0), smallest_rate=0.5).explain()
        assert nothing == "The calibration images are too few for a threshold at 5 %, 10 %, 20 %."

    @pytest.mark.parametrize(
        ("values", "rates", "message"),
        [
            ([], (0.05,), r"p-values of shape \(0,\): need a vector, of one good image at least"),
            ([[0.5]], (0.05,), r"p-values of shape \(1, 1\)"),
            ([3.0], (0.05,), "p-values must be shares in"),
            ([float("nan")], (0.05,), "shares in"),
            ([0.5], (5,), r"rates \[5\]: need shares in \(0, 1\), such as 0.05"),
        ],
    )
    def test_what_is_no_p_value_or_rate_is_named(self, values, rates, message):
        with pytest.raises(ValueError, match=message):
            coverage_verdict(values, rates)

    def test_each_direction_has_words(self):
        assert MEANING == {
            "above": "more than promised: outside the band of chance",
            "below": "fewer than promised: the threshold is stricter than asked and gives away recall",
        }
