"""A few images of a run, before and after, read again from its source and its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from purify_engine.data.items import ImageShape, Item, ItemError, Part, Source
from purify_engine.data.pixels import decode
from purify_engine.data.reading import in_unit_range
from purify_engine.pages import pictures

SHOWN = 24
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


def sheet(source: Source, output: Path, records: Iterable[Chosen], classify: Classify | None = None) -> Sheet:
    """The chosen images of `source` beside what lies in `output`. What cannot be read again is missing, with the reason."""
    pairs: list[tuple[str, np.ndarray, np.ndarray]] = []
    missing: list[str] = []
    parts = {part.first: part for part in source.parts(2**62)}
    for one in records:
        try:
            item = _item(source, list(parts.values()), one.id)
            before, after = in_unit_range(source.decode(item)), in_unit_range(_purified(source, output, one))
            if before.shape != after.shape:
                raise ItemError(f"is {list(before.shape)} before and {list(after.shape)} after")
            pairs.append((item.name, before, after))
        except (ItemError, OSError, ValueError, LookupError, StopIteration) as reason:
            missing.append(f"{source.name(one.id)}: {reason}")
    changes = [pictures.strongest(after - before, MOST_PIXELS) for _, before, after in pairs]
    scale = pictures.scale_of(changes)
    shown = [_exhibit(*pair, change, scale, classify) for pair, change in zip(pairs, changes, strict=True)]
    return Sheet(shown, scale, missing)


def _exhibit(
    name: str, before: np.ndarray, after: np.ndarray, change: np.ndarray, scale: float, classify: Classify | None
) -> Exhibit:
    said = ("", "") if classify is None else (classify(before), classify(after))
    first, second = (pictures.data_uri(pictures.thumbnail(image, MOST_PIXELS)) for image in (before, after))
    return Exhibit(name, first, second, pictures.signed_uri(change, scale), *said)


def _item(source: Source, parts: Sequence[Part], id: int) -> Item:
    part = next(part for part in parts if id in part.ids)
    return next(iter(source.items(dataclasses.replace(part, first=id, count=1))))


def _purified(source: Source, output: Path, one: Chosen) -> np.ndarray:
    """The purified image: the file of that place in its part's record, or the place itself in a container."""
    from purify_engine.data.sources import open_source

    shape = ImageShape(source.shape.channels, clip=True)
    if source.kind in ("folder", "file", "list"):
        return decode(_inside(output, one.record["files"][one.place][0]), shape.channels)
    result = open_source(output, shape, getattr(source, "column", None))
    if source.kind == "array":
        return result.decode(_item(result, result.parts(2**62), one.id))
    files = [file[0] for file in one.record["files"]]
    place = one.place
    for part in result.parts(2**62):
        if part.container in files:
            if place < part.count:
                return result.decode(_item(result, [part], part.first + place))
            place -= part.count
    raise ItemError("its file is gone")


def _inside(output: Path, file: str) -> Path:
    root = (output if output.is_dir() else output.parent).resolve()
    path = (root / file).resolve()
    if not path.is_relative_to(root):
        raise ItemError(f"{file!r} lies outside of the output")
    return path
