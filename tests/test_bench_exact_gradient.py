"""The measurement of the exact attack's gradient, dry."""

from __future__ import annotations

from bench.runs.exact_gradient import WAYS, main
from purify_engine.benchmark.harness import read_records


def test_both_ways_have_one_gradient_and_each_has_its_time_and_its_peak(tmp_path):
    status = main(["--toy", "--device", "cpu", "--results", str(tmp_path)])
    lines = read_records(sorted(tmp_path.glob("*.jsonl")))
    assert status == 0 and [line["ok"] for line in lines if line["kind"] == "check"] == [True]
    timed = {line["way"]: line for line in lines if line["kind"] == "exact-gradient"}
    assert set(timed) == set(WAYS) and all(line["an_image"] > 0 and line["peak"] > 0 for line in timed.values())
    (full,) = (line for line in lines if line["kind"] == "exact-attack")
    assert full["scaled"] and full["gradients"] == 512 * 20 * 8
    engine = timed["engine"]["an_image"]
    assert abs(full["hours"] * 3600 - engine * full["gradients"]) <= 1e-9 * full["hours"] * 3600
