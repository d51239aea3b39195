"""One defence under one attack: what is given to the attack, what it is scored on, what is written and told."""

import dataclasses

import pytest
import torch

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation import protocol
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.protocol import Cell, evaluate, fingerprint, read_cells, score
from purify_engine.evaluation.suite import CLEAN, EXACT, TRANSFERRED, attack_suite, decisive, fitted
from tests.evaluation.worlds import ATTACKS, CONFIG, Linear, ToyPurifier, guided, linear_world, toy


class Answers(ToyPurifier):
    """Right for image i on the draws of `right[i]`, and on no others."""

    def __init__(self, right):
        super().__init__(guided(1.0))
        self.right = right

    def forward(self, images, *, ids=None, draw=None):
        self.draws.append(draw)
        verdicts = torch.tensor([draw in self.right[image] for image in ids.tolist()])
        return torch.where(verdicts.view(-1, 1, 1, 1), 1.0, -1.0).expand_as(images)


def positive():
    return Linear(torch.ones(1, 2, 2))


@pytest.mark.parametrize("seed", [0, 3])
def test_a_cell_is_scored_on_k_draws_and_again_on_the_next_k(seed):
    first = 2**30 + 2 * 4 * seed
    purifier = Answers([{first, first + 1, first + 4}, {first + 5, first + 6, first + 7}, set(range(first, first + 4))])
    defence, images, labels = Defence("answers", positive(), purifier), torch.zeros(3, 1, 2, 2), torch.ones(3, dtype=torch.int64)
    config = EvaluationConfig(num_draws=4, seed=seed)
    (found,) = evaluate([defence], images, labels, config, attacks=[CLEAN])
    assert found.scores == (0.5, 0.0, 1.0) and found.selection == (0.25, 0.75, 0.0)
    assert found.pooled == (0.375, 0.375, 0.5) and found.accuracy == pytest.approx(1.25 / 3)
    assert purifier.draws == list(range(first, first + 8))
    assert (found.defence, found.attack, found.norm) == ("answers", "standard", "none")
    settings = {"attack": decisive(CLEAN), "defence": defence.describe(), "num_draws": 4, "scoring_seed": seed}
    assert found.config == settings and found.fingerprint == fingerprint(defence, CLEAN, images, labels, config)
    assert found.seconds >= 0 and round(found.seconds, 2) == found.seconds


def test_shares_of_draws_are_kept_to_six_digits():
    purifier = Answers([{0}, {0, 1}])
    defence, ids = Defence("answers", positive(), purifier), torch.arange(2)
    assert score(defence, torch.zeros(2, 1, 2, 2), torch.tensor([1, 1]), ids, range(3)) == (0.333333, 0.666667)


def test_a_deterministic_defence_has_one_set_of_scores():
    classifier, images, labels = linear_world()
    labels = labels.clone()
    labels[2] = 1 - labels[2]
    (found,) = evaluate([Defence("plain", classifier)], images, labels, CONFIG, attacks=[CLEAN])
    assert found.scores == found.selection == (1.0, 1.0, 0.0, 1.0, 1.0, 1.0)


def test_the_attacked_images_are_scored_by_their_ids(monkeypatch):
    classifier, images, labels = linear_world()
    monkeypatch.setattr(protocol, "attack", lambda defence, images, labels, wanted, **named: 1 - images)
    defence = Defence("toy", classifier, ToyPurifier(guided(1.0), spread=0.0))
    attack = AttackConfig(name="mirror", norm="l2", epsilon=1.0)
    (found,) = evaluate([defence], images, labels, CONFIG, attacks=[attack])
    assert set(found.scores) == {0.0} and found.norm == "l2"  # mirrored images lie on the other side


def test_an_attack_is_given_the_defence_the_images_their_labels_and_ids(monkeypatch):
    defence, images, labels = toy()
    given = []

    def caught(*words, **named):
        given.append((words, named))
        return words[1]

    monkeypatch.setattr(protocol, "attack", caught)
    evaluate([defence], images, labels, CONFIG, attacks=ATTACKS[1:2])
    (words, named), *others = given
    assert not others and words[0] is defence and words[1] is images and words[2] is labels and words[3] == ATTACKS[1]
    assert named.keys() == {"ids", "pool", "batch_size"} and named["ids"].tolist() == list(range(40))
    assert named["pool"] is None and named["batch_size"] is None  # all of them, as they are
    given.clear()
    evaluate([defence], images, labels, dataclasses.replace(CONFIG, batch_size=15), attacks=ATTACKS[1:2])
    assert [len(words[1]) for words, _ in given] == [15, 15, 10] and {named["batch_size"] for _, named in given} == {15}
    assert all(named["pool"][0] is images and named["pool"][1] is labels for _, named in given)  # in pieces, too


def test_without_a_list_the_whole_protocol_is_run_as_fitted_to_each_defence(monkeypatch):
    classifier, images, labels = linear_world()
    run = []

    def note(defence, wanted, images, labels, config, mark):
        run.append((defence.name, wanted, config))
        return Cell(defence.name, wanted.name, wanted.norm, (1.0,), (1.0,), 0.0, mark, {})

    monkeypatch.setattr(protocol, "run_cell", note)
    rows = [Defence("plain", classifier), toy()[0]]
    cells = evaluate(rows, images, labels, CONFIG)
    wanted = [(row.name, fitted(attack, row), CONFIG) for row in rows for attack in attack_suite(CONFIG)]
    assert run == [item for item in wanted if item[1] is not None]
    assert [(found.defence, found.attack) for found in cells] == [(name, attack.name) for name, attack, _ in run]
    run.clear()
    evaluate(rows[:1], images, labels)
    assert {config for *_, config in run} == {EvaluationConfig()}


def test_cells_are_told_as_they_come_the_found_ones_first_and_returned_in_the_order_asked_for(tmp_path):
    defence, images, labels = toy()
    settings = {"results": tmp_path / "r.jsonl"}
    evaluate([defence], images, labels, CONFIG, attacks=ATTACKS[2:], **settings)
    told = []
    cells = evaluate([defence], images, labels, CONFIG, attacks=ATTACKS, on_cell=told.append, **settings)
    assert [found.attack for found in told] == [TRANSFERRED, "standard", EXACT]
    assert [found.attack for found in cells] == ["standard", EXACT, TRANSFERRED]
    assert [found.attack for found in read_cells(tmp_path / "r.jsonl")] == [TRANSFERRED, "standard", EXACT]


def test_the_same_cell_asked_for_twice_is_computed_once(monkeypatch):
    defence, images, labels = toy()
    calls = []
    run = protocol.run_cell
    monkeypatch.setattr(protocol, "run_cell", lambda *args: calls.append(args[1].name) or run(*args))
    assert len(evaluate([defence, defence], images, labels, CONFIG, attacks=ATTACKS[:1])) == 1 and calls == ["standard"]


def test_a_cell_comes_back_from_its_line_equal(tmp_path):
    defence, images, labels = toy()
    cells = evaluate([defence], images, labels, CONFIG, attacks=ATTACKS, results=tmp_path / "r.jsonl")
    assert read_cells(tmp_path / "r.jsonl") == cells and read_cells(tmp_path / "absent.jsonl") == []
