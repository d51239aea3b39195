"""A run that stands still ends its process and says where it stood; a decoder that hangs costs its image."""

import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from purify_engine.data import ImageShape, Item, pipeline, watchdog
from purify_engine.data.items import ItemError, parts_of
from purify_engine.data.pipeline import Pipeline
from purify_engine.data.watchdog import Watchdog


class Source:
    kind, root, shape, classes, labels, skipped = "few", Path("few"), ImageShape(1), None, None, ()

    def __init__(self, hanging=()):
        self.hanging, self.let_go = hanging, threading.Event()

    def __len__(self):
        return 8

    def items(self, part):
        return (Item(id, str(id), b"") for id in part.ids)

    def decode(self, item):
        if item.id in self.hanging:
            self.let_go.wait(30)
        return np.full((1, 2, 2), item.id, np.uint8)


class Sink:
    def encode(self, item, image):
        return b""

    def write(self, part, outcomes):
        return [], [(item, encoded) for item, encoded in outcomes if isinstance(encoded, ItemError)]


class Unchanged:
    def start(self, images, ids):
        return images

    def finish(self, started):
        return started.astype(np.float32) / 255

    def is_out_of_memory(self, error):
        return False


def test_decoders_that_hang_cost_their_images_and_no_more(monkeypatch):
    monkeypatch.setattr(pipeline, "DECODES_WITHIN", 0.01)
    monkeypatch.setattr("purify_engine.data.flow.LOOK_EVERY", 0.02)
    source = Source(hanging={1, 2, 5})  # more than there are threads
    line = Pipeline(source, Sink(), Unchanged(), batch_size=2, part_size=4, decoders=2)
    records = list(line.run(parts_of(8, 4)))
    assert [(id, reason) for record in records for id, _, reason in record["failed"]] == [
        (id, "takes longer than 0.01 s to decode") for id in (1, 2, 5)
    ]
    assert sum(record["ok"] for record in records) == 5
    source.let_go.set()
    line.decoding.hung = 0
    line.decoding.end()
    assert line.flow.items == line.flow.numbers == 0, "what came too late is held by no one"


@pytest.fixture
def stalled():
    """Watches what never moves, until it ends the process; what it told."""
    told, ended = {}, threading.Event()

    def watch(seconds, prepare=lambda dog: None):
        dog = Watchdog(seconds, lambda: 0.0, lambda event, **facts: told.update({event: facts}), ended.set)
        prepare(dog)
        with dog:
            return told if ended.wait(seconds * 6) else None

    return watch


def test_a_run_that_stands_still_ends_and_says_where_each_thread_is(stalled, capfd):
    told = stalled(0.1)["stalled"]
    line = json.loads(capfd.readouterr().err)
    assert line == {"event": "stalled", **told} and told["seconds"] >= 0.1
    assert re.search(r"threading.py:\d+ wait < .*test_watchdog.py:\d+ watch", told["threads"]["MainThread"])


def test_what_cannot_be_told_ends_all_the_same(stalled, monkeypatch, capfd):
    monkeypatch.setattr(watchdog, "LAST_WORDS", 0.01)
    assert stalled(0.05, lambda dog: setattr(dog, "told", lambda event, **facts: time.sleep(0.5))) == {}
    assert "stalled" in capfd.readouterr().err


def test_a_batch_in_work_has_the_time_that_batches_take(stalled):
    dog = Watchdog(600, lambda: 0.0, print)
    assert dog.patience() == 600
    with dog.purifying(64):
        assert dog.patience() == 64 * 600, "nothing is known of the first"
    assert dog.patience() == 600 and dog.slowest < 1
    dog.slowest = 30.0
    with dog.purifying(64):
        assert dog.patience() == 64 * 300
    assert stalled(0.05, lambda dog: setattr(dog, "batch", (1000, time.monotonic()))) is None


def test_a_run_may_stand_still_for_ever_where_it_is_asked_to(capfd):
    with Watchdog(float("inf"), lambda: 0.0, print) as dog:
        dog.thread.join(0.05)
        assert dog.thread.is_alive()
    assert not capfd.readouterr().err


def test_no_time_is_too_long_for_pythons_own_watchdog(monkeypatch):
    monkeypatch.setattr(watchdog, "LONGEST", 0.01)
    with Watchdog(1e300, lambda: 0.0, print) as dog:
        dog.thread.join(0.1)
        assert dog.thread.is_alive()
