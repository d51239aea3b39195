"""Parts with failed images or lost files, done again: what was purified once is never taken away."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from purify_engine.data.items import Item, ItemError, Outcome, Part, Sink, Written
from purify_engine.data.manifest import Record
from purify_engine.data.sources.npy import recorded_rows

Failures = Mapping[int, frozenset[int]]  # part -> ids of its images that failed


def to_retry(records: Iterable[Record], sink: Sink) -> Failures:
    """Of the parts that hold failed images, or of which a file is lost."""
    again = (record for record in records if record["failed"] or _is_lost(record, sink))
    return {record["part"]: frozenset(id for id, *_ in record["failed"]) for record in again}


def _is_lost(record: Record, sink: Sink) -> bool:
    """Whether a file of the part is gone, or of another size; rows of an array are proved where it is put together."""
    written = (Written(*file) for file in record["files"])
    return any(_size(sink, file) != file.size for file in written if recorded_rows(file.file) is None)


def _size(sink: Sink, file: Written) -> int | None:
    try:
        found = sink.holds(file).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def is_worse(record: Record, before: Failures) -> bool:
    """Whether an image failed that was purified before: the part's old record is kept, and its files are."""
    return bool(record["part"] in before and {id for id, *_ in record["failed"]} - before[record["part"]])


class WorseError(Exception):
    """While a part is written again, something of an image that was purified before cannot be read any more."""

    def __init__(self, item: Item, reason: ItemError) -> None:
        super().__init__(str(reason))
        self.item, self.reason = item, reason


class Needed:
    """What goes along with an image that was purified before: where it cannot be read any more, nothing is written."""

    def __init__(self, item: Item) -> None:
        self.item = item

    def __getattr__(self, name: str) -> Any:
        return getattr(self.item.extras, name)

    def chunks(self, index: int) -> Iterator[bytes]:
        """As of the extras themselves; WorseError in the place of ItemError."""
        try:
            yield from self.item.extras.chunks(index)
        except ItemError as reason:
            raise WorseError(self.item, reason) from reason


class NeverWorse:
    """`sink`, but a part is left as it lies there where an image fails now that was purified before."""

    def __init__(self, sink: Sink, before: Failures) -> None:
        self.sink, self.before = sink, before

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copies and pickles ask before there is a sink
            raise AttributeError(name)
        return getattr(self.sink, name)

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        """`Sink.write`; where it would be worse than before nothing is written, and what failed is said."""
        if part.index in self.before:
            outcomes = [self._firm(part, outcome) for outcome in outcomes]
            failed = [(item, encoded) for item, encoded in outcomes if isinstance(encoded, ItemError)]
            if {item.id for item, _ in failed} - self.before[part.index]:
                return [], failed
        try:
            return self.sink.write(part, outcomes)
        except WorseError as worse:
            return [], [(worse.item, worse.reason)]

    def _firm(self, part: Part, outcome: Outcome) -> Outcome:
        item = outcome.item
        is_read_later = hasattr(item.extras, "chunks") and item.id not in self.before[part.index]
        return Outcome(replace(item, extras=Needed(item)), outcome.encoded) if is_read_later else outcome
