"""What is pinned where a run begins: the batch and the threads that are fastest, for runs that are long enough to measure."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from purify_engine.config import OfflineConfig
from purify_engine.data import ImageShape, Item, ItemError, open_sink, open_source, tuning
from purify_engine.data.items import parts_of
from purify_engine.data.run import run
from purify_engine.data.tuning import measured

USUAL = {"batch_size": 64, "threads": 4}


class Images:
    kind, root, shape, classes, labels, skipped = "images", Path("images"), ImageShape(1), None, None, ()

    def __init__(self, count=100_000, broken=2):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def parts(self, size):
        return parts_of(self.count, size)

    def items(self, part):
        return (Item(id, str(id), b"") for id in part.ids)

    def decode(self, item):
        if item.id < self.broken:
            raise ItemError("broken")
        return np.zeros((1, 8, 8), np.uint8)


class Timed:
    """A purifier that takes `fixed + each * images` seconds of a clock of its own, and `by_threads` times as long."""

    def __init__(self, monkeypatch, fixed, each, fits=10**9, by_threads=None):
        self.now, self.fixed, self.each, self.fits, self.by_threads = 0.0, fixed, each, fits, by_threads or {4: 1.0}
        self.threads, self.sizes = 4, []
        clock = SimpleNamespace(perf_counter=lambda: self.now, monotonic=lambda: self.now)
        monkeypatch.setattr(tuning, "time", clock)

    def start(self, images, ids):
        assert len(set(ids.tolist())) == len(images)
        self.sizes.append(len(images))
        if len(images) > self.fits:
            raise MemoryError
        self.now += (self.fixed + self.each * len(images)) * self.by_threads[self.threads]
        return images

    def finish(self, started):
        return started

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)

    def thread_choices(self):
        return [4, 2, 1]

    def use_threads(self, threads):
        self.threads = threads


@pytest.mark.parametrize(
    ("fixed", "each", "fits", "batch_size"),
    [(0.1, 0.01, 10**9, 128), (0.0, 0.01, 10**9, 1), (0.1, 0.01, 20, 16), (10.0, 0.001, 10**9, 256)],
    ids=["up to where it is flat", "no gain at all", "up to what memory holds", "up to a part"],
)
def test_the_batch_grows_while_that_is_faster(fixed, each, fits, batch_size, monkeypatch):
    compute = Timed(monkeypatch, fixed, each, fits)
    chosen = measured(compute, Images(), OfflineConfig(threads=4), USUAL)
    assert chosen == {"batch_size": batch_size, "threads": 4}


@pytest.mark.parametrize(
    ("by_threads", "threads"),
    [({4: 1.0, 2: 1.8, 1: 3.5}, 4), ({4: 1.0, 2: 1.02, 1: 1.9}, 2), ({4: 9.0, 2: 3.0, 1: 1.0}, 1)],
    ids=["they pay", "half of them pay", "they stand in one another's way"],
)
def test_threads_that_do_not_pay_are_left_to_others(by_threads, threads, monkeypatch):
    compute = Timed(monkeypatch, 0.0, 0.01, by_threads=by_threads)
    assert measured(compute, Images(), OfflineConfig(batch_size=8), USUAL) == {"batch_size": 8, "threads": threads}
    assert compute.threads == 4, "who works on the parts sets them"
    assert measured(compute, Images(), OfflineConfig(batch_size=8, workers=2), USUAL) == {**USUAL, "batch_size": 64}


@pytest.mark.parametrize(
    ("source", "each", "config"),
    [
        (Images(100), 10.0, OfflineConfig()),
        (Images(1000), 0.01, OfflineConfig()),
        (Images(broken=10**6), 10.0, OfflineConfig()),
        (Images(), 10.0, OfflineConfig(batch_size=64, threads=4)),
    ],
    ids=["few images", "a short run", "no image to be read", "all is said"],
)
def test_where_measuring_does_not_pay_what_is_usual_is_taken(source, each, config, monkeypatch):
    compute = Timed(monkeypatch, 0.0, each)
    assert measured(compute, source, config, USUAL) == USUAL and len(compute.sizes) <= 3


def test_measuring_takes_a_small_share_of_the_run(monkeypatch):
    compute = Timed(monkeypatch, 0.0, 60.0)
    measured(compute, Images(300), OfflineConfig(), USUAL)
    assert compute.now < 0.05 * 300 * 60


def test_another_fault_of_the_purifier_is_raised(monkeypatch):
    compute = Timed(monkeypatch, 0.1, 0.01, fits=4)
    compute.is_out_of_memory = lambda error: False
    with pytest.raises(MemoryError):
        measured(compute, Images(), OfflineConfig(), USUAL)


def test_what_was_measured_is_pinned_and_not_asked_for_otherwise(tmp_path, monkeypatch):
    class Halving(Timed):
        def finish(self, started):
            return started.astype(np.float32) / 510

        def identity(self):
            return {}

    np.save(tmp_path / "in.npy", np.zeros((2000, 8, 8), np.uint8))
    source = open_source(tmp_path / "in.npy", ImageShape(1, 8))
    sink = open_sink(source, tmp_path / "out.npy")
    run(Halving(monkeypatch, 10.0, 0.001, by_threads={4: 1.0, 2: 2.0}), source, sink)
    pinned = json.loads(sink.record("run.json").read_text())["pinned"]
    assert pinned == {"batch_size": 256, "threads": 4}
    run(Halving(monkeypatch, 0.0, 10.0), source, sink, config=OfflineConfig(batch_size=256))
    with pytest.raises(ValueError, match="batch_size must be 256, as this output was begun, or left out, got 16"):
        run(Halving(monkeypatch, 0.0, 10.0), source, sink, config=OfflineConfig(batch_size=16))
