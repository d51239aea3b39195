"""Choosing tiles of attention on GPUs: which are tried, the table that is made of the results, and a dry run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from bench.__main__ import COMMANDS
from bench.tuning import attention_tiles
from bench.tuning.attention_tiles import BATCHES, NETWORKS, table, tiles
from purify_engine.kernels import _tiles

HOPPER = (9, 0)
PROBLEMS = [
    (batch * heads, tokens, tokens, head_dim, HOPPER)
    for network, shapes in NETWORKS.items()
    for batch in BATCHES[network]
    for heads, tokens, head_dim in shapes
]
NOW, OTHER = _tiles.AttentionTile(64, 64, 4, 2), _tiles.AttentionTile(16, 64, 4, 2)


def seconds(median, spread=0.0):
    return SimpleNamespace(median=median, spread=spread)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_tile_that_is_taken_now_is_timed_first_and_every_number_of_queries_is_tried(problem):
    heads, queries, keys, head_dim, capability = problem
    found = tiles(problem)
    assert found[0] == _tiles.attention(heads, queries, keys, head_dim, 2, capability)
    assert len(found) == len(set(found)) <= attention_tiles.MOST
    assert {tile.block_m for tile in found} == {rows for rows in (16, 32, 64, 128) if rows <= queries}
    for tile in found:
        room = 2 * head_dim * (tile.block_m + 2 * tile.num_stages * tile.block_n)
        assert room <= _tiles.shared_memory(capability)


def test_few_images_are_spread_over_more_processors():
    rows = [_tiles.attention(heads, 256, 256, 256, 2, HOPPER).block_m for heads in (1, 2, 4, 8, 64, 256)]
    assert rows == [16, 16, 32, 64, 128, 128]
    assert _tiles.attention(1, 8, 8, 256, 2, HOPPER).block_m == 16


def test_a_tile_that_was_measured_is_taken_in_16_bits(monkeypatch):
    problem = (4, 256, 256, 256, HOPPER)
    monkeypatch.setattr(_tiles, "ATTENTION", {problem: OTHER})
    assert _tiles.attention(*problem[:4], 2, HOPPER) == OTHER
    assert OTHER not in (_tiles.attention(*problem[:4], 4, HOPPER), _tiles.attention(*problem[:4], 2, (8, 0)))


def test_the_table_names_a_tile_that_is_faster_by_more_than_both_spreads():
    problem = PROBLEMS[0]
    assert table(problem, NOW, {NOW: seconds(2.0), OTHER: seconds(1.0)}) == [f"    {problem}: {OTHER},"]
    written = eval(table(problem, NOW, {OTHER: seconds(1.0)})[0].strip().rstrip(",").join("{}"), vars(_tiles))
    assert written == {problem: OTHER}
    assert table(problem, NOW, {NOW: seconds(2.0, 0.6), OTHER: seconds(1.0, 0.5)}) == []
    assert table(problem, NOW, {NOW: seconds(1.0), OTHER: seconds(2.0)}) == table(problem, NOW, {}) == []


def test_its_dry_run_times_every_tile_and_pytorchs_attention(tmp_path, capsys):
    assert COMMANDS["tune-attention"].module == attention_tiles.__name__
    assert attention_tiles.main(["--toy", "--device", "cpu", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("attention-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = [line for line in lines if line["kind"] == "attention"]
    assert {line["library"] for line in timed} >= {None, "PyTorch"}
    assert len({str(line["tile"]) for line in timed}) > 2
    assert "ATTENTION = {" in capsys.readouterr().out
