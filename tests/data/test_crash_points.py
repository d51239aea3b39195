"""A run that meets an accident at one call, and its resumed run: nothing lost, duplicated or torn, and the same bytes in the end.

Some of the calls, in this process; `tests/soak/test_crash_points.py` takes every call, with the writes among them, by strace.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.accidents import KINDS, Accident, Killed, every_call
from tests.output_trees import damage, identical
from tests.soak.torchless_run import make_folder, make_shards, purify


@pytest.fixture(autouse=True, scope="module")
def _disk():
    """Runs without an accident need not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(a source of three parts, the output of a run without an accident)."""
    root = tmp_path_factory.mktemp("crash")
    source = make_folder(root / "in", count=6, classes=2, side=4)
    run(source, root / "whole")
    return source, root / "whole"


def run(source, output, **options):
    return purify(str(source), str(output), part_size=2, batch_size=2, decoders=1, **options)


def after(source, whole, output, accident, **options):
    """What is wrong once the run met `accident`, and once it was resumed."""
    try:
        with accident:
            code = run(source, output, **options)
            harmless = accident.calls[-1][1].endswith(".lock")  # a lock that cannot be removed holds no other run off
            assert code == 5 or harmless, f"the accident at {accident.calls[-1]} was not noticed"
    except Killed:
        pass
    assert accident.happened
    wrong = damage(output, whole)
    assert run(source, output) == 0
    return wrong + identical(output, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_accident_at_any_call_the_output_is_that_of_a_run_without_one(kind, world, tmp_path):
    source, whole = world
    output = tmp_path / "clean"
    output.mkdir()
    calls = every_call(output, lambda: run(source, output))
    chosen = range(1 + KINDS.index(kind), len(calls) + 1, len(calls) // 10)
    for at in chosen:
        shutil.rmtree(output)
        output.mkdir()
        assert not after(source, whole, output, Accident(output, at, kind)), f"{kind} at call {at}, {calls[at - 1]}"
    assert len(chosen) >= 10


@pytest.mark.parametrize("kind", ["killed", "power"])
@pytest.mark.parametrize("part", [0, 2], ids=["the first part", "the last part, the source long read to its end"])
def test_between_a_parts_files_and_its_record(part, kind, world, tmp_path):
    source, whole = world
    output = tmp_path / "clean"
    output.mkdir()
    calls = every_call(output, lambda: run(source, output))
    shutil.rmtree(output)
    output.mkdir()
    appended = [place for place, call in enumerate(calls, 1) if call[0] == "fsync" and call[1].endswith("manifest.jsonl")]
    assert not after(source, whole, output, Accident(output, appended[part], kind))


@pytest.mark.parametrize("sink, kind", [("in place", "killed"), ("without fsync", "power"), ("recorded first", "killed")])
def test_a_careless_sink_is_found_out(sink, kind, world, tmp_path):
    source, whole = world
    output = tmp_path / "clean"
    output.mkdir()
    calls = every_call(output, lambda: run(source, output, sink=sink))
    assert not identical(output, whole), "without an accident it does as well as any"
    assert any(found_out(source, whole, output, Accident(output, at, kind), sink) for at in range(len(calls), 0, -3))


def found_out(source, whole, output, accident, sink):
    shutil.rmtree(output)
    output.mkdir()
    return after(source, whole, output, accident, sink=sink)


@pytest.mark.parametrize("make, called", [(make_folder, "a folder"), (make_shards, "shards")])
def test_a_source_that_cannot_be_listed_for_now_is_not_taken_for_another_one(make, called, tmp_path, monkeypatch):
    source, scandir = make(tmp_path / "in"), os.scandir
    output = tmp_path / "clean"

    def failing(path):
        if Path(os.fsdecode(path)).name == failing.at:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    for failing.at in ("in", "class1") if called == "a folder" else ("in",):
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", failing)
            assert run(source, output) == 5 and not output.exists()
    assert run(source, output) == 0
