"""What stands beside accuracies is of the same images, and a row that was attacked less is marked."""

import dataclasses

import pytest

from purify_engine.evaluation.cells import Cell
from purify_engine.evaluation.metrics import facts, fresh_comparisons, fresh_rows, table_of, unequal
from purify_engine.evaluation.statistics import mcnemar, paired_difference, wilson
from purify_engine.evaluation.validation import Validation


def cell(defence, attack, *, steps=10, guided=True, purified=True, scores=(1.0, 0.0), ids=None, of=None, **how):
    described = {"guided": guided, "purifier": {"t_star": 3} if purified else None}
    attack_settings = {"num_steps": steps, "num_eot": 1, "epsilon": 0.1, **how}
    norm = "none" if attack == "standard" else "linf"
    config = {"attack": attack_settings, "defence": described, "num_draws": 2}
    return Cell(defence, attack, norm, scores, scores, 1.0, "", config, agreement=(1.0, 0.5)[: len(scores)], ids=ids, of=of)


def test_a_row_that_was_attacked_less_than_another_is_marked_and_one_that_an_attack_cannot_be_run_on_is_not():
    ours = [cell("ours", "a"), cell("ours", "b"), cell("ours", "guide", surface="guide"), cell("ours", "bpda", gradient="bpda")]
    bare = [cell("bare", "a", guided=False, purified=False), cell("bare", "b", guided=False, purified=False)]
    assert unequal([*ours, *bare]) == {"ours": [], "bare": []}
    alone = [cell("the guide alone", name, guided=False, purified=False) for name in ("a", "b")]
    assert unequal([*ours, *alone])["the guide alone"] == ["without guide"]  # which attacks it, too
    weak = [dataclasses.replace(cell("weak", "a", steps=9), defence="weak")]
    assert unequal([*ours, *bare, *weak])["weak"] == ["without b", "without guide", "without bpda", "weaker a"]


def test_facts_are_of_the_images_that_every_attack_of_a_row_has():
    cells = [cell("ours", "standard"), cell("ours", "a", scores=(0.0,), ids=(1,), of=2)]
    (found,) = facts(cells)
    assert (found["images"], found["of"], found["attacks"], found["attacks_linf"]) == (1, 2, 1, 1)
    assert found["agreement_clean"] == 0.75 and found["agreement_attacked"] == 1.0 and found["ms_an_image"] is None
    header, line = table_of([found])
    assert line[:5] == ["ours", "1 of 2", "1 (1)", "75.0 %", "100.0 %"] and len(header) == len(line)


def of(defence, right, majority, ids=(0, 1)):
    return Validation(defence, "minimum, linf", 2, ("a",) * 2, right, 12, majority, 24, ids, (0, 0), (), 0.0, defence)


def test_three_metrics_stand_beside_one_another_and_comparisons_are_of_single_draws_on_the_same_images():
    ours, other = of("ours", ((12, 6), (12, 0)), (1, 0)), of("DiffPure", ((6, 0), (0, 12)), (0, 1), ids=(1, 2))
    steady = dataclasses.replace(of("undefended", ((1, 0),), (1, 0)), draws=1, voting=1)
    row, _, plain = fresh_rows([ours, other, steady], 0.9)
    assert list(plain.columns) == list(row.columns)
    assert row.columns == {
        "minimum, linf: one draw": wilson([1.0, 0.25], 0.9),
        "minimum, linf: worst of 10": wilson([1.0, 0.0], 0.9),
        "minimum, linf: majority of 24": wilson([1.0, 0.0], 0.9),
    }
    (found,) = fresh_comparisons([ours, other], 0.9)
    assert found.difference == paired_difference([0.25], [0.25], 0.9) and found.mcnemar == mcnemar([0.0], [0.0])
    assert facts([cell("ours", "a")], [ours])[0]["seeds"] == [pytest.approx(0.75), pytest.approx(0.5)]
