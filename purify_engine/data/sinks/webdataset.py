"""Purified samples in tar shards under the names that they came from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Outcome, Part, Written
from purify_engine.data.pixels import encode
from purify_engine.data.sinks.folder import refuse_names_of_records
from purify_engine.data.sinks.in_folder import InFolder, part_name
from purify_engine.data.sources.samples import Stored
from purify_engine.data.sources.webdataset import WebDatasetSource
from purify_engine.data.tar import CLOSING, header, padding
from purify_engine.files import write_whole


class WebDatasetSink(InFolder):
    """A shard for each part: of the source's name where the shard is one part, else NAME-00000.tar, NAME-00001.tar, ...

    A sample has its members in their order: the image as KEY.png, the others byte for byte, whatever they are. Times, owners and
    modes are not kept, so that the same images make the same file. Samples that failed are absent.
    """

    def __init__(self, source: WebDatasetSource, output: Path) -> None:
        inside = source.root.is_dir() and source.root.resolve() in output.resolve().parents
        is_source = output.resolve() in {(source.folder / shard).resolve().parent for shard in source.shards}
        require(not inside and not is_source, "output", "a folder outside the source", str(output))
        require(output.is_dir() or not output.exists(), "output", "a folder, where tar shards are the source", str(output))
        require(output.suffix.lower() != ".tar", "output", "the folder for the shards, not the name of one", str(output))
        refuse_names_of_records(source.shards)
        clash = _clash(source)
        require(not clash, "source", "free of shards with the name of another's part: rename it", clash)
        self.output = output

    def encode(self, item: Item, image: np.ndarray) -> bytes:
        return encode(image)

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        name = part_name(part)
        shard = _Shard(outcomes)
        try:
            write_whole(self.output / name, shard.fill)
        except _NothingError:
            (self.output / name).unlink(missing_ok=True)
            return [], shard.failed
        return [Written(name, shard.size, shard.digest.hexdigest())], shard.failed


class _NothingError(Exception):
    """No sample of the part is left."""


class _Shard:
    """One shard while it is written, and its hash."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self.outcomes = outcomes
        self.failed: list[tuple[Item, ItemError]] = []
        self.size = 0
        self.digest = hashlib.sha256()

    def fill(self, path: Path) -> None:
        with path.open("wb", buffering=2**20) as file:
            for item, encoded in self.outcomes:
                try:
                    if isinstance(encoded, ItemError):
                        raise encoded
                    self._add(file, item.extras, encoded)
                except ItemError as reason:
                    self.failed.append((item, reason))
            if self.size == 0:
                raise _NothingError
            self._write(file, [CLOSING])

    def _add(self, file: BinaryIO, stored: Stored, encoded: bytes) -> None:
        before = self.size, self.digest.copy()
        try:
            for index, member in enumerate(stored.sample.members):
                if index == stored.sample.image:
                    self._write(file, [header(_as_png(member.name), len(encoded)), encoded, padding(len(encoded))])
                else:
                    self._write(file, [header(member.name, member.size)])
                    self._write(file, stored.chunks(index))
                    self._write(file, [padding(member.size)])
        except ItemError:  # of a member that cannot be read any more: what there is of its sample goes
            self.size, self.digest = before
            file.seek(self.size)
            file.truncate()
            raise

    def _write(self, file: BinaryIO, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            file.write(piece)
            self.digest.update(piece)
            self.size += len(piece)


def _as_png(name: str) -> str:
    """A sample has one image, so that no other member is called so."""
    return name if name.lower().endswith(".png") else f"{name.rpartition('.')[0]}.png"


def _clash(source: WebDatasetSource) -> str:
    """A shard whose name a part of another one may get."""
    counts: dict[str, int] = dict(zip(source.shards, _differences(source.firsts), strict=True))
    for shard in source.shards:
        numbered = re.fullmatch(r"(.*)-([0-9]{5,9})(\.[^./]*)", shard, re.DOTALL)
        if numbered and int(numbered[2]) < counts.get(numbered[1] + numbered[3], 0):
            return shard
    return ""


def _differences(firsts: Sequence[int]) -> Iterator[int]:
    return (stop - first for first, stop in zip(firsts, firsts[1:], strict=False))
