"""Every write, fsync, rename, mkdir, open and unlink of a run of three parts meets SIGKILL, a full and a broken disk.

After each the run is resumed by the same command. Held against a run without an accident: nothing is lost, duplicated or torn
at any time, and in the end every byte is the same. Accidents while the source is read make an image fail, with a reason: then
the run is resumed with `retry_failed`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import suppress

import pytest

from tests.accidents import Accident, Killed, every_call
from tests.output_trees import damage, identical
from tests.soak.offspring import Parent
from tests.soak.system_calls import met, points, require_strace, traced
from tests.soak.torchless_run import INPUT_OUTPUT, SOME_FAILED, SOURCES, purify

ASKED = 250
ALLOWED = (0, SOME_FAILED, INPUT_OUTPUT, -9)  # 0: what failed did not matter, as the removal of what is gone already


@pytest.fixture(scope="module")
def parent():
    require_strace()
    with Parent() as started:
        yield started


class World:
    """One kind of source, its output, and what the output is without an accident."""

    def __init__(self, kind, parent, root):
        make, name = SOURCES[kind]
        self.parent, self.root = parent, root
        self.source, self.name, self.log = make(root / "in"), name, root / "log"
        (root / "whole").mkdir()
        assert self.run(root / "whole") == 0
        self.whole = self.tree(root / "whole")

    def tree(self, place):
        """The folder that the files of an output at `place` lie in."""
        return place / self.name if "." not in self.name else place

    def run(self, place, **options):
        return self.parent.run("purify", source=self.source, output=place / self.name, **options)

    def after(self, point, **options):
        """(what is wrong once the run met `point` and was resumed, whether it met it)."""
        place = self.root / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        child = self.parent.start("purify", source=self.source, output=place / self.name, **options)
        code = traced(child, self.log, point)
        wrong = damage(self.tree(place), self.whole) + ([] if code in ALLOWED else [f"exit code {code}"])
        if point is None or met(self.log, code, point):
            code = self.run(place, retry_failed=code == SOME_FAILED)
            return wrong + ([f"resumed: exit code {code}"] if code else []) + identical(self.tree(place), self.whole), True
        return wrong, False


@pytest.mark.parametrize("kind", SOURCES)
def test_every_call_meets_every_accident(kind, parent, tmp_path, reached):
    world = World(kind, parent, tmp_path)
    assert world.after(None) == ([], True)
    wrong, count = {}, Counter()
    for point in points(world.log):
        found, happened = world.after(point)
        count[point.accident] += happened
        if found:
            wrong[point] = found
    assert not wrong, f"{len(wrong)} of {count.total()} points: {list(wrong.items())[:5]}"
    reached("crash points", count.total(), asked=ASKED, of="points", case=kind, **count)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_power_fails_at_every_call(kind, tmp_path, reached, monkeypatch):
    """Nothing that no fsync had waited for is there afterwards, whatever the system had written by itself."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the runs without an accident need not wait
    make, name = SOURCES[kind]
    source, whole, place = make(tmp_path / "in"), tmp_path / "whole", tmp_path / "place"
    whole.mkdir()
    assert purify(source, whole / name) == 0
    place.mkdir()
    calls = every_call(place, lambda: purify(source, place / name))
    wrong = {}
    for at in range(1, len(calls) + 1):
        shutil.rmtree(place)
        place.mkdir()
        with suppress(Killed), Accident(place, at, "power") as accident:
            purify(source, place / name)
        trees = (place, whole) if "." in name else (place / name, whole / name)
        found = damage(*trees) if trees[0].exists() else []
        assert accident.happened and purify(source, place / name) == 0
        if found := found + identical(*trees):
            wrong[calls[at - 1]] = found
    assert not wrong, f"{len(wrong)} of {len(calls)}: {list(wrong.items())[:5]}"
    reached("crash points", len(calls), asked=50, of="power failures", case=f"{kind}, power failures")


@pytest.mark.parametrize("sink", ["in place", "recorded first"])
def test_a_careless_sink_is_found_out(sink, parent, tmp_path):
    world = World("folder", parent, tmp_path)
    world.after(None, sink=sink)
    kills = [point for point in points(world.log) if point.accident == "SIGKILL"]
    assert any(world.after(point, sink=sink)[0] for point in kills)
