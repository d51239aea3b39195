"""A few images of a run, before and after, read again from its source and its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purify_engine.data.items import ImageShape, Item, ItemError, Part, Source
from purify_engine.data.pixels import decode
from purify_engine.data.reading import in_unit_range
from purify_engine.pages import pictures

SHOWN = 24
MOST_NUMBERS = 2**25  # of an image that is shown: 128 MiB
MOST_PIXELS = 96  # of the longer side of a picture in a page
Classify = Callable[[np.ndarray], str]  # float32 [C, H, W] in [0, 1] -> what the classifier reads there


@dataclass(frozen=True)
class Exhibit:
    """One image before and after."""

    name: str
    before: str
    """A PNG data URI, as the two that follow."""
    after: str
    change: str
    said_before: str = ""
    """The classifier's verdict; empty without a classifier."""
    said_after: str = ""


@dataclass(frozen=True)
class Sheet:
    """The exhibits, one scale for all their changes, and why images that were chosen are missing."""

    exhibits: list[Exhibit]
    scale: float
    missing: list[str]


@dataclass(frozen=True)
class Chosen:
    """An image that was purified: its id, and which of the good images of its part it is."""

    id: int
    place: int
    record: dict[str, Any]


def chosen(records: Iterable[dict[str, Any]], parts: int, shown: int = SHOWN) -> Iterator[Chosen]:
    """Up to `shown` purified images, evenly over the `parts` records of the manifest, evenly within each."""
    each = -(-shown // max(1, parts))
    wanted = {int(place) for place in np.linspace(0, parts - 1, min(shown, parts))} if parts else set()
    left = shown
    for index, record in enumerate(records):
        if index not in wanted or left == 0:
            continue
        failed = {failure[0] for failure in record["failed"]}
        good = [id for id in range(record["first"], record["first"] + record["count"]) if id not in failed]
        for place in sorted({int(place) for place in np.linspace(0, len(good) - 1, min(each, left, len(good)))} if good else ()):
            yield Chosen(good[place], place, record)
            left -= 1


class Shrunk(NamedTuple):
    """An image before and after, as small as the page shows it: of large images, no more than one is held at full size."""

    name: str
    before: np.ndarray
    after: np.ndarray
    change: np.ndarray
    said: tuple[str, str]


def sheet(source: Source, output: Path, records: Iterable[Chosen], classify: Classify | None = None) -> Sheet:
    """The chosen images of `source` beside what lies in `output`. What cannot be read again is missing, with the reason."""
    found: list[Shrunk] = []
    missing: list[str] = []
    parts, purified = source.parts(2**62), Purified(source, output)
    for one in records:
        try:
            item = _item(source, parts, one.id)
            found.append(_shrunk(item.name, source.decode(item), purified.read(one), classify))
        except (ItemError, OSError, ValueError, LookupError, StopIteration) as reason:
            missing.append(f"{source.name(one.id)}: {reason}")
    scale = pictures.scale_of(each.change for each in found)
    return Sheet([_exhibit(each, scale) for each in found], scale, missing)


def _shrunk(name: str, before: np.ndarray, after: np.ndarray, classify: Classify | None) -> Shrunk:
    if before.shape != after.shape:
        raise ItemError(f"is {list(before.shape)} before and {list(after.shape)} after")
    if before.size > MOST_NUMBERS:
        raise ItemError(f"is too large to be shown: {list(before.shape)}")
    before, after = in_unit_range(before), in_unit_range(after)
    said = ("", "") if classify is None else (classify(before), classify(after))
    small = (pictures.thumbnail(before, MOST_PIXELS), pictures.thumbnail(after, MOST_PIXELS))
    return Shrunk(name, *small, pictures.strongest(after - before, MOST_PIXELS), said)


def _exhibit(shrunk: Shrunk, scale: float) -> Exhibit:
    before, after = pictures.data_uri(shrunk.before), pictures.data_uri(shrunk.after)
    return Exhibit(shrunk.name, before, after, pictures.signed_uri(shrunk.change, scale), *shrunk.said)


def _item(source: Source, parts: Sequence[Part], id: int) -> Item:
    part = next(part for part in parts if id in part.ids)
    return next(iter(source.items(dataclasses.replace(part, first=id, count=1))))


class Purified:
    """What lies in the output of a run over `source`."""

    def __init__(self, source: Source, output: Path) -> None:
        self.source, self.output = source, output
        self.shape = ImageShape(source.shape.channels, clip=True)

    def read(self, one: Chosen) -> np.ndarray:
        """The purified image: the file of that place in its part's record, or the place itself in a container."""
        if self.source.kind in ("folder", "file", "list"):
            return decode(_inside(self.output, one.record["files"][one.place][0]), self.shape.channels)
        if self.source.kind == "array":
            return self.result.decode(_item(self.result, self.parts, one.id))
        files = [file[0] for file in one.record["files"]]
        place = one.place
        for part in self.parts:
            if part.container in files:
                if place < part.count:
                    return self.result.decode(_item(self.result, [part], part.first + place))
                place -= part.count
        raise ItemError("its file is gone")

    @cached_property
    def result(self) -> Source:
        """The output, opened as a source is: once, since all that lies in it is looked at."""
        from purify_engine.data.sources import open_source

        return open_source(self.output, self.shape, getattr(self.source, "column", None))

    @cached_property
    def parts(self) -> Sequence[Part]:
        return self.result.parts(2**62)


def _inside(output: Path, file: str) -> Path:
    root = (output if output.is_dir() else output.parent).resolve()
    path = (root / file).resolve()
    if not path.is_relative_to(root):
        raise ItemError(f"{file!r} lies outside of the output")
    return path
