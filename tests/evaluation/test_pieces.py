"""An evaluation in pieces of any size is the same evaluation, and goes on where it stopped."""

import dataclasses
import json

import pytest
import torch

from purify_engine.evaluation import protocol
from purify_engine.evaluation.cells import Cell, common, merged, read_cells
from purify_engine.evaluation.pieces import Deadline, in_order, pieces
from tests.evaluation.worlds import ATTACKS, CONFIG, toy


def in_pieces_of(size):
    return dataclasses.replace(CONFIG, batch_size=size)


def scored(cell):
    """Without what the clock says."""
    return dataclasses.replace(cell, seconds=0.0, cost={})


def test_scores_are_the_same_in_pieces_of_any_size(tmp_path):
    defence, images, labels = toy()
    ids = torch.arange(40) + 7
    whole = protocol.evaluate([defence], images, labels, CONFIG, attacks=ATTACKS, ids=ids)
    for size in (1, 9):
        results = tmp_path / f"{size}.jsonl"
        cells = protocol.evaluate([defence], images, labels, in_pieces_of(size), attacks=ATTACKS, ids=ids, results=results)
        assert [cell.ids for cell in cells] == [tuple(range(7, 47))] * 3
        for cell, other in zip(cells, whole, strict=True):
            assert (cell.scores, cell.selection, cell.fingerprint) == (other.scores, other.selection, other.fingerprint)
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        assert len(lines) == 3 * -(-40 // size) and all(len(line["scores"]) <= size and line["of"] == 40 for line in lines)
        assert [cell.scores for cell in read_cells(results)] == [cell.scores for cell in whole]


def test_pieces_that_are_there_are_not_computed_again_whatever_their_size(tmp_path, monkeypatch):
    defence, images, labels = toy()
    results, asked = tmp_path / "r.jsonl", []
    run = protocol.run_cell

    def stopped(*task):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append((task[1].name, task[6].tolist()))
        return run(*task)

    monkeypatch.setattr(protocol, "run_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        protocol.evaluate([defence], images, labels, in_pieces_of(9), attacks=ATTACKS, results=results)
    before = asked.copy()
    asked.clear()
    monkeypatch.setattr(protocol, "run_cell", lambda *task: asked.append((task[1].name, task[6].tolist())) or run(*task))
    told = []
    cells = protocol.evaluate(
        [defence], images, labels, in_pieces_of(16), attacks=ATTACKS, results=results, on_cell=told.append
    )
    for attack in ATTACKS:
        images_of = [image for name, rows in before + asked for image in rows if name == attack.name]
        assert sorted(images_of) == list(range(40))
    assert [cell.ids for cell in cells] == [None] * 3
    assert [scored(cell) for cell in merged(told)] == [scored(cell) for cell in cells]
    monkeypatch.setattr(protocol, "run_cell", lambda *task: pytest.fail("nothing is left to do"))
    again = protocol.evaluate([defence], images, labels, CONFIG, attacks=ATTACKS, results=results)
    assert [scored(cell) for cell in again] == [scored(cell) for cell in cells]


def test_all_cells_are_done_on_the_same_images_before_the_next_images_begin():
    left = {"a": set(range(7)), "b": set(range(7)), "c": {2, 5}}
    planned = list(pieces({key: set(places) for key, places in left.items()}, 7, 3, Deadline()))
    blocks = [in_order(7)[first : first + 3] for first in (0, 3, 6)]
    assert [key for key, _ in planned if key != "c"] == ["a", "b"] * 3
    for key, places in left.items():
        assert [set(rows) for name, rows in planned if name == key] == [places & set(b) for b in blocks if places & set(b)]
    assert in_order(7) != list(range(7)) and sorted(in_order(7)) == list(range(7))


def test_nothing_is_begun_that_would_not_be_done_in_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("purify_engine.evaluation.pieces.time.monotonic", lambda: clock[0])
    deadline, done = Deadline(100.0), {"a": 0, "b": 0}
    for key, rows in pieces({key: set(range(1000)) for key in done}, 1000, 50, deadline):
        seconds = {"a": 0.25, "b": 1.0}[key] * len(rows)
        clock[0] += seconds
        deadline.measured(key, seconds, len(rows))
        done[key] += len(rows)
    assert 85 < clock[0] <= 100 and done["a"] == done["b"]


def test_a_piece_that_does_not_fit_into_a_gpu_is_halved(monkeypatch):
    defence, images, labels = toy()
    run, sizes = protocol.run_cell, []

    def small(*task):
        sizes.append(len(task[2]))
        if len(task[2]) > 15:
            raise torch.OutOfMemoryError
        return run(*task)

    (whole,) = protocol.evaluate([defence], images, labels, CONFIG, attacks=ATTACKS[1:2])
    monkeypatch.setattr(protocol, "run_cell", small)
    (cell,) = protocol.evaluate([defence], images, labels, CONFIG, attacks=ATTACKS[1:2])
    assert cell.scores == whole.scores and sizes == [40, 20, 10, 10, 20, 10, 10]


def cell(ids, scores, **settings):
    return Cell("d", "a", "linf", tuple(scores), tuple(scores), 1.0, "mark", {}, ids=tuple(ids), of=4, **settings)


def test_pieces_are_merged_by_their_images_and_the_first_of_two_counts():
    pieces = [cell([3, 1], [0.3, 0.1]), cell([0], [0.0]), cell([1, 2], [0.9, 0.2])]
    (half,) = merged(pieces[:2])
    assert half.ids == (0, 1, 3) and half.scores == (0.0, 0.1, 0.3) and half.missing == 1 and half.seconds == 2.0
    (whole,) = merged(pieces)
    assert whole.ids is None and whole.of is None and whole.scores == (0.0, 0.1, 0.2, 0.3) and whole.missing == 0


def test_where_pieces_were_computed_is_said_of_all_of_them():
    on = [cell([image], [1.0], computed={"device": device, "tf32": False}) for image, device in enumerate(("cpu", "cuda"))]
    assert merged(on)[0].computed == {"device": "cpu and cuda", "tf32": False}


def test_what_is_compared_stands_on_the_same_images():
    one, other = common([cell([0, 1, 3], [0.0, 0.1, 0.3]), cell([1, 2, 3], [0.5, 0.6, 0.7])])
    assert one.images == other.images == (1, 3) and one.scores == (0.1, 0.3) and other.scores == (0.5, 0.7)
    assert common([]) == []
