"""Processes that share the cells of an evaluation, and end with it: on a signal within seconds, and where it is killed, too."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

PATIENCE = 5.0  # seconds that a worker has to end in before it is killed

Result = TypeVar("Result")


def shared(work: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """`work(*task)` of every task, as each is done; by so many processes of one thread each, or by this one where it is 1.

    Small images scale over processes, not over the threads of one operation. A task is asked for when there is a worker for it.
    Where the caller stops, by a signal or by itself, the workers are stopped, too: what they had not finished is lost.
    """
    if workers == 1:
        yield from (work(*task) for task in tasks)
        return
    tasks, others = iter(tasks), set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=torch.multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        running = {pool.submit(work, *task) for task in itertools.islice(tasks, workers)}
        while running:
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
            running |= {pool.submit(work, *task) for task in itertools.islice(tasks, workers - len(running))}
        pool.shutdown()
    finally:
        _stop([child for child in multiprocessing.active_children() if child not in others])
        pool.shutdown(cancel_futures=True)  # its thread waits for the same processes, and alone may learn that they ended


def _begin() -> None:
    """In each worker: one thread; Ctrl-C, which a terminal sends to all processes, is the parent's to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _stop(workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(PATIENCE)
        if worker.is_alive():
            worker.kill()
