"""From cells to conclusions, each figure worked out by hand."""

import dataclasses
import json

import numpy as np
import pytest

from purify_engine.evaluation.protocol import Cell
from purify_engine.evaluation.statistics import mcnemar, paired_difference, wilson
from purify_engine.evaluation.suite import BY_EXACT_GRADIENT, EXACT, UNMASKING
from purify_engine.evaluation.summary import (
    by_defence,
    compare,
    fresh_minimum_scores,
    minimum_scores,
    summarise,
    to_json,
    unmasked_by,
)


def cell(attack, scores, selection=None, *, norm="linf", defence="d"):
    return Cell(defence, attack, norm, tuple(scores), tuple(scores if selection is None else selection), 1.0, "mark", {})


CLEAN = cell("standard", [1, 1, 1, 0.5], norm="none")
LINF = cell("exact", [1, 0.5, 1, 0], [0.5, 0.5, 1, 0])
OTHER = cell("BPDA", [0.5, 1, 1, 0], [0.5, 1, 1, 0.5])
L2 = cell("exact, l2", [1, 1, 0, 0], norm="l2")
SHIFT = cell("StAdv", [0.25, 1, 1, 1], norm="spatial")


def test_a_row_has_the_clean_images_the_two_minima_and_then_every_attack():
    (row,) = summarise([CLEAN, LINF, OTHER, L2, SHIFT])
    assert row.defence == "d" and row.images_per_second is None
    assert list(row.columns) == ["standard", "minimum, linf", "minimum, all norms", "exact", "BPDA", "exact, l2", "StAdv"]
    by_hand = {
        "standard": [1, 1, 1, 0.5],
        "minimum, linf": [0.5, 0.5, 1, 0],
        "minimum, all norms": [0.25, 0.5, 0, 0],
        "exact": [0.75, 0.5, 1, 0],
        "BPDA": [0.5, 1, 1, 0.25],
        "exact, l2": [1, 1, 0, 0],
        "StAdv": [0.25, 1, 1, 1],
    }
    assert row.columns == {name: wilson(scores) for name, scores in by_hand.items()}


def test_what_was_not_run_has_no_column():
    assert list(summarise([CLEAN])[0].columns) == ["standard"]
    assert list(summarise([L2])[0].columns) == ["exact, l2"]
    assert list(summarise([LINF, CLEAN])[0].columns) == ["standard", "exact"]


def test_a_minimum_is_over_two_attacks_at_least_and_one_over_all_norms_over_two_norms():
    assert list(summarise([LINF, OTHER])[0].columns) == ["minimum, linf", "exact", "BPDA"]
    assert list(summarise([LINF, L2])[0].columns) == ["minimum, all norms", "exact", "exact, l2"]
    bare = dataclasses.replace(LINF, defence="bare")  # which BPDA does not run on: there `exact` is the worst of what does
    assert [list(row.columns) for row in summarise([LINF, OTHER, bare])][1] == ["minimum, linf", "exact"]


def test_every_interval_is_at_the_confidence_asked_for():
    (row,) = summarise([CLEAN, LINF, OTHER], confidence=0.6)
    assert row.columns["standard"] == wilson([1, 1, 1, 0.5], 0.6)
    assert row.columns["exact"] == wilson([0.75, 0.5, 1, 0], 0.6)
    assert row.columns["minimum, linf"] == wilson([0.5, 0.5, 1, 0], 0.6)


def test_defences_keep_the_order_they_came_in_and_their_own_cells():
    cells = [dataclasses.replace(LINF, defence="b"), CLEAN, dataclasses.replace(CLEAN, defence="b")]
    table = by_defence(cells)
    assert list(table) == ["b", "d"] and list(table["b"]) == ["exact", "standard"] and table["d"] == {"standard": CLEAN}
    assert [row.defence for row in summarise(cells)] == ["b", "d"]


def test_only_figures_by_the_exact_gradient_are_marked_and_only_where_another_attack_refutes_it():
    attacks = [*BY_EXACT_GRADIENT, *UNMASKING, "joint"]
    refuted = [cell(name, [0.0] * 9 if name == "square" else [1.0] * 9) for name in attacks]
    (row,) = summarise([cell("standard", [1] * 9, norm="none"), *refuted])
    assert {name for name, estimate in row.columns.items() if estimate.masked} == set(BY_EXACT_GRADIENT)
    (row,) = summarise([cell(name, [1.0] * 9) for name in attacks])
    assert not any(estimate.masked for estimate in row.columns.values())


@pytest.mark.parametrize("name", UNMASKING)
def test_each_attack_without_the_exact_gradient_can_unmask_it(name):
    own = {EXACT: cell(EXACT, [1.0] * 9), name: cell(name, [0.5] * 9)}
    assert unmasked_by(own) == [name]
    del own[EXACT]
    assert unmasked_by(own) == []


@pytest.mark.parametrize("name", ["exact, margin", "joint", "guide start", "feature matching", "exact, l2", "StAdv"])
def test_an_attack_that_shares_the_exact_gradient_or_its_own_aim_unmasks_nothing(name):
    assert unmasked_by({EXACT: cell(EXACT, [1.0] * 9), name: cell(name, [0.0] * 9)}) == []


def test_masking_is_judged_at_the_confidence_asked_for():
    exact, other = [0.5] * 5 + [0.6] * 5, [0.5] * 5 + [0.4, 0.6, 0.6, 0.5, 0.5]
    gap = np.subtract(exact, other)
    own = {EXACT: cell(EXACT, exact), "BPDA": cell("BPDA", other)}
    assert 1.0 < gap.mean() / (gap.std(ddof=1) / 10**0.5) < 1.959  # in units of its standard error
    assert unmasked_by(own, 0.95) == [] and unmasked_by(own, 0.5) == ["BPDA"]


def test_minima_pool_both_sets_of_draws_and_fresh_ones_pick_by_one_and_score_by_the_other():
    cells = [cell("a", [0.2, 1.0, 0.5], [0.8, 0.0, 0.5]), cell("b", [0.6, 0.0, 0.7], [0.6, 1.0, 0.4])]
    assert minimum_scores(cells) == (0.5, 0.5, 0.5)
    assert fresh_minimum_scores(cells) == (0.6, 1.0, 0.7)
    assert minimum_scores([]) == fresh_minimum_scores([]) == ()


def test_of_attacks_that_are_equal_on_an_image_the_one_that_is_stronger_on_all_is_scored():
    weak, strong = cell("weak", [0.4, 1.0], [0.0, 1.0]), cell("strong", [0.1, 0.3], [0.0, 0.2])
    assert fresh_minimum_scores([weak, strong]) == fresh_minimum_scores([strong, weak]) == (0.1, 0.3)


def test_a_comparison_is_of_the_linf_minima_fresh_ones_and_their_discordant_images():
    ours = [cell("a", [1, 1, 0.5, 0], [1, 1, 0, 1], defence="ours"), cell("b", [1, 0, 1, 1], defence="ours")]
    ours += [cell("l2", [0] * 4, norm="l2", defence="ours"), cell("standard", [0] * 4, norm="none", defence="ours")]
    other = [cell("a", [0, 0, 0.5, 1], [0, 0, 1, 1], defence="other"), cell("l2", [1] * 4, norm="l2", defence="other")]
    (found,) = compare(ours + other, "ours", ["other", "absent"], confidence=0.9)
    mine, theirs = (1, 0, 0.25, 0.5), (0, 0, 0.75, 1)
    assert (found.a, found.b) == ("ours", "other")
    assert found.difference == paired_difference(mine, theirs, 0.9)
    assert found.fresh == paired_difference((1, 0, 0.5, 0), (0, 0, 0.5, 1), 0.9)
    assert found.mcnemar == mcnemar(mine, theirs) and (found.mcnemar.only_a, found.mcnemar.only_b) == (1, 2)
    assert compare(ours + other, "ours", ["other"])[0].difference == paired_difference(mine, theirs, 0.95)


def test_comparisons_come_in_the_order_of_the_baselines():
    cells = [cell("a", [1, 0], defence=name) for name in ("ours", "x", "y")]
    assert [item.b for item in compare(cells, "ours", ["y", "x"])] == ["y", "x"]


def test_a_summary_as_json_holds_rows_comparisons_and_what_else_is_said():
    cells = [dataclasses.replace(LINF, defence="ours"), LINF]
    said = json.loads(json.dumps(to_json(summarise(cells), compare(cells, "ours", ["d"]), seconds=3)))
    assert said.keys() == {"seconds", "rows", "comparisons"} and said["seconds"] == 3
    assert said["rows"][0]["defence"] == "ours" and said["rows"][1]["columns"]["exact"]["value"] == 0.5625
    assert said["comparisons"][0]["difference"]["n"] == 4 and said["comparisons"][0]["mcnemar"]["p_value"] == 1.0
    assert to_json([]) == {"rows": [], "comparisons": []}
