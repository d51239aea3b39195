"""What a process needs to work on parts of a run: it is pickled, and sent to other processes and machines."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from purify_engine.data.items import Compute, Item, ItemError, Part, Sink, Source
from purify_engine.data.manifest import Record
from purify_engine.data.pipeline import Pipeline, Told


def tell_nothing(event: str, **facts: Any) -> None:
    """Where events go that are not wanted."""


@dataclass(frozen=True)
class Work:
    """A run's source and sink, how its purifier is loaded, and what is pinned."""

    source: Source
    sink: Sink
    load: Callable[[int], Compute]
    """The number of the process (which decides on its GPU, where there are several) -> what purifies."""
    batch_size: int
    part_size: int
    decoders: int | None = None
    threads: int | None = None
    """Of a process's computations; None leaves them as they are."""
    stall_seconds: float = 600.0

    def loaded(self, number: int) -> Compute:
        """The purifier, in this process, with its threads."""
        if self.threads is not None:
            os.environ.update(OMP_NUM_THREADS=str(self.threads), MKL_NUM_THREADS=str(self.threads))  # before torch is imported
        compute = self.load(number)
        if self.threads is not None and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)
        return compute

    def run(
        self, compute: Compute, parts: Iterable[Part], told: Told = tell_nothing, withheld: Mapping[int, str] | None = None
    ) -> Iterator[Record]:
        """Purify `parts`, and yield each one's record. withheld: items that fail unseen, by their ids, with the reasons."""
        source = Withholding(self.source, withheld) if withheld else self.source
        sizes = {name: getattr(self, name) for name in ("batch_size", "part_size", "decoders", "stall_seconds")}
        return Pipeline(source, self.sink, compute, told=told, **sizes).run(parts)

    def try_item(self, compute: Compute, part: Part, id: int) -> None:
        """Purify one item of `part`, and write nothing: to see whether the process survives it."""
        item = next(item for item in self.source.items(part) if item.id == id)
        try:
            images = self.source.decode(item)[np.newaxis]
            purified = compute.finish(compute.start(images, np.array([id], dtype=np.int64)))
            self.sink.encode(item, purified[0].clip(0, 1))
        except ItemError:
            pass  # it fails alone, as it will in its part


def sendable(fault: BaseException) -> BaseException:
    """`fault`, in words where it cannot be pickled."""
    try:
        return pickle.loads(pickle.dumps(fault))
    except Exception:  # of classes that want other arguments than they pass on
        return RuntimeError(f"{type(fault).__name__}: {fault}")


class Withholding:
    """A source in which some items fail, without a look at them: they have ended the processes that worked on them."""

    def __init__(self, source: Source, withheld: Mapping[int, str]) -> None:
        self.source, self.withheld = source, withheld

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def items(self, part: Part) -> Iterator[Item]:
        """The part's items; none is read behind the last one that is wanted, since reading itself may have ended the process."""
        items, wanted = self.source.items(part), [id for id in part.ids if id not in self.withheld]
        for id in part.ids:
            item = next(items) if wanted and id <= wanted[-1] else None
            if id in self.withheld:
                yield Item(id, self.source.name(id), ItemError(self.withheld[id]))
            elif item is not None:
                yield item
