"""Parts through a purifier: reading, decoding, purifying, encoding and writing overlap, within bounded memory.

One thread reads, a pool decodes, the caller's thread purifies, another pool encodes, one thread writes. What becomes of a part
follows from the part alone: its good images are grouped by shape and batched in their order, whatever the threads do.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from purify_engine.data.batches import MOST_NUMBERS, Batcher, Held, stacked
from purify_engine.data.flow import Ended, Flow, HungError, Line, Pool
from purify_engine.data.items import Compute, Item, ItemError, Outcome, Part, Sink, Source
from purify_engine.data.manifest import Record
from purify_engine.data.pixels import quiet
from purify_engine.data.watchdog import Watchdog

MOST_DECODERS = 16
DECODES_WITHIN = 60.0  # seconds, a hundred times what the largest image takes
Told = Callable[..., None]  # told("item", ok=True): from the writing thread; told("out_of_memory", ...): from the purifying one


class Finished(NamedTuple):
    """What became of one item, for the writing thread."""

    encoded: Any  # or ItemError
    size: str = ""  # "WIDTHxHEIGHT"
    numbers: int = 0  # that it held until now


class PartInWork:
    """A part between the reading of its first item and its record."""

    def __init__(self, part: Part, flow: Flow) -> None:
        self.part = part
        self.line: Line[tuple[Item, Future[Finished]]] = Line(flow)
        self.sizes: dict[int, str] = {}  # of the images that are well so far, by id


class Pipeline:
    """`for record in Pipeline(...).run(parts)`: each record once its part is on the disk, for the manifest."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        compute: Compute,
        *,
        batch_size: int,
        part_size: int,
        decoders: int | None = None,
        stall_seconds: float = 600.0,
        told: Told = lambda event, **facts: None,
    ) -> None:
        self.source, self.sink, self.compute, self.told = source, sink, compute, told
        self.batch_size = batch_size
        # A part waits for its last item at most, and what waits within one for others of its shape is MOST_NUMBERS at most.
        self.flow = Flow(most_items=2 * part_size + batch_size, most_numbers=2 * MOST_NUMBERS)
        threads = decoders or min(MOST_DECODERS, os.cpu_count() or 1)
        self.decoding, self.encoding = Pool(threads, "decode", self.flow.admit), Pool(threads, "encode")
        self.watchdog = Watchdog(stall_seconds, lambda: self.flow.moved, told)
        self.read: Line[tuple[PartInWork, Item | None, Future[np.ndarray]]] = Line(self.flow)  # None: the part has ended
        self.to_write: Line[PartInWork] = Line(self.flow)
        self.written: SimpleQueue[Record] = SimpleQueue()
        self.started: tuple[list[Held], Any] | None = None  # the batch that is being purified

    def run(self, parts: Iterable[Part]) -> Iterator[Record]:
        """Work on `parts`. Once only; closing the generator, or a fault in one thread, ends all of them."""
        with quiet(), self.watchdog:
            yield from self._run(parts)
        yield from self._records()  # of parts that are on the disk, though there is a fault
        if self.flow.fault is not None:
            raise self.flow.fault

    def _run(self, parts: Iterable[Part]) -> Iterator[Record]:
        jobs = {"read": lambda: self._read(parts), "write": self._write}
        threads = [threading.Thread(target=self._guarded, args=(job,), name=name, daemon=True) for name, job in jobs.items()]
        for thread in threads:
            thread.start()
        try:
            for _ in self._purify():
                yield from self._records()
            threads[-1].join()
            yield from self._records()
        except Ended:
            pass
        finally:
            self.flow.end()
            for thread in threads:
                thread.join()
            self.decoding.end()
            self.encoding.end()

    def _records(self) -> Iterator[Record]:
        while not self.written.empty():
            yield self.written.get()

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Ended:
            pass
        except BaseException as fault:
            self.flow.end(fault)

    def _read(self, parts: Iterable[Part]) -> None:
        for part in parts:
            work = PartInWork(part, self.flow)
            self.to_write.put(work)
            for item in self.source.items(part):
                self.flow.enter()
                self.read.put((work, item, self.decoding.submit(self._decode, item)))
            self.read.put((work, None, Future()))
        self.read.close()
        self.to_write.close()

    def _decode(self, item: Item) -> np.ndarray:
        image = self.source.decode(item)
        self.flow.grow(image.size)
        return image

    def _purify(self) -> Iterator[None]:
        batcher = Batcher()
        for work, item, decoded in self.read:
            ready = self._end_of(work, batcher) if item is None else self._held(batcher, work, item, decoded)
            for batch in ready:
                self._start(batch)
                yield
            if self.read.is_empty():  # more may be read only once what is being purified was written
                self._finish_started()
                yield
        self._finish_started()

    def _end_of(self, work: PartInWork, batcher: Batcher) -> Iterator[list[Held]]:
        yield from batcher.flush()
        work.line.close()

    def _held(self, batcher: Batcher, work: PartInWork, item: Item, decoded: Future[np.ndarray]) -> Iterator[list[Held]]:
        result: Future[Finished] = Future()
        work.line.put((item, result))
        if self.flow.is_full and not decoded.done():  # it is decoded only once what is being purified was written
            self._finish_started()
        try:
            image = self.flow.wait(decoded, DECODES_WITHIN)
        except ItemError as reason:
            result.set_result(Finished(reason))
        except HungError:
            self._give_up(decoded)
            result.set_result(Finished(ItemError(f"takes longer than {DECODES_WITHIN:g} s to decode")))
        else:
            yield from batcher.add(Held(item, image, result), self.batch_size)

    def _give_up(self, decoded: Future[np.ndarray]) -> None:
        """Leave the thread to what it hangs at, and let another take its place."""
        self.decoding.replace_one()
        decoded.add_done_callback(lambda late: None if late.exception() else self.flow.grow(-late.result().size))

    def _start(self, batch: list[Held]) -> None:
        """Begin with `batch`, then finish the one before."""
        ids = np.array([held.item.id for held in batch], dtype=np.int64)
        started = self._unless_memory_is_out(batch, lambda: self.compute.start(stacked(batch), ids))
        self._finish_started()
        if started is None:
            self._halve(batch)
        else:
            self.started = batch, started

    def _finish_started(self) -> None:
        if self.started is None:
            return
        (batch, started), self.started = self.started, None
        images = self._unless_memory_is_out(batch, lambda: self.compute.finish(started))
        if images is None:
            self._halve(batch)
            return
        for held, image in zip(batch, images, strict=True):
            self.encoding.submit(self._encode, held, image)

    def _unless_memory_is_out(self, batch: list[Held], call: Callable[[], Any]) -> Any:
        """What `call` returns; None where memory ran out, once its traceback, which holds on to memory, is gone."""
        try:
            with self.watchdog.purifying(len(batch)):
                return call()
        except BaseException as error:
            if not self.compute.is_out_of_memory(error):
                raise
        return None

    def _halve(self, batch: list[Held]) -> None:
        """The same images again in two batches; batches stay that small. An image that is alone fails."""
        if len(batch) == 1:
            (held,) = batch
            held.result.set_result(Finished(ItemError("does not fit into memory, even alone"), numbers=held.image.size))
            return
        half = (len(batch) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        self.told("out_of_memory", images=len(batch), batch_size=self.batch_size)
        for piece in (batch[:half], batch[half:]):
            self._start(piece)
        self._finish_started()

    def _encode(self, held: Held, image: np.ndarray) -> None:
        try:
            if not np.isfinite(image).all():
                raise ItemError("the purified image holds NaN or infinity")
            encoded = self.sink.encode(held.item, image.clip(0, 1))
        except ItemError as reason:
            encoded = reason
        except BaseException as fault:
            held.result.set_exception(fault)
            return
        held.result.set_result(Finished(encoded, f"{image.shape[2]}x{image.shape[1]}", held.image.size))

    def _write(self) -> None:
        for work in self.to_write:
            written, failed = self.sink.write(work.part, self._outcomes(work))
            self.written.put(self._record(work, written, failed))

    def _outcomes(self, work: PartInWork) -> Iterator[Outcome]:
        count = 0
        for item, result in work.line:
            encoded, size, numbers = self.flow.wait(result)
            ok = not isinstance(encoded, ItemError)
            if ok:
                work.sizes[item.id] = size
            self.flow.leave(numbers)
            yield Outcome(item, encoded)
            self.told("item", ok=ok)
            count += 1
        assert count == work.part.count, f"the source gave {count} of the {work.part.count} items of {work.part}"

    def _record(self, work: PartInWork, written: Any, failed: Any) -> Record:
        part = work.part
        for item, _ in failed:  # also those that could not be written
            work.sizes.pop(item.id, None)
        return {
            "part": part.index,
            "first": part.first,
            "count": part.count,
            "ok": part.count - len(failed),
            "failed": [[item.id, item.name, str(reason)] for item, reason in failed],
            "files": [list(file) for file in written],
            "sizes": dict(sorted(Counter(work.sizes.values()).items())),
            "batch_size": self.batch_size,
        }
