"""The full counts of `tests/data/test_same_bytes.py`, and what takes processes or torch."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from purify_engine.config.offline import OfflineConfig
from tests.data.test_same_bytes import Poisoned, first_parts, make_world, purify, shuffled, starve
from tests.output_trees import files, identical
from tests.soak.offspring import ROOT

THREADS = {"run.json is another"}  # it pins the threads of a computation, which are others in other processes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("same"), 101)  # with the 3 wide ones 52 parts


def images(output):
    return {name: content for name, content in files(output).items() if name.endswith(".png")}


def test_the_same_bytes(world, tmp_path, reached):
    source, whole = world
    outputs = iter(tmp_path / str(place) for place in range(1000))
    for decoders in (1, 2, 4):
        purify(source, output := next(outputs), config=OfflineConfig(part_size=2, batch_size=2, decoders=decoders))
        assert not identical(output, whole), f"{decoders} threads"
    for seed in range(20):
        output = next(outputs)
        purify(source, output, engine=shuffled(source, output, seed))
        assert not identical(output, whole), f"order {seed}"
    for parts in range(1, 51):
        output = next(outputs)
        assert purify(source, output, engine=first_parts(parts, source, output)).left > 0
        assert purify(source, output).left == 0
        assert not identical(output, whole), f"resumed after {parts} parts"
    for workers in (1, 2, 4):
        purify(source, output := next(outputs), config=OfflineConfig(part_size=2, batch_size=2, decoders=1, workers=workers))
        assert not {*identical(output, whole)} - THREADS, f"{workers} processes"
    for start in range(2):
        output = next(outputs)
        code = f"from tests.data.test_same_bytes import *; purify(Path({str(source)!r}), Path({str(output)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": str(start)})
        assert not {*identical(output, whole)} - THREADS, f"process {start}"
    reached("determinism", 78, asked=78, of="runs", case="threads, processes, orders, resume points, starts")


def test_no_image_is_touched_by_another(world, tmp_path, reached):
    source, whole = world
    count = 0
    for value in (np.nan, np.inf, -np.inf):
        for batch_size in (2, 3, 64):
            output = tmp_path / f"{value}-{batch_size}"
            config = OfflineConfig(part_size=64, batch_size=batch_size, decoders=2)
            summary = purify(source, output, Poisoned(value), config)
            assert images(output) == {name: content for name, content in images(whole).items() if name != "class0/000005.png"}
            assert [failure.id for failure in summary.failed] == [0, 5]
            count += 1
    reached("NaN", count, asked=9, of="poisoned batches")


def test_memory_runs_out_at_each_of_the_first_calls(world, tmp_path, reached):
    source, _ = world
    starve(-1, source, tmp_path / "whole")
    for at in range(1, 51):
        events, _ = starve(at, source, tmp_path / str(at))
        assert [event for event, _ in events].count("out_of_memory") == 1
        assert images(tmp_path / str(at)) == images(tmp_path / "whole")
    reached("out of memory", 50, asked=50, of="calls of the computing")
