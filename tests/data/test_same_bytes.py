"""The same bytes for any number of threads, any order of parts, any point of resuming; what a bad image costs: itself alone.

A few of each; `tests/soak/test_same_bytes.py` has the full counts.
"""

from __future__ import annotations

import json
import os
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from purify_engine.config.offline import OfflineConfig
from purify_engine.data.items import ImageShape
from purify_engine.data.pipeline import Pipeline
from purify_engine.data.run import run
from purify_engine.data.sinks import open_sink
from purify_engine.data.sources import open_source
from tests.output_trees import files, identical
from tests.soak.torchless_run import Additions, make_folder

CONFIG = OfflineConfig(part_size=2, batch_size=2, decoders=1)


@pytest.fixture(autouse=True, scope="module")
def _disk():
    """Bytes are looked at, not accidents: nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(images of two sizes and one that is none, what they become)."""
    root = tmp_path_factory.mktemp("same")
    return make_world(root, 13)


def make_world(root, count):
    source = make_folder(root / "in", count, side=4)
    make_folder(root / "in" / "wide", 3, side=6)
    (root / "in" / "class0" / "000000.png").write_bytes(b"no image")
    purify(source, root / "whole")
    return source, root / "whole"


def purify(source, output, compute=None, config=CONFIG, **options):
    opened = open_source(source, ImageShape(1))
    return run(compute or Additions(), opened, open_sink(opened, output), config=config, **options)


def shuffled(source, output, seed):
    """An engine that works on the parts in another order."""

    def engine(parts):
        order = list(parts)
        random.Random(seed).shuffle(order)
        opened = open_source(source, ImageShape(1))
        return Pipeline(opened, open_sink(opened, output), Additions(), batch_size=2, part_size=2, decoders=2).run(order)

    return engine


@pytest.mark.parametrize("decoders", [2, 4])
def test_for_any_number_of_threads(decoders, world, tmp_path):
    source, whole = world
    purify(source, tmp_path / "clean", config=OfflineConfig(part_size=2, batch_size=2, decoders=decoders))
    assert not identical(tmp_path / "clean", whole)


@pytest.mark.parametrize("seed", range(3))
def test_for_any_order_of_parts(seed, world, tmp_path):
    source, whole = world
    purify(source, tmp_path / "clean", engine=shuffled(source, tmp_path / "clean", seed))
    assert not identical(tmp_path / "clean", whole)


def first_parts(count, source, output):
    """An engine that is interrupted after `count` parts."""

    def engine(parts):
        opened = open_source(source, ImageShape(1))
        work = Pipeline(opened, open_sink(opened, output), Additions(), batch_size=2, part_size=2, decoders=1)
        return work.run(islice(parts, count))

    return engine


@pytest.mark.parametrize("parts", [1, 7])
def test_for_any_point_of_resuming(parts, world, tmp_path):
    source, whole = world
    left = purify(source, tmp_path / "clean", engine=first_parts(parts, source, tmp_path / "clean")).left
    assert left == 16 - 2 * parts
    assert purify(source, tmp_path / "clean").left == 0
    assert not identical(tmp_path / "clean", whole)


class Poisoned(Additions):
    """Puts `value` into one pixel of image 5."""

    def __init__(self, value):
        self.value = value

    def start(self, images, ids):
        out = super().start(images, ids)
        out[ids == 5, 0, -1, -1] = self.value
        return out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_comes_out_as_no_number_never_touches_its_batch(value, world, tmp_path):
    source, whole = world
    summary = purify(source, tmp_path / "clean", Poisoned(value))
    clean, good = files(tmp_path / "clean"), files(whole)
    (lost,) = (name for name in good if name not in clean)
    assert lost == "class0/000005.png"
    assert all(clean[name] == good[name] for name in good if name.endswith(".png") and name != lost)
    assert [failure.id for failure in summary.failed] == [0, 5] and "NaN or infinity" in summary.failed[1].reason
    (record,) = (record for record in records(tmp_path / "clean") if 5 in range(record["first"], record["first"] + 2))
    assert record["ok"] == 1 and [failure[0] for failure in record["failed"]] == [5]


def records(output: Path):
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


class Starved(Additions):
    """Memory runs out at call `at`; `error` is how it says so."""

    def __init__(self, at, error=MemoryError):
        self.at, self.calls, self.error, self.batches = at, 0, error, []

    def start(self, images, ids):
        self.allocate()
        self.batches.append(len(ids))
        return super().start(images, ids)

    def finish(self, started):
        self.allocate()
        return super().finish(started)

    def allocate(self):
        self.calls += 1
        if self.calls == self.at:
            raise self.error("out of memory")


def starve(at, source, output):
    """(what the run told, the computing)."""
    compute, events = Starved(at), []
    config = OfflineConfig(part_size=8, batch_size=4, decoders=1)
    purify(source, output, compute, config, told=lambda event, **facts: events.append((event, facts)))
    return events, compute


@pytest.fixture(scope="module")
def fed(world, tmp_path_factory):
    """What the images become where memory suffices, and in how many calls."""
    output = tmp_path_factory.mktemp("fed") / "whole"
    _, compute = starve(-1, world[0], output)
    return output, compute.calls


@pytest.mark.parametrize("at", [1, 2, 3, 4, 8])
def test_where_memory_runs_out_the_same_images_are_tried_again_in_smaller_batches(at, world, fed, tmp_path):
    events, compute = starve(at, world[0], tmp_path / "clean")
    (told,) = (facts for event, facts in events if event == "out_of_memory")
    images = {name: content for name, content in files(tmp_path / "clean").items() if name.endswith(".png")}
    assert images == {name: content for name, content in files(fed[0]).items() if name.endswith(".png")}
    assert compute.calls > fed[1] and told["batch_size"] < told["images"] <= 4
    assert min(record["batch_size"] for record in records(tmp_path / "clean")) == told["batch_size"]
