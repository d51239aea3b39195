"""Choosing tiles of the norm on GPUs: which are tried, and the table that is made of the results."""

from __future__ import annotations

import json

import pytest
import torch

from bench.__main__ import COMMANDS
from bench.tuning import norm_tiles
from bench.tuning.norm_tiles import NORMS, NormShape, bytes_moved, table, tiles
from purify_engine.kernels import _tiles

SHAPES = [shape for shapes in NORMS.values() for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_tile_that_is_taken_now_is_timed_first_and_none_twice(shape):
    found = tiles(shape)
    now = _tiles.slab(shape.own + shape.others, shape.own, shape.size**2, shape.num_groups)
    assert found[0] == now
    assert len(found) == len(set(found)) <= 1 + norm_tiles.MOST_WHOLE + norm_tiles.MOST_CUT + norm_tiles.MOST_TWICE


def test_the_table_names_the_tile_that_is_best_over_all_batches_where_it_is_another():
    shape = NormShape(256, 0, 16)
    now, other, third = tiles(shape)[:3]
    key = (256, 256, 32)
    assert table({shape: {now: [1.0, 1.3], other: [1.1, 1.0], third: [1.0, 1.5]}}) == [f"    {key}: {other},"]
    assert table({shape: {now: [1.0, 1.1], other: [1.1, 1.1]}}) == []
    written = eval(table({shape: {now: [2.0], other: [1.0]}})[0].strip().rstrip(",").join("{}"), {"SlabTile": _tiles.SlabTile})
    assert written == {key: other}


def test_every_image_is_counted_once():
    x, skip = torch.zeros(2, 8, 3, 3, dtype=torch.half), torch.zeros(2, 4, 3, 3, dtype=torch.half)
    alone = (x, None, None, None, 1.0, None, (), True, False)
    assert bytes_moved(alone) == 2 * 2 * x.numel()
    assert bytes_moved((x, x, None, None, 1.0, skip, (), True, True)) == 2 * (2 * 12 * 9 + 2 * 12 * 9 * 2 + x.numel())


def test_its_dry_run_times_every_way(tmp_path, capsys):
    pytest.importorskip("triton")
    assert COMMANDS["tune-norm"].module == norm_tiles.__name__
    assert norm_tiles.main(["--toy", "--device", "cpu", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("norms-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = [line for line in lines if line["kind"] == "norm"]
    assert {line["form"] for line in timed} == set(norm_tiles.FORMS)
    assert {line["tile"] is None for line in timed} == {True, False}
    assert "SLABS = {" in capsys.readouterr().out
