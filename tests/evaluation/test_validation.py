"""Each image's worst attack is scored again, on noise that nothing has seen, by three metrics that are kept apart."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation import validation
from purify_engine.evaluation.cells import Cell, read_cells
from purify_engine.evaluation.protocol import evaluate
from purify_engine.evaluation.suite import EXACT
from purify_engine.evaluation.validation import (
    Validation,
    all_right,
    fresh_draws,
    groups,
    left_to_validate,
    read_validations,
    validate,
    winners,
)
from purify_engine.evaluation.worst_images import WorstImages
from tests.evaluation.worlds import ATTACKS, CONFIG, toy

FRESH = dataclasses.replace(CONFIG, fresh_draws=6, fresh_seeds=3)


def cell(attack, scores, *, norm="linf", selection=None, ids=None):
    return Cell("d", attack, norm, tuple(scores), tuple(selection or scores), 0.0, attack, {}, ids=ids, labels=(0,) * len(scores))


def test_the_winner_of_each_image_is_its_lowest_score_and_a_minimum_is_over_two_attacks():
    a, b = cell("a", [0.5, 1.0], selection=[0.3, 1.0]), cell("b", [0.2, 0.6], selection=[0.8, 0.6])
    far = cell("c", [0, 0], norm="l2")
    assert [found.attack for found in winners([a, b])] == ["a", "b"]
    clean = cell("standard", [1, 1], norm="none")
    assert {name: len(own) for name, own in groups([clean, a, b, far]).items()} == {
        "standard": 1, "minimum, linf": 2, "minimum, all norms": 3,
    }  # fmt: skip
    assert list(groups([clean, a])) == ["standard", "a"]  # a single attack is called by its own name


def test_of_equals_the_attack_that_is_stronger_on_all_images_is_validated():
    weak, strong = cell("weak", [0.0, 1.0, 1.0]), cell("strong", [0.0, 0.4, 0.2])
    ((_, _, chosen),) = left_to_validate([weak, strong], [], FRESH)
    assert [found.attack for found in winners(chosen)] == ["strong"] * 3
    key = validation.key_of(chosen, FRESH)
    seen = Validation("d", "minimum, linf", 2, ("a",) * 2, ((6, 6),) * 3, 6, (1, 1), 18, (1, 2), (0, 0), (), 0.0, key)
    ((_, _, rest),) = left_to_validate([weak, strong], [seen], FRESH)
    assert [found.attack for found in winners(rest)] == ["strong"]  # by all images, also where some are done


def test_the_worst_of_ten_draws_is_counted_over_every_choice_of_ten():
    verdicts = [1] * 9 + [0] * 3
    tens = list(itertools.combinations(verdicts, 4))
    assert all_right(9, 12, 4) == pytest.approx(np.mean([min(ten) for ten in tens]))
    assert all_right(12, 12) == 1.0 and all_right(9, 12) == 0.0 and all_right(3, 3) == 1.0


def test_metrics_of_an_image_are_worked_out_by_hand():
    found = Validation("d", "g", 2, ("a", "b"), ((12, 6), (12, 0)), 12, (1, 0), 24, (0, 1), (3, 4), (), 0.0, "k")
    assert found.single == (1.0, 0.25) and found.by_seed == (0.75, 0.5) and found.worst == (1.0, 0.0)


def test_fresh_draws_are_of_no_other_seed_and_of_no_other_run():
    runs = [dataclasses.replace(FRESH, seed=seed, fresh_draws=4096, fresh_seeds=64) for seed in (0, 1, 511)]
    ranges = sorted((fresh_draws(run, seed).start, fresh_draws(run, seed).stop) for run in runs for seed in range(64))
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges)) and ranges[-1][1] <= 2**32


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    defence, images, labels = toy(spread=0.3)
    results = tmp_path_factory.mktemp("validation") / "r.jsonl"
    attacks = (*ATTACKS, AttackConfig(name="far", norm="l2", epsilon=0.3, num_steps=2, num_eot=1))
    attacks = tuple(dataclasses.replace(attack, start="clean") for attack in attacks)
    cells = evaluate([defence], images, labels, FRESH, attacks=attacks, results=results)
    return defence, images, labels, attacks, cells, results


def test_every_group_is_validated_once_whatever_the_pieces(evaluated):
    defence, images, labels, attacks, cells, results = evaluated
    given = {"attacks": attacks, "ids": torch.arange(40)}
    whole = validate([defence], cells, images, labels, FRESH, **given)
    assert [one.group for one in whole] == ["standard", "minimum, linf", "minimum, all norms"]
    in_pieces = dataclasses.replace(FRESH, batch_size=13)
    kept = validate([defence], cells, images, labels, in_pieces, **given, results=results)
    for one, other in zip(kept, whole, strict=True):
        assert (one.right, one.majority, one.winners, one.ids) == (other.right, other.majority, other.winners, tuple(range(40)))
        attacked_by = {"standard": 1, "minimum, linf": 2, "minimum, all norms": 3}[one.group]
        assert (one.draws, one.voting, len(one.right), one.attacks) == (6, 18, 3, attacked_by)
    before = results.read_text()
    assert validate([defence], cells, images, labels, FRESH, **given, results=results) == kept == read_validations(results)
    assert results.read_text() == before and len(read_cells(results)) == 4


def test_seeds_groups_and_rows_draw_other_noise_than_attacks_and_than_one_another(evaluated, monkeypatch):
    defence, images, labels, attacks, cells, _ = evaluated
    asked, streams = [], []

    def said(row, images, ids, draws):
        streams.append(row.purifier.stream)
        asked.append(draws)
        return torch.ones(6, 40, dtype=torch.int64)

    monkeypatch.setattr(validation, "verdicts_of", said)
    rows = [defence, dataclasses.replace(defence, name="other")]
    theirs = [dataclasses.replace(one, defence="other") for one in cells]
    validate(rows, [*cells, *theirs], images, labels, FRESH, attacks=attacks, ids=torch.arange(40))
    drawn = [(stream, draw) for stream, draws in zip(streams, asked, strict=True) for draw in draws]
    assert len(drawn) == len(set(drawn)) == 2 * 3 * 3 * 6 and all(stream for stream, _ in drawn)


def test_one_draw_is_all_there_is_of_a_defence_without_noise():
    defence, images, labels = toy()
    plain = dataclasses.replace(defence, purifier=None, name="plain")
    cells = evaluate([plain], images, labels, FRESH, attacks=ATTACKS[:2])
    clean, attacked = validate([plain], cells, images, labels, FRESH, attacks=ATTACKS[:2], ids=torch.arange(40))
    assert attacked.group == EXACT and attacked.single == cells[1].scores
    assert attacked.single == attacked.worst == tuple(map(float, attacked.majority))
    assert clean.single == cells[0].scores


def test_logs_tell_of_each_image_what_was_said_and_how_often_the_guide_said_so(evaluated):
    defence, images, labels, _, cells, _ = evaluated
    clean = cells[0]
    assert clean.labels == tuple(labels.tolist()) and len(clean.verdicts) == len(clean.agreement) == 40
    for label, said, share, agrees in zip(clean.labels, clean.verdicts, clean.pooled, clean.agreement, strict=True):
        assert sum(said.values()) == 10 and said.get(str(label), 0) / 10 == pytest.approx(share)
        assert agrees == pytest.approx(share)  # the guide, which is the classifier, is right on every clean image
    assert clean.cost["ms_an_image"] > 0 and clean.cost["calls"] == {"unet": 0, "guide": 0, "guide_backward": 0}


def test_images_that_were_kept_are_scored_as_they_were_and_not_attacked_again(evaluated, tmp_path, monkeypatch):
    defence, images, labels, attacks, *_ = evaluated
    given = {"attacks": attacks, "ids": torch.arange(40)}
    in_pieces, worst = dataclasses.replace(FRESH, batch_size=17), tmp_path / "r.worst"
    cells = evaluate([defence], images, labels, in_pieces, **given, worst=worst, workers=2)
    assert all(one.adversarial is None for one in cells)
    expected = validate([defence], cells, images, labels, FRESH, **given)
    asked, run = [], validation.attack
    monkeypatch.setattr(validation, "attack", lambda *args, **more: asked.append(args[3].name) or run(*args, **more))
    found = validate([defence], cells, images, labels, FRESH, **given, worst=worst)
    assert [(one.right, one.majority) for one in found] == [(one.right, one.majority) for one in expected]
    assert set(asked) == {"standard"}  # which changes nothing
    far, near = sorted(worst.iterdir(), key=lambda path: path.name.endswith("-linf.npz"))
    far.unlink()
    near.write_bytes(near.read_bytes()[:-100])
    again = validate([defence], cells, images, labels, FRESH, **given, worst=worst)
    assert [one.right for one in again] == [one.right for one in expected] and set(asked) > {"standard", "far"}


def test_the_lowest_score_is_kept_and_of_equals_that_of_the_earlier_attack(tmp_path):
    def found(attack, scores, value):
        images = np.full((len(scores), 1, 2, 2), value, dtype=np.float32)
        return dataclasses.replace(cell(attack, scores, ids=tuple(range(len(scores)))), adversarial=images)

    a, b, c = found("a", [0.5, 1.0, 0.2], 0.1), found("b", [0.5, 0.6, 0.4], 0.2), found("c", [0.4, 0.6, 0.9], 0.3)
    for order in itertools.permutations((a, b, c)):
        store = WorstImages(tmp_path / "".join(one.attack for one in order), ["a", "b", "c"])
        for one in order:
            store.keep("d", one)
        kept = store.found("d", dict(enumerate((c, b, a))))
        assert [kept[image].unique().tolist() for image in range(3)] == [[pytest.approx(value)] for value in (0.3, 0.2, 0.1)]
        assert store.found("other", {0: c}) == {} and store.found("d", {0: a, 1: c}) == {}
