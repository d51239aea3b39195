"""A run on Ray: `map_batches` of Ray Data over the parts, with one actor a GPU, or as many actors on CPUs as are asked for.

Each actor has a purifier of its own and writes through the run's sink, so all machines must see source and output under
the same paths; what comes back are the records, which this process commits. Where an actor dies, Ray gives its parts to
another. A part is begun twice at most that way, and what has no record in the end is tried in isolation (isolation.py).
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any

from purify_engine.data.isolation import ProcessEndedError, redone
from purify_engine.data.items import Compute, Part
from purify_engine.data.manifest import Record
from purify_engine.data.pipeline import Told
from purify_engine.data.work import Work, sendable, tell_nothing
from purify_engine.foreign import imported

PARTS_AHEAD = 4  # that an actor gets at once at most: it reads the next one while it purifies the last
OBJECT_STORE = 100 * 2**20  # bytes of shared memory: records alone go through it
TIMES = 2  # that a part is begun by the actors
LOOK_EVERY = 0.5  # seconds between two looks at whether the run is asked to stop


def run_on_ray(
    work: Work,
    parts: Iterable[Part],
    workers: int,
    *,
    address: str | None = None,
    gpus: int = 0,
    told: Told = tell_nothing,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Do `parts` by `workers` actors; each record once its part is on the disk, in no order.

    address: of a Ray cluster ("auto": the one that this machine is part of); None starts Ray on this machine, and ends it.
    gpus: of each actor. Where `stopped` says so, actors end the part that they work on and begin no other.
    ImportError where Ray is not installed; a fault of an actor, such as a full disk, is raised here.
    """
    left = {part.index: part for part in parts}
    if not left:
        return
    with _connected(address, workers * (work.threads or 1)) as ray:
        needs = {"num_gpus": gpus} if gpus else {"num_cpus": work.threads or 1}
        desk, shared = ray.remote(num_cpus=0)(Desk).remote(), ray.put(work)
        for record in _pool(ray, shared, desk, list(left.values()), workers, needs, stopped):
            del left[record["part"]]
            _tell_items(told, record)
            yield record
        isolation = RayIsolation(ray, shared, needs)
        for part in left.values():
            if not stopped():
                told("redo", part=part.index)
                yield redone(part, isolation)


def _pool(
    ray: Any, shared: Any, desk: Any, parts: list[Part], workers: int, needs: dict[str, Any], stopped: Callable[[], bool]
) -> Iterator[Record]:
    """The records of the parts that the actors got done."""
    at_once = max(1, min(PARTS_AHEAD, len(parts) // workers))
    blocks = -(-len(parts) // at_once)
    dataset = ray.data.from_items([{"part": json.dumps(vars(part))} for part in parts], override_num_blocks=blocks).map_batches(
        Actor,
        fn_constructor_args=([shared], desk),
        batch_size=at_once,
        compute=ray.data.ActorPoolStrategy(size=min(workers, blocks)),
        **needs,
    )
    with _passing_on(stopped, desk):
        for row in dataset.iter_rows():
            if row["fault"]:
                raise pickle.loads(row["fault"])
            yield json.loads(row["record"])


class Actor:
    """Purifies the parts that it is given, as a callable class of Ray Data."""

    def __init__(self, shared: list[Any], desk: Any) -> None:
        self.ray, self.desk = importlib.import_module("ray"), desk
        self.work: Work = self.ray.get(shared[0])
        self.compute = self.work.loaded(0)  # Ray shows an actor its own GPUs alone

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        parts = [Part(**json.loads(part)) for part in batch["part"]]
        said, fault = list[str](), b""
        try:
            said += [json.dumps(record) for record in self.work.run(self.compute, self._wanted(parts))]
        except Exception as raised:  # told as data: what a task raises, Ray Data takes for a block that may be left out
            fault = pickle.dumps(sendable(raised))
        return {"record": [*said, ""] if fault else said, "fault": [b""] * len(said) + ([fault] if fault else [])}

    def _wanted(self, parts: list[Part]) -> Iterator[Part]:
        return (part for part in parts if self.ray.get(self.desk.may_begin.remote(part.index)))


class Desk:
    """Whom actors ask before they begin a part."""

    def __init__(self) -> None:
        self.begun, self.is_closed = Counter[int](), False

    def may_begin(self, part: int) -> bool:
        self.begun[part] += 1
        return not self.is_closed and self.begun[part] <= TIMES

    def close(self) -> None:
        """The run is asked to stop."""
        self.is_closed = True


class RayIsolation:
    """`Isolation` in tasks that Ray does not try again."""

    def __init__(self, ray: Any, shared: Any, needs: dict[str, Any]) -> None:
        self.ray, self.shared, self.how = ray, shared, {**needs, "max_retries": 0}

    def whole(self, part: Part, withheld: Mapping[int, str]) -> Record:
        record: Record = self._get(_whole, part, dict(withheld))
        return record

    def single(self, part: Part, id: int) -> None:
        self._get(_single, part, id)

    def _get(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self.ray.get(self.ray.remote(function).options(**self.how).remote([self.shared], *arguments))
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError) as died:
            raise ProcessEndedError(f"ended its process ({type(died).__name__})") from died


def _whole(shared: list[Any], part: Part, withheld: dict[int, str]) -> Record:
    work, compute = _loaded(shared[0])
    (record,) = work.run(compute, [part], withheld=withheld)
    return record


def _single(shared: list[Any], part: Part, id: int) -> None:
    work, compute = _loaded(shared[0])
    work.try_item(compute, part, id)


@cache
def _loaded(shared: Any) -> tuple[Work, Compute]:
    """Once a process of Ray's."""
    work: Work = importlib.import_module("ray").get(shared)
    return work, work.loaded(0)


@contextmanager
def _connected(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, quietly: no statistics sent, no dashboard, and no log of its own on stderr."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ writes errors to stderr that it mends itself
    imported("ray.data", "Ray", "ray")
    ray = importlib.import_module("ray")
    is_ours = not ray.is_initialized()
    with redirect_stdout(Muted(sys.stdout)) as muted:
        if is_ours:
            here = {"num_cpus": max(cpus, os.cpu_count() or 1), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else here))
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # what has no record is tried again
        try:
            yield ray
        finally:
            muted.is_silent = True
            if is_ours:
                ray.shutdown()


class Muted:
    """Standard output without what Ray's threads print there, whatever its settings say, when a process dies."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.is_silent = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        is_rays = threading.current_thread().name.startswith("ray_")
        return len(text) if self.is_silent or is_rays else self.stream.write(text)


@contextmanager
def _passing_on(stopped: Callable[[], bool], desk: Any) -> Iterator[None]:
    """While the block runs, `desk` is closed once `stopped` says so."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            if stopped():
                desk.close.remote()
                return

    looking = threading.Thread(target=look, name="stop", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def _tell_items(told: Told, record: Record) -> None:
    for place in range(record["count"]):
        told("item", ok=place < record["ok"])
