import numpy as np
import pytest

from purify_engine.evaluation.statistics import mcnemar, paired_difference, wilson


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
