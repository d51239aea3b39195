"""Runs by several processes and in shares: the bytes of one process, also where processes are killed."""

from __future__ import annotations

import multiprocessing
import random

import pytest

from purify_engine.config import OfflineConfig
from purify_engine.data import open_sink, open_source
from purify_engine.data.items import ImageShape
from purify_engine.data.processes import run_in_processes
from purify_engine.data.run import run
from purify_engine.data.work import Work
from tests.data.deadly import Loaded, Washed, image_folder
from tests.data.test_shares_of_a_run import tree

SIZES = {"part_size": 4, "batch_size": 3, "decoders": 1, "threads": 1}
KILLS = 30


def purified(source, output, compute=None, killer=None, **how):
    images = open_source(source, ImageShape(channels=3))
    sink, compute = open_sink(images, output), compute or Washed()
    engine = None
    if killer is not None:
        work = Work(images, sink, Loaded(compute), 3, 4, 1, threads=1)

        def engine(parts):
            return run_in_processes(work, parts, 3, told=killer)

    return run(compute, images, sink, config=OfflineConfig(**SIZES, **how), engine=engine)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(202 images in 51 parts, what one process makes of them)."""
    root = tmp_path_factory.mktemp("many")
    source = image_folder(root / "in", 202)
    purified(source, root / "one")
    return source, tree(root / "one")


def test_the_same_bytes_by_any_number_of_workers_and_shares(world, tmp_path, reached):
    source, whole = world
    for workers in (1, 2, 4):
        purified(source, tmp_path / f"{workers}-workers", workers=workers)
        assert tree(tmp_path / f"{workers}-workers") == whole
    for count in (2, 3, 4, 7, 60):
        for index in random.Random(count).sample(range(count), count):
            purified(source, tmp_path / f"{count}-shares", shard_index=index, num_shards=count)
        assert tree(tmp_path / f"{count}-shares") == whole
    reached("determinism", 8, asked=8, of="runs", case="workers and shares")


class Killer:
    """Kills one of the run's processes at random whenever some images are done, as long as parts are handed out."""

    def __init__(self, seed):
        self.random, self.kills, self.redone = random.Random(seed), 0, []

    def __call__(self, event, **facts):
        self.kills += event == "worker_died"
        if event == "redo":  # from here on a kill would be the part's second, and cost an image
            self.redone.append(facts["part"])
        elif event == "item" and not self.redone and self.random.random() < 0.05:
            self.random.choice(multiprocessing.active_children()).kill()


def test_no_kill_of_a_worker_loses_or_changes_an_image(world, tmp_path, reached):
    source, whole = world
    kills = 0
    for seed in range(1000):
        killer = Killer(seed)
        summary = purified(source, tmp_path / str(seed), Washed(pause=0.02), killer)
        assert (summary.ok, summary.failed, summary.left) == (202, (), 0)
        assert tree(tmp_path / str(seed)) == whole
        assert not multiprocessing.active_children() and len(set(killer.redone)) == len(killer.redone)
        kills += killer.kills
        if kills >= KILLS:
            break
    reached("lost workers", kills, asked=KILLS, of="kills")
