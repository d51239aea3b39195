"""A run in several processes of this machine: this one hands out the parts and gets their records, and alone commits them.

A worker asks for a part whenever its pipeline has room for one, so that it reads ahead, and the fastest gets the most. What it
says comes over a pipe of its own; a pipe that ends before the worker said so means that the worker died, and its parts are done
again when all others are done (isolation.py).

Ctrl-C reaches every process of a terminal: workers leave it to this one, which lets them end their parts. They end with this
process, however it ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from purify_engine.data.isolation import ProcessEndedError, ended_by, redone
from purify_engine.data.items import Part
from purify_engine.data.manifest import Record
from purify_engine.data.pipeline import Told
from purify_engine.data.work import Work, sendable, tell_nothing

SAY_EVERY = 0.5  # seconds between two messages of what merely tells how a worker gets on
STARTS = 3  # in vain, one after another, that end a run
PATIENCE = 10.0  # seconds that a process has to end in
Target = Callable[..., None]


def run_in_processes(
    work: Work, parts: Iterable[Part], workers: int, *, told: Told = tell_nothing, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Record]:
    """Do `parts` in `workers` processes; each record once its part is on the disk, in no order.

    `parts` may end early, where a run is asked to stop: what was begun is finished. A fault of a worker, such as a full disk, is
    raised here, and so is whatever ends the caller; either way no worker goes on. RuntimeError where three
    workers in a row die before their first part.
    """
    pool = Pool(work, parts, told)
    try:
        yield from pool.run(workers)
        for part in pool.suspects:
            if not stopped():
                told("redo", part=part.index)
                yield redone(part, pool)
    finally:
        pool.end()


class Worker:
    """A process, what it works on, and the pipe to it."""

    def __init__(self, target: Target, *arguments: Any) -> None:
        here, there = get_context("spawn").Pipe()
        self.pipe: Connection = here
        self.process = get_context("spawn").Process(target=_in_worker, args=(there, target, *arguments), daemon=True)
        self.parts: dict[int, Part] = {}  # handed out, and without a record
        self.has_asked = False
        with _without_interrupts():
            self.process.start()
        there.close()

    def ended(self) -> int | None:
        """Wait for its end, and make it end where that takes long: its exit code."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        return self.process.exitcode


class Pool:
    """The workers of a run; also where one thing is tried at a time (`Isolation`)."""

    def __init__(self, work: Work, parts: Iterable[Part], told: Told) -> None:
        self.work, self.parts, self.told = work, iter(parts), told
        self.suspects: list[Part] = []  # whose process died
        self.living: list[Worker] = []
        self.started = 0
        self.in_vain = 0  # workers in a row that died before their first part
        self.alone: Worker | None = None

    def run(self, workers: int) -> Iterator[Record]:
        """All parts but the suspects."""
        first = list(islice(self.parts, workers))
        self.parts = chain(first, self.parts)
        for _ in first:
            self._start()
        while self.living:
            for pipe in connection.wait([worker.pipe for worker in self.living]):
                yield from self._hear(next(worker for worker in self.living if worker.pipe is pipe))

    def _start(self) -> None:
        self.living.append(Worker(_pooled, self.work, self.started))
        self.started += 1

    def _hear(self, worker: Worker) -> Iterator[Record]:
        try:
            said, content = worker.pipe.recv()
        except (EOFError, OSError):  # the pipe's end, between two messages or within one
            self._bury(worker)
            return
        if said == "next":
            self._hand_out(worker)
        elif said == "record":
            del worker.parts[content["part"]]
            self.in_vain = 0
            yield content
        elif said == "told":
            for event, facts in content:
                self.told(event, **facts)
        elif said == "fault":
            _raise(*content)
        else:  # it has ended, as it should
            self.living.remove(worker)
            worker.ended()

    def _hand_out(self, worker: Worker) -> None:
        worker.has_asked = True
        part = next(self.parts, None)
        if part is not None:
            worker.parts[part.index] = part
        _tell(worker.pipe, part)

    def _bury(self, worker: Worker) -> None:
        self.living.remove(worker)
        how = ended_by(worker.ended()).removeprefix("ended its process ")
        self.in_vain += not worker.has_asked
        if self.in_vain == STARTS:
            raise RuntimeError(f"worker processes end before their first part {how}: is there memory for all workers?")
        self.told("worker_died", how=how, parts=sorted(worker.parts))
        self.suspects += worker.parts.values()
        left = next(self.parts, None)
        if left is not None:
            self.parts = chain([left], self.parts)
            self._start()

    def whole(self, part: Part, withheld: Mapping[int, str]) -> Record:
        """`Isolation.whole`."""
        record: Record = self._ask(part, withheld)
        return record

    def single(self, part: Part, id: int) -> None:
        """`Isolation.single`."""
        self._ask(part, id)

    def _ask(self, *request: Any) -> Any:
        alone = self.alone = self.alone or Worker(_isolated, self.work, 0)
        _tell(alone.pipe, request)
        while True:
            try:
                said, content = alone.pipe.recv()
            except (EOFError, OSError):
                self.alone = None
                raise ProcessEndedError(ended_by(alone.ended())) from None
            if said == "fault":
                _raise(*content)
            if said == "done":
                return content

    def end(self) -> None:
        """No worker goes on."""
        workers = [*self.living, *([self.alone] if self.alone else [])]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.ended()


def _tell(pipe: Connection, content: Any) -> None:
    with suppress(OSError):  # it has died: what is read from it next says so
        pipe.send(content)


def _raise(fault: BaseException, lines: str) -> NoReturn:
    raise fault from RuntimeError(f"in a worker process:\n{lines}")


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started here gets no Ctrl-C; one that comes meanwhile waits for the end of the block."""
    resource_tracker.ensure_running()  # its own start would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the workers


class Talk:
    """A worker's end of the pipe, which its threads share."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.turn = pipe, threading.Lock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.said = time.monotonic()

    def told(self, event: str, **facts: Any) -> None:
        """Pass on an event, with others that come soon after."""
        with self.turn:
            self.events.append((event, facts))
            if time.monotonic() - self.said > SAY_EVERY:
                self._flush()

    def say(self, what: str, content: Any = None) -> None:
        with self.turn:
            self._flush()
            self.pipe.send((what, content))

    def _flush(self) -> None:
        if self.events:
            self.pipe.send(("told", self.events))
        self.events, self.said = [], time.monotonic()

    def parts(self) -> Iterator[Part]:
        """What is handed out to this worker: asked for one by one, by the thread that reads."""
        while True:
            self.say("next")
            part = self.pipe.recv()
            if part is None:
                return
            yield part


def _in_worker(pipe: Connection, target: Target, work: Work, number: int) -> None:
    """Run `target`, tell a fault, and end with the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    talk = Talk(pipe)
    try:
        target(talk, work, number)
    except BaseException as fault:
        talk.say("fault", (sendable(fault), "".join(traceback.format_exception(fault))))


def _pooled(talk: Talk, work: Work, number: int) -> None:
    compute = work.loaded(number)
    for record in work.run(compute, talk.parts(), talk.told):
        talk.say("record", record)
    talk.say("end")


def _isolated(talk: Talk, work: Work, number: int) -> None:
    """Parts, or single items of them, as they are asked for, until the pipe is closed."""
    compute = work.loaded(number)
    while True:
        try:
            part, asked = talk.pipe.recv()
        except EOFError:
            return
        if isinstance(asked, int):
            work.try_item(compute, part, asked)
            talk.say("done")
        else:
            (record,) = work.run(compute, [part], withheld=asked)
            talk.say("done", record)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
