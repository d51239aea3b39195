"""Choosing tiles of the 3x3 convolution on GPUs: which are tried, and the table that is made of the results."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.tuning import conv3x3_tiles
from purify_engine.kernels import _conv3x3_wins, _tiles

TILE = _tiles.ConvTile(16, 32, 64, 4, takes_norm=False, num_warps=4, num_stages=3)


def tile(problem, wins, rows):
    return {"kind": "tile", "problem": problem, "wins": wins, "tile": TILE._replace(block_m=rows)._asdict()}


def test_the_table_holds_the_last_winners_alone(monkeypatch, tmp_path):
    large, small = [64, 8, 8, [9, 0]], [16, 8, 8, [8, 0]]
    records = [{"kind": "machine"}, tile([64, 8, 16, [9, 0]], True, 16), tile(large, True, 16), tile(large, False, 16)]
    records += [tile(small, False, 16), tile(small, True, 32)]
    (tmp_path / "tiles-some-gpu.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(conv3x3_tiles, "TABLE", tmp_path / "table.py")
    assert conv3x3_tiles.main(["--device", "cpu", "--results", str(tmp_path), "--write"]) == 0
    written = {}
    exec((tmp_path / "table.py").read_text(), written)
    assert written["WINS"] == {
        (64, 8, 16, (9, 0)): (16, 32, 64, 4, False, 4, 3),
        (16, 8, 8, (8, 0)): (32, 32, 64, 4, False, 4, 3),
    }


def test_the_table_is_read_and_written_alike():
    rows = [
        {"kind": "tile", "problem": [*problem[:3], list(problem[3])], "wins": True, "tile": best._asdict()}
        for problem, best in _tiles.CONV3X3_WINS.items()
    ]
    assert conv3x3_tiles.table(rows) == Path(_conv3x3_wins.__file__).read_text()
    assert len(rows) == len(_conv3x3_wins.WINS)


@pytest.mark.parametrize("problem", [(16, 512, 256), (64, 256, 256), (1024, 128, 128), (4096, 256, 256)], ids=str)
def test_a_tile_is_no_larger_than_its_problem_and_leaves_every_program_steps(problem):
    found = conv3x3_tiles.tiles(SimpleNamespace(toy=False), (*problem, (9, 0)))
    assert len(found) == len(set(found)) <= 12
    for each in found[1:]:
        assert each.block_m <= max(16, problem[0])
        assert 2 * each.splits <= 9 * problem[1] // each.block_c
        assert 2 * (each.block_m + each.block_n) * each.block_c * each.num_stages <= _tiles.shared_memory((9, 0))


def test_on_a_gpu_a_graph_is_timed_of_launches_by_weights_that_no_cache_holds(monkeypatch):
    recorded, seen = [], []

    class Graph:
        def capture_begin(self):
            self.before = len(seen)

        def capture_end(self):
            recorded.append(len(seen) - self.before)

        def replay(self):
            pass

    for name in ("Stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(conv3x3_tiles, "CudaClock", lambda **how: lambda call: 2.0**20)
    monkeypatch.setattr(conv3x3_tiles, "SECONDS", 0)
    run = SimpleNamespace(toy=False, device=SimpleNamespace(type="cuda"))
    calls = {name: lambda weight: seen.append(weight.data_ptr()) for name in "ab"}
    timings = conv3x3_tiles.timed(run, calls, torch.zeros(2**19))  # 2 MiB: 32 of them are 64
    assert {name: timing.median for name, timing in timings.items()} == {"a": 2.0**15, "b": 2.0**15}
    assert recorded == [32, 32] and len(set(seen)) == 32


def test_networks_share_problems_which_are_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(conv3x3_tiles, "measured", lambda run, *what: measured.append(what))
    run = SimpleNamespace(toy=False, device=SimpleNamespace(type="meta"), seconds_left=1.0)
    chosen = SimpleNamespace(network=("ddpm-cifar10", "ddpmpp-cifar10"), batch=(1, 4))
    conv3x3_tiles.measure_all(run, chosen)
    problems = [conv3x3_tiles.problem_of(run, batch, conv) for _, batch, conv in measured]
    assert len(problems) == len(set(problems)) >= 20
    assert [what[:2] for what in measured[:12]] == [("ddpm-cifar10", 1)] * 12  # the smallest batch, then what others add
