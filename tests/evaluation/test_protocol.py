import dataclasses
import json

import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation import protocol
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.protocol import Cell, evaluate, fingerprint, read_cells, score
from purify_engine.evaluation.suite import EXACT, TRANSFERRED
from purify_engine.evaluation.summary import (
    HEADLINE,
    UNION,
    compare,
    fresh_minimum_scores,
    minimum_scores,
    summarise,
    unmasked_by,
)
from tests.evaluation.worlds import ATTACKS, CONFIG, ToyPurifier, linear_world, toy


def cell(defence, attack, scores, selection=None, norm="linf") -> Cell:
    return Cell(defence, attack, norm, tuple(scores), tuple(selection or scores), 0.0, "", {})


def test_score_is_the_share_of_draws_that_are_right():
    class Stub(ToyPurifier):
        def forward(self, images, *, ids=None, draw=None):
            return images + float(draw % 4 == 0)  # one draw in four pushes every image to class 1

    weight = torch.ones(1, 2, 2)
    from tests.evaluation.worlds import Linear

    defence = Defence("stub", Linear(weight, -2.0), Stub())
    images = torch.zeros(3, 1, 2, 2)
    assert score(defence, images, torch.tensor([0, 1, 0]), torch.arange(3), range(8)) == (0.75, 0.25, 0.75)


def test_deterministic_defence_is_asked_once():
    classifier, images, labels = linear_world()
    assert set(score(Defence("plain", classifier), images, labels, torch.arange(len(images)), range(5))) == {1.0}


def test_scoring_uses_draws_that_no_attack_used():
    defence, images, labels = toy()
    evaluate([defence], images, labels, CONFIG, attacks=ATTACKS[1:2])
    scoring = [draw for draw in defence.purifier.draws if draw >= FIRST_SCORING_DRAW]
    assert len(scoring) == len(set(scoring)) == 2 * CONFIG.num_draws
    assert len(defence.purifier.draws) - len(scoring) == 10


def test_finished_cells_are_found_again_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    defence, images, labels = toy()
    results = tmp_path / "deep" / "results.jsonl"
    first = evaluate([defence], images, labels, CONFIG, attacks=ATTACKS[:2], results=results)
    with results.open("a") as file:
        file.write('{"defence": "toy", "att')  # the power went
    calls = []
    run = protocol.run_cell
    monkeypatch.setattr(protocol, "run_cell", lambda *args: calls.append(args[1].name) or run(*args))
    again = evaluate([defence], images, labels, CONFIG, attacks=ATTACKS, results=results)
    assert calls == [TRANSFERRED]
    assert again[:2] == first
    with pytest.warns(UserWarning, match="^line 3 of .* is no JSON and is left out"):
        assert [found.attack for found in read_cells(results)] == ["standard", EXACT, TRANSFERRED]
    with pytest.warns(UserWarning, match="^line 3 of .* is no JSON and is left out"):
        evaluate([defence], images, labels, CONFIG, attacks=ATTACKS, results=results)
    assert calls == [TRANSFERRED]


def test_every_line_of_results_holds_scores_settings_seconds_and_seed(tmp_path):
    defence, images, labels = toy()
    evaluate([defence], images, labels, CONFIG, attacks=ATTACKS[1:2], results=tmp_path / "r.jsonl")
    line = json.loads((tmp_path / "r.jsonl").read_text())
    assert len(line["scores"]) == len(line["selection"]) == 40
    assert line["config"]["attack"]["seed"] == 0 and line["config"]["num_draws"] == 5
    assert line["seconds"] >= 0 and line["accuracy"] == pytest.approx(
        (sum(line["scores"]) + sum(line["selection"])) / 80, abs=1e-6
    )


def test_fingerprint_changes_with_whatever_decides_the_scores():
    defence, images, labels = toy()
    attack = ATTACKS[1]
    base = fingerprint(defence, attack, images, labels, CONFIG)
    assert base == fingerprint(defence, attack, images, labels, CONFIG)
    harder = dataclasses.replace(attack, num_steps=6)
    deeper = dataclasses.replace(defence, purifier=defence.purifier.configured(t_star=11))
    retrained = toy()[0]
    retrained.classifier.weight += 1
    others = [
        fingerprint(defence, harder, images, labels, CONFIG),
        fingerprint(deeper, attack, images, labels, CONFIG),
        fingerprint(retrained, attack, images, labels, CONFIG),
        fingerprint(defence, attack, images + 0.01, labels, CONFIG),
        fingerprint(defence, attack, images, labels, dataclasses.replace(CONFIG, num_draws=6)),
    ]
    assert len({base, *others}) == 6


def test_headline_is_the_minimum_by_image_and_not_the_minimum_of_averages():
    cells = [
        cell("d", "standard", [1, 1, 1, 1], norm="none"),
        cell("d", "a", [0, 0, 1, 1]),
        cell("d", "b", [1, 1, 0, 1]),
    ]
    cells.append(cell("d", "c", [1, 1, 1, 0], norm="l2"))
    (row,) = summarise(cells)
    assert row.columns["standard"].value == 1.0
    assert row.columns[HEADLINE].value == 0.25
    assert row.columns[UNION].value == 0.0
    assert row.columns["a"].value == 0.5 and row.columns["c"].n == 4


def test_worst_attack_is_picked_on_some_draws_and_scored_on_others():
    cells = [cell("d", "a", [0.9], selection=[0.2]), cell("d", "b", [0.3], selection=[0.8])]
    assert fresh_minimum_scores(cells) == (0.9,)


def test_a_minimum_over_noise_alone_leans_low_unless_it_is_scored_afresh():
    generator = torch.Generator().manual_seed(0)

    def noisy():
        return (torch.rand(2000, 20, generator=generator) < 0.7).double().mean(dim=1).tolist()

    cells = [cell("d", str(k), noisy(), noisy()) for k in range(12)]
    assert sum(fresh_minimum_scores(cells)) / 2000 == pytest.approx(0.7, abs=0.01)
    assert sum(minimum_scores(cells)) / 2000 < 0.6


def test_the_headline_never_exceeds_an_attack():
    cells = [cell("d", "a", [1.0, 0.2], selection=[0.8, 0.2]), cell("d", "b", [0.0, 0.6], selection=[1.0, 1.0])]
    assert minimum_scores(cells) == (0.5, 0.2)
    assert sum(minimum_scores(cells)) / 2 <= min(found.accuracy for found in cells)


def test_masked_gradient_is_detected_and_never_headlined():
    masked, images, labels = toy(masked=True)
    honest = toy()[0]
    attacks = (ATTACKS[1], AttackConfig(name="BPDA", epsilon=0.02, num_steps=5, num_eot=2, gradient="bpda"))
    cells = evaluate([masked], images, labels, CONFIG, attacks=attacks)
    (row,) = summarise(cells)
    assert row.columns[EXACT].masked and not row.columns["BPDA"].masked
    assert row.columns[HEADLINE].value < row.columns[EXACT].value
    cells = evaluate([honest], images, labels, CONFIG, attacks=attacks)
    assert unmasked_by({found.attack: found for found in cells}) == []


def test_a_hair_below_exact_is_chance_and_not_masking():
    exact = [1.0] * 50 + [0.5] * 50
    chance = [1.0] * 50 + [0.55, 0.43] * 25
    assert unmasked_by({EXACT: cell("d", EXACT, exact), "BPDA": cell("d", "BPDA", chance)}) == []
    assert unmasked_by({EXACT: cell("d", EXACT, exact), "BPDA": cell("d", "BPDA", [0.5] * 100)}) == ["BPDA"]


def test_comparison_is_paired_on_the_minima():
    strong = [cell("ours", "a", [1, 1, 1, 0] * 20), cell("ours", "b", [1, 1, 0, 1] * 20)]
    weak = [cell("other", "a", [0, 1, 1, 0] * 20), cell("other", "b", [1, 0, 0, 1] * 20), cell("third", "a", [1] * 80)]
    against_other, against_third = compare(strong + weak, "ours", ["other", "third", "absent"])
    assert against_other.difference.value == 0.5 and against_other.difference.significant
    assert (against_other.mcnemar.only_a, against_other.mcnemar.only_b) == (40, 0)
    assert against_third.difference.value == -0.5


def test_changing_only_the_gradient_mode_of_the_purifier_changes_nothing():
    defence, images, labels = toy()
    other = dataclasses.replace(defence, purifier=defence.purifier.configured(gradient="bpda"))
    assert fingerprint(defence, ATTACKS[1], images, labels, CONFIG) == fingerprint(
        other, ATTACKS[1], images, labels, CONFIG
    )


@pytest.mark.slow  # two processes import torch
def test_workers_change_nothing_but_the_time(tmp_path):
    defence, images, labels = toy()
    alone = evaluate([defence], images, labels, CONFIG, attacks=ATTACKS)
    shared = evaluate([defence], images, labels, CONFIG, attacks=ATTACKS, workers=2, results=tmp_path / "r.jsonl")
    assert [(found.attack, found.scores) for found in alone] == [(found.attack, found.scores) for found in shared]
    assert {found.fingerprint for found in read_cells(tmp_path / "r.jsonl")} == {found.fingerprint for found in shared}
