"""What the report says in sentences follows from the figures."""

import pytest

from purify_engine.evaluation.statistics import Estimate, McNemar, PairedDifference, wilson
from purify_engine.evaluation.summary import Comparison, Row
from purify_engine.evaluation.verdict import attacks_in_order, budget, defences_in_order, headline_of, points, rounded, verdict


def row(defence, **columns):
    return Row(defence, {name: wilson([1.0] * right + [0.0] * (100 - right)) for name, right in columns.items()})


ROWS = [row("undefended", standard=99, adaptive=2), row("ours", standard=97, adaptive=80), row("the guide alone", adaptive=75)]


def gap(value, half):
    return PairedDifference(value, value - half, value + half, value - half, value + half, 100)


def said(difference, rows=ROWS, self_test=None):
    return " ".join(verdict(rows, [Comparison("ours", "the guide alone", difference, None, McNemar(1, 1, 1.0))], self_test))


def test_the_first_sentence_is_the_accuracy_under_the_attack_to_judge_by():
    first = verdict(ROWS)[0].replace("\u00a0", " ")
    assert first.startswith("Under the adaptive attack, ours classifies 80 % of 100 images correctly (71 to 87); ")
    assert first.endswith("the undefended classifier 2 %.")


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (gap(0.05, 0.04), "ours is better (+5.0 points, +1.0 to +9.0"),
        (gap(-0.05, 0.04), "ours is worse (−5.0 points, −9.0 to −1.0"),
        (gap(0.03, 0.04), "ours is not told apart from it (+3.0 points, −1.0 to +7.0"),
        (gap(0.20, 0.04), "ours is better (+20 points, +16 to +24"),
    ],
)
def test_the_guide_alone_is_remarked_on_by_the_paired_interval(difference, words):
    assert words in said(difference) and "The guide alone, the robust classifier that guides, classifies 75" in said(difference)


def test_a_single_attack_is_the_one_to_judge_by_and_of_several_without_a_minimum_none_is():
    single = row("ours", standard=97, square=60)
    assert headline_of([single]) == "square" and "Under the attack “square”, ours classifies 60" in verdict([single])[0]
    assert headline_of([row("ours", standard=97, square=60, exact=50)]) is None is headline_of([row("ours", standard=97)])


def test_without_a_comparison_nothing_is_said_of_the_guide_and_without_ours_nothing_at_all():
    assert "guide" not in " ".join(verdict(ROWS))
    assert verdict([row("DiffPure", adaptive=60)]) == [] == verdict([row("ours", standard=97)]) == verdict([])


def test_a_failed_self_test_comes_first():
    assert verdict(ROWS, (), {"passed": False})[0].startswith("The gradient self-test failed")
    assert not verdict(ROWS, (), {"passed": True})[0].startswith("The gradient self-test")


def test_masked_figures_are_said_to_flatter():
    masked = Row("ours", {"minimum, linf": wilson([1.0]), "exact": Estimate(0.9, 0.8, 1, 100, masked=True)})
    assert "Figures marked masked (of ours) flatter" in verdict([masked])[-1]


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Estimate(0.874, 0.821, 0.912, 360), ("87", "82", "91")),
        (Estimate(0.996, 0.97, 0.9991, 360), (">99", "97", ">99")),
        (Estimate(0.001, 0.0, 0.02, 360), ("<1", "0", "2")),
        (Estimate(1.0, 0.9, 1.0, 36), ("100", "90", "100")),
        (Estimate(0.9744, 0.9714, 0.9771, 10_000), ("97.4", "97.1", "97.7")),
        (Estimate(0.99998, 0.9999, 1.0, 100_000), (">99.9", ">99.9", "100.0")),
    ],
)
def test_figures_are_rounded_as_far_as_their_interval_carries_and_never_to_all_or_none(estimate, shown):
    assert rounded(estimate) == shown


def test_a_difference_near_zero_keeps_the_decimal_that_tells_its_side():
    assert points(gap(0.006, 0.008)) == ("+0.6", "−0.2", "+1.4", "−0.2", "+1.4")
    assert points(gap(0.0, 0.0)).value == "0.0" and points(gap(0.3, 0.1)) == ("+30", "+20", "+40", "+20", "+40")


def test_ours_and_its_guide_come_first_and_the_headline_before_all_attacks():
    assert [each.defence for each in defences_in_order(ROWS)] == ["ours", "the guide alone", "undefended"]
    table = [Row("ours", dict.fromkeys(["standard", "minimum, linf", "minimum, all norms", "exact", "BPDA"], wilson([1.0])))]
    assert attacks_in_order(table) == ["minimum, linf", "standard", "minimum, all norms", "exact", "BPDA"]


def test_budgets_are_in_words():
    assert budget("linf", 8 / 255) == "l∞, ε = 8/255" and budget("l2", 0.5) == "l2, ε = 0.5"
    assert budget("spatial", 0.3) == "shifts up to 0.3 pixels"
