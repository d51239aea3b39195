"""Parts of every kind through the pipeline: nothing is lost, nothing waits for ever, and batches follow from the part alone."""

import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from purify_engine.data import ImageShape, Item, ItemError, batches, pipeline
from purify_engine.data.items import parts_of
from purify_engine.data.pipeline import Pipeline


class Shapes:
    """A source of images of a few shapes, a fifth of which cannot be decoded."""

    kind, root, shape, classes, labels, skipped = "shapes", Path("shapes"), ImageShape(1), None, None, ()

    def __init__(self, chance):
        self.shapes = [(1, chance.randint(1, 4), chance.randint(1, 30)) for _ in range(chance.randint(1, 100))]
        self.bad = {id for id in range(len(self)) if chance.random() < 0.2}

    def __len__(self):
        return len(self.shapes)

    def items(self, part):
        return (Item(id, str(id), b"") for id in part.ids)

    def decode(self, item):
        if item.id in self.bad:
            raise ItemError("bad")
        return np.full(self.shapes[item.id], item.id, np.uint8)


class Kept:
    def __init__(self):
        self.got = {}

    def encode(self, item, image):
        return round(image.max() * 255)

    def write(self, part, outcomes):
        outcomes = list(outcomes)
        assert [outcome.item.id for outcome in outcomes] == list(part.ids)
        assert not self.got.keys() & {outcome.item.id for outcome in outcomes}
        self.got |= {outcome.item.id: outcome.encoded for outcome in outcomes}
        return [], [(item, encoded) for item, encoded in outcomes if isinstance(encoded, ItemError)]


class Unchanged:
    """Gives images back as they are; memory runs out in the calls `short`."""

    def __init__(self, short=()):
        self.short, self.calls, self.asked = short, 0, []

    def start(self, images, ids):
        self._call()
        self.asked.append(ids.tolist())
        return images.astype(np.float32) / 255

    def finish(self, started):
        self._call()
        return started

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)

    def _call(self):
        self.calls += 1
        if self.calls in self.short:
            raise MemoryError


def through(source, compute, *, part_size, **settings):
    sink = Kept()
    line = Pipeline(source, sink, compute, part_size=part_size, **settings)
    records = list(line.run(parts_of(len(source), part_size)))
    assert [record["part"] for record in records] == list(range(len(records)))
    assert line.flow.items == line.flow.numbers == 0, "what is held is counted until it is written"
    assert sum(record["ok"] for record in records) == sum(not isinstance(got, ItemError) for got in sink.got.values())
    return sink.got


@pytest.mark.parametrize("most", [50, 200, 10_000])
@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_and_batches_follow_from_the_part(most, seed, monkeypatch):
    for module in (batches, pipeline):
        monkeypatch.setattr(module, "MOST_NUMBERS", most)
    chance = random.Random(seed)
    source, settings = Shapes(chance), {"batch_size": chance.choice([1, 2, 7]), "part_size": chance.choice([1, 3, 8, 40])}
    computes = [Unchanged() for _ in range(2)]
    got = [through(source, compute, decoders=decoders, **settings) for compute, decoders in zip(computes, (1, 3), strict=True)]
    for found in got:
        assert {id for id, encoded in found.items() if isinstance(encoded, ItemError)} == source.bad
        assert all(found[id] == id for id in found.keys() - source.bad) and len(found) == len(source)
    assert computes[0].asked == computes[1].asked


@pytest.mark.parametrize("short", [{1}, {2}, {3}, {1, 2, 3}, {2, 5, 6, 7}], ids=str)
def test_what_did_not_fit_into_memory_is_tried_again_in_halves(short):
    source = Shapes(random.Random(1))
    source.shapes, source.bad = [(1, 2, 2)] * 21, set()
    assert through(source, Unchanged(short), batch_size=8, part_size=21) == {id: id for id in range(21)}


def test_an_image_that_fits_into_no_memory_fails_alone():
    class Small(Unchanged):
        def start(self, images, ids):
            if 3 in ids:
                raise MemoryError
            return super().start(images, ids)

    source = Shapes(random.Random(1))
    source.shapes, source.bad = [(1, 2, 2)] * 9, set()
    got = through(source, Small(), batch_size=4, part_size=9)
    assert str(got.pop(3)) == "does not fit into memory, even alone" and got == {id: id for id in range(9) if id != 3}


def test_a_run_that_is_closed_ends_its_threads():
    source = Shapes(random.Random(3))
    line = Pipeline(source, Kept(), Unchanged(), batch_size=2, part_size=3)
    records = line.run(parts_of(len(source), 3))
    next(records)
    records.close()
    assert line.flow.ended and all(not thread.is_alive() for pool in (line.decoding, line.encoding) for thread in pool.threads)


class Large(Shapes):
    """Images of a thousand numbers each, which take no time to decode."""

    def __init__(self, count):
        self.shapes, self.bad = [(1, 25, 40)] * count, set()


@pytest.mark.parametrize("decoders", [1, 3])
def test_large_images_are_not_decoded_far_ahead(decoders, monkeypatch):
    for module in (batches, pipeline):
        monkeypatch.setattr(module, "MOST_NUMBERS", 4000)
    source, held = Large(60), []

    class Slow(Unchanged):
        def finish(self, started):
            time.sleep(0.002)
            held.append(line.flow.numbers)
            return started

    line = Pipeline(source, Kept(), Slow(), batch_size=2, part_size=30, decoders=decoders)
    assert sum(record["ok"] for record in line.run(parts_of(60, 30))) == 60
    assert max(held) <= 2 * 4000 + 1000 * decoders, "what is decoded and not written is bounded by numbers, not by items"


class Full(Kept):
    """A disk that has room for one part; it is full once `may_fail` says so."""

    def __init__(self, may_fail):
        super().__init__()
        self.may_fail = may_fail

    def write(self, part, outcomes):
        written = super().write(part, outcomes)
        if part.index:
            until(self.may_fail)
            raise OSError("the disk is full")
        return written


def until(is_so):
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def test_a_fault_ends_the_run_at_once_and_parts_that_are_written_are_told():
    class Until(Unchanged):
        def start(self, images, ids):
            if ids[0] == 25:
                until(lambda: line.flow.ended)
            return super().start(images, ids)

    class Seen(Large):
        def decode(self, item):
            seen.add(item.id)
            return super().decode(item)

    seen, compute, found = set(), Until(), []
    line = Pipeline(Seen(400), Full(lambda: 30 in seen), compute, batch_size=1, part_size=10, decoders=2)
    with pytest.raises(OSError, match="the disk is full"):
        found.extend(line.run(parts_of(400, 10)))
    assert compute.asked[-1] <= [25], "more was decoded by then, and is not purified"
    assert [record["part"] for record in found] == [0]


def test_a_part_that_was_written_before_a_fault_is_told(monkeypatch):
    monkeypatch.setattr("purify_engine.data.flow.LOOK_EVERY", 0.02)

    class Signals(Unchanged):
        def start(self, images, ids):
            if ids[0] == 7:
                may_write.set()
            return super().start(images, ids)

    class Waits(Kept):
        def write(self, part, outcomes):
            written = super().write(part, outcomes)
            assert may_write.wait(30)
            time.sleep(0.05)  # in which the purifying thread comes to wait for image 8
            return written

    class Faulty(Large):
        def items(self, part):
            if part.index == 2:
                until(lambda: not line.written.empty())
                raise OSError("the source is gone")
            return super().items(part)

        def decode(self, item):
            if item.id == 8:
                until(lambda: line.flow.ended)
                time.sleep(0.2)  # the purifying thread has seen it by then
            return super().decode(item)

    found, may_write = [], threading.Event()
    line = Pipeline(Faulty(30), Waits(), Signals(), batch_size=1, part_size=5, decoders=2)
    with pytest.raises(OSError, match="the source is gone"):
        found.extend(line.run(parts_of(30, 5)))
    assert [record["part"] for record in found] == [0]
