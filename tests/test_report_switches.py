"""The table of the faster ways: every switch is asked for somewhere, and shares are of large tensors in 16 bits alone."""

from __future__ import annotations

import json

import pytest

from bench.report import switches
from bench.report.lines import machines
from purify_engine.ops.switches import SWITCHES

MACHINE = {"machine": "a GPU", "run": "2026-01-01T00:00:00+00:00"}


@pytest.fixture
def gpu(tmp_path):
    """A function: a GPU on which ops came so near the roofline; each line is (case, bytes, roofline)."""

    def measured(*lines):
        about = {"kind": "op", "op": "residual_sum", "engine": "triton", "cache": "cold"}
        ops = [MACHINE | about | {"case": case, "bytes": size, "roofline": near} for case, size, near in lines]
        records = [MACHINE | {"kind": "machine", "device": "cuda", "toy": False, "commit": "abc"}, *ops]
        (tmp_path / "ops-a-gpu.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return machines(tmp_path)[0]

    return measured


def test_every_switch_is_asked_for_by_a_function_of_the_package():
    places = switches.entry_points()
    assert set(places) == set(SWITCHES) and all(places.values())
    assert places["pixel_key"] == ["engine/guide.py:derive"]


def test_a_switch_is_named_only_where_it_is_asked_for(tmp_path):
    code = 'def one(x):\n    return switches.runs("conv_relu", x)\n\ndef other(x):\n    return print("conv_relu", x)\n'
    (tmp_path / "guide.py").write_text(code)
    assert switches.entry_points(tmp_path)["conv_relu"] == ["guide.py:one"]


def test_a_share_is_the_range_over_large_tensors_in_16_bits(gpu):
    machine = gpu(("a bfloat16", 1e8, 0.71), ("b bfloat16", 1e8, 0.93), ("c bfloat16", 1e6, 0.1), ("d float32", 1e8, 0.2))
    assert switches.share(machine, "residual_sum") == "71 to 93 %"
    assert switches.share(machine, "affine_relu") == "not measured"
    assert switches.share(machine, None) == "–"


def test_the_table_has_a_row_a_switch_and_a_column_a_gpu(gpu, tmp_path):
    gpu(("a bfloat16", 1e8, 0.5))
    header, _, *rows = switches.ways(tmp_path).splitlines()
    assert header.endswith("of the roofline, a GPU |") and len(rows) == len(SWITCHES)
    (row,) = (row for row in rows if row.startswith("| `fused_sum` | exact | on |"))
    assert row.endswith("| 50 to 50 % |") and SWITCHES["fused_sum"].says in row
