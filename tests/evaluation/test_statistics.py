import math

import numpy as np
import pytest
from scipy import stats

from purify_engine.evaluation.statistics import PairedDifference, mcnemar, paired_difference, wilson


def test_wilson_interval_is_the_textbook_one():
    estimate = wilson([1] * 81 + [0] * 182)  # Newcombe 1998, table I: 81 of 263
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    assert estimate.value == pytest.approx(81 / 263) and estimate.n == 263


def test_wilson_covers_fractional_scores_at_least_as_often_as_promised():
    rng = np.random.default_rng(0)
    truth, trials = 0.7, 400
    covered = 0
    for _ in range(trials):
        chances = rng.beta(1.4, 0.6, size=100)  # image by image, mean 0.7
        estimate = wilson(list(rng.binomial(20, chances) / 20))
        covered += estimate.low <= truth <= estimate.high
    assert covered / trials >= 0.95


def test_paired_interval_is_narrower_than_the_unpaired_when_images_share_their_difficulty():
    rng = np.random.default_rng(1)
    difficulty = rng.random(300)
    a, b = np.clip(difficulty + 0.06, 0, 1), difficulty
    found = paired_difference(list(a), list(b))
    assert found.significant and found.low > 0 and found.value == pytest.approx((a - b).mean())
    assert found.high - found.low < 0.1 * (wilson(list(a)).high - wilson(list(a)).low)


def test_normal_and_bootstrap_intervals_agree_on_many_images_and_repeat():
    rng = np.random.default_rng(2)
    a, b = rng.random(400), rng.random(400)
    found = paired_difference(list(a), list(b))
    assert found == paired_difference(list(a), list(b))
    assert abs(found.low - found.bootstrap_low) < 0.005 and abs(found.high - found.bootstrap_high) < 0.005
    assert not found.significant


def test_swapping_the_sides_negates_the_difference():
    a, b = [1, 0.5, 0.2, 0.9], [0, 0.5, 0.4, 0.1]
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == -back.value and there.low == pytest.approx(-back.high)


def test_mcnemar_counts_discordant_images_by_the_exact_binomial():
    a = [1] * 10 + [0] * 2 + [1] * 30
    b = [0] * 10 + [1] * 2 + [1] * 30
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (10, 2)
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # 2 P(X <= 2), X ~ Binomial(12, 1/2)


def test_mcnemar_without_discordant_images_sees_no_difference():
    assert mcnemar([1, 0.6], [0.9, 0.7]).p_value == 1.0


@pytest.mark.parametrize("pair", [([1], [1, 0]), ([], [])], ids=["lengths", "empty"])
def test_only_the_same_images_are_compared(pair):
    with pytest.raises(ValueError, match="scores must be of the same images, at least one"):
        paired_difference(*pair)


def test_no_images_have_no_accuracy():
    with pytest.raises(ValueError, match="scores must be of at least one image, got 0"):
        wilson([])


def written_wilson(successes, n, confidence):
    """Wilson 1927: (p + z^2/2n -+ z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    z, p = stats.norm.ppf((1 + confidence) / 2), successes / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("scores", [[1, 0, 1, 1, 0], [1] * 7, [0] * 3, [0.9, 0.8, 0.1, 0.0], [0.4, 0.3, 0.4, 0.3]], ids=str)
def test_wilson_is_its_formula_at_the_rounded_number_of_successes(scores, confidence):
    estimate = wilson(scores, confidence)
    nearest = math.floor(sum(scores) + 0.5)
    assert [estimate.low, estimate.high] == pytest.approx(written_wilson(nearest, len(scores), confidence), abs=1e-12)
    assert estimate.value == pytest.approx(sum(scores) / len(scores)) and estimate.n == len(scores) and not estimate.masked


def test_confidence_is_95_percent_unless_given():
    scores = [1, 1, 0, 1, 0, 0.5]
    assert wilson(scores) == wilson(scores, 0.95) != wilson(scores, 0.9)
    assert paired_difference(scores, [0.2] * 6) == paired_difference(scores, [0.2] * 6, 0.95)


A, B = [1, 0.7, 0.2, 0.9, 0.4], [0.3, 0.6, 0.2, 0.4, 0.5]


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_normal_interval_of_few_images_is_scipys(confidence):
    found, difference = paired_difference(A, B, confidence), np.subtract(A, B)
    expected = stats.norm.interval(confidence, difference.mean(), stats.sem(difference))  # of the sample: n - 1
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    assert found.value == pytest.approx(0.24) and found.n == 5


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_bootstrap_interval_is_scipys_up_to_its_draws(confidence):
    rng = np.random.default_rng(5)
    a, b = rng.random(60), rng.random(60) - 0.2
    found = paired_difference(list(a), list(b), confidence)
    other = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=20_000, confidence_level=confidence, rng=np.random.default_rng(6)
    ).confidence_interval
    error = 0.02 * (found.bootstrap_high - found.bootstrap_low) + 0.002  # of the quantiles of 10,000 draws, four times over
    assert (found.bootstrap_low, found.bootstrap_high) == pytest.approx((other.low, other.high), abs=error)


def test_the_bootstrap_draws_as_many_images_as_there_are():
    """Of two images whose differences are 0 and 1, a quarter of the means is 0, half is 1/2, a quarter is 1."""
    found = paired_difference([0, 1], [0, 0], 0.4)  # from the 30th to the 70th percentile
    assert (found.bootstrap_low, found.bootstrap_high) == (0.5, 0.5)
    found = paired_difference([0, 1], [0, 0], 0.6)  # from the 20th to the 80th
    assert (found.bootstrap_low, found.bootstrap_high) == (0, 1)


def test_one_image_says_nothing_about_the_next():
    found = paired_difference([1], [0])
    assert (found.value, found.low, found.high, found.n) == (1, -math.inf, math.inf, 1) and not found.significant


@pytest.mark.parametrize(
    ("intervals", "significant"),
    [
        ((0.1, 0.3, 0.2, 0.4), True),
        ((0.1, 0.3, -0.1, 0.4), False),
        ((-0.1, 0.3, 0.1, 0.4), False),
        ((0.0, 0.3, 0.1, 0.4), False),
        ((-0.3, -0.1, -0.4, -0.2), True),
        ((-0.3, 0.0, -0.4, -0.2), False),
        ((-0.3, -0.1, -0.4, 0.2), False),
    ],
)
def test_a_difference_is_significant_where_both_intervals_leave_zero_on_the_same_side(intervals, significant):
    low, high, bootstrap_low, bootstrap_high = intervals
    assert PairedDifference(0.0, low, high, bootstrap_low, bootstrap_high, 9).significant is significant


def test_an_image_counts_as_classified_where_more_than_half_of_its_draws_are_right():
    found = mcnemar([0.5, 0.51, 1, 0.2, 0.9], [0.4, 0.5, 0.1, 0.6, 0.8])
    assert (found.only_a, found.only_b) == (2, 1)
    assert found.p_value == pytest.approx(1.0)  # 2 P(X <= 1), X ~ Binomial(3, 1/2)


@pytest.mark.parametrize(("only_a", "only_b"), [(7, 1), (1, 7), (12, 3), (4, 4)])
def test_mcnemars_p_value_sums_the_binomials_tails(only_a, only_b):
    n, smaller = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(smaller + 1)) / 2**n
    found = mcnemar([1] * only_a + [0] * only_b, [0] * only_a + [1] * only_b)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_takes_the_same_images_only():
    with pytest.raises(ValueError, match=r"scores must be of the same images, at least one, got \(1, 2\)"):
        mcnemar([1], [1, 0])


def test_one_image_has_an_accuracy_and_a_wide_interval():
    estimate = wilson([1])
    assert (estimate.value, estimate.n) == (1.0, 1) and [estimate.low, estimate.high] == pytest.approx(written_wilson(1, 1, 0.95))
