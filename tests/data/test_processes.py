"""A run in several processes: the same bytes as in one, and no death costs more than the image that caused it."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from purify_engine.config import OfflineConfig
from purify_engine.data import on_ray, open_sink, open_source
from purify_engine.data.items import ImageShape, Part
from purify_engine.data.processes import run_in_processes
from purify_engine.data.run import Stop, run
from purify_engine.data.work import Work
from tests.data.deadly import DEADLY, ONCE, Full, Loaded, Washed, image_folder

ROOT = Path(__file__).parents[2]
CONFIG = OfflineConfig(part_size=4, batch_size=3, decoders=1)


def purified(source, output, compute, workers=0, told=lambda event, **facts: None):
    """A run in this process, or in `workers` others."""
    images = open_source(source, ImageShape(channels=3))
    sink = open_sink(images, output)
    work = Work(images, sink, Loaded(compute), CONFIG.batch_size, CONFIG.part_size, CONFIG.decoders)
    engine = (lambda parts: run_in_processes(work, parts, workers, told=told)) if workers else None
    return run(compute, images, sink, config=CONFIG, engine=engine)


def images_in(output):
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in sorted(output.rglob("*.png"))}


def test_a_death_costs_the_image_that_ends_every_process_and_the_bytes_are_those_of_one_process(tmp_path):
    source = image_folder(tmp_path / "in", 26, {9: ONCE, 21: DEADLY})
    expected = purified(source, tmp_path / "one", Washed())
    assert (expected.ok, expected.failed) == (26, ())
    events = []
    got = purified(source, tmp_path / "many", Washed(tmp_path / "died"), 2, lambda event, **facts: events.append((event, facts)))
    assert [vars(failure) for failure in got.failed] == [
        {"id": 21, "name": "b/021.png", "reason": "ended its process (SIGSEGV)"}
    ]
    assert (got.ok, got.left) == (25, 0) and (tmp_path / "died").exists()
    one, many = images_in(tmp_path / "one"), images_in(tmp_path / "many")
    assert many == {name: digest for name, digest in one.items() if name != "b/021.png"}
    died = [facts for event, facts in events if event == "worker_died"]
    redone = [facts["part"] for event, facts in events if event == "redo"]
    assert "(SIGKILL)" in {facts["how"] for facts in died} <= {"(SIGKILL)", "(SIGSEGV)"}  # one worker may have had both parts
    assert {2, 5} <= set(redone) and sorted(redone) == sorted(part for facts in died for part in facts["parts"])  # each once
    assert sum(event == "item" for event, _ in events) >= 26 - 4 * len(redone)  # what the workers told of the others
    assert not multiprocessing.active_children()


@dataclass(frozen=True)
class DiesAtOnce:
    def __call__(self, number):
        signal.raise_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    "load, kind, said",
    [
        (Loaded(Full()), OSError, "No space left on device"),
        (DiesAtOnce(), RuntimeError, r"worker processes end before their first part \(SIGKILL\)"),
    ],
    ids=["a fault", "a death before the first part"],
)
def test_what_ends_a_worker_ends_the_run_and_no_process_goes_on(tmp_path, load, kind, said):
    images = open_source(image_folder(tmp_path / "in", 8), ImageShape(channels=3))
    sink = open_sink(images, tmp_path / "out")
    sink.prepare()
    work = Work(images, sink, load, 3, 4, 1)
    with pytest.raises(kind, match=said) as raised:
        list(run_in_processes(work, images.parts(4), 1))
    assert kind is not OSError or (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/somewhere/a.png")
    assert not multiprocessing.active_children()


RUN = """
import sys
from functools import partial
from pathlib import Path
from purify_engine.data import open_sink, open_source
from purify_engine.data.items import ImageShape
from purify_engine.data.processes import run_in_processes
from purify_engine.data.work import Work
from tests.data.deadly import Loaded, Slow
images = open_source(Path(sys.argv[1]), ImageShape(channels=3))
sink = open_sink(images, Path(sys.argv[2]))
sink.prepare()
list(run_in_processes(Work(images, sink, Loaded(Slow()), 3, 4, 1), images.parts(4), 2))
"""


@pytest.mark.parametrize(
    "ended_by", [pytest.param(signal.SIGKILL, id="a kill"), pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.slow)]
)
def test_workers_end_with_the_process_that_started_them(tmp_path, ended_by):
    source = image_folder(tmp_path / "in", 60)
    arguments = [sys.executable, "-c", RUN, source, tmp_path / "out"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, cwd=ROOT, start_new_session=True, **streams) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
        (os.killpg if ended_by == signal.SIGINT else os.kill)(process.pid, ended_by)  # a terminal tells the whole group
        said, complaints = process.communicate(timeout=30)  # ends with the last process that holds the pipes
    assert said == "" and process.returncode == -ended_by
    assert complaints.count("Traceback") == (ended_by == signal.SIGINT)  # of this process alone


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_ends_its_parts_and_is_resumed(tmp_path):
    images = open_source(image_folder(tmp_path / "in", 120), ImageShape(channels=3))
    sink, stop = open_sink(images, tmp_path / "out"), Stop()

    def told(event, **facts):
        stop.requested = stop.requested or event == "item"

    work = Work(images, sink, Loaded(Washed(pause=0.1)), 3, 4, 1)
    by_two = partial(run_in_processes, work, workers=2, told=told, stopped=lambda: stop.requested)
    stopped = run(Washed(), images, sink, config=CONFIG, engine=by_two, stop=stop)
    assert 0 < stopped.ok < 120 and stopped.left == 120 - stopped.ok
    assert len(images_in(tmp_path / "out")) == stopped.ok  # no part was begun and left
    assert run(Washed(), images, sink, config=CONFIG).left == 0


class Peculiar(Exception):  # noqa: N818 - as libraries have them
    """A fault that pickles and is not read again: it wants two arguments and passes on one."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


def test_a_fault_of_an_actor_reaches_the_run_whatever_it_is_made_of():
    class Fails:
        def run(self, compute, parts):
            raise Peculiar("a fault", "home")
            yield

    actor = on_ray.Actor.__new__(on_ray.Actor)
    actor.work, actor.compute, actor.desk = Fails(), None, None
    told = actor({"part": [json.dumps(vars(Part(0, 0, 1)))]})
    assert told["record"] == [""] and str(pickle.loads(told["fault"][0])) == "Peculiar: a fault at home"
