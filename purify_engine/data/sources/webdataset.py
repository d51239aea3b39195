"""Tar shards as WebDataset has them: a folder of them, one of them, or a pattern such as `shard-{000..009}.tar`."""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ImageShape, Item, ItemError, Part, Skipped, parts_of, raise_passing
from purify_engine.data.pixels import decode
from purify_engine.data.sources.samples import Sample, Stored, samples, unreadable
from purify_engine.data.sources.shards import find_shards
from purify_engine.data.tar import Seen, open_tar, read

MOST_HELD = 2**18  # bytes of a sample that are read at once; of larger ones, each member when it is needed
MAX_IMAGE = 2**29  # bytes of an encoded image
MOST_DIGITS = 18  # of a label: what int64 holds
NO_LABEL = -1


class WebDatasetSource:
    """The samples with an image of every shard, in the sorted order of the shards' names and then as they stand there.

    A first pass reads headers alone and keeps where each sample begins: 8 bytes a sample. `labels` are the integers of the `cls`
    members, -1 where a sample has none; None where no sample has one. A shard that breaks off has one failed item in the place
    where it does.
    """

    kind = "webdataset"
    classes: tuple[str, ...] | None = None

    def __init__(self, root: Path, shape: ImageShape) -> None:
        require(shape.channels in (1, 3), "channels", "1 or 3 for tar shards", shape.channels)
        self.root, self.shape = root, shape
        self.folder, self.shards, skipped = find_shards(root)
        self.skipped: Sequence[Skipped] = skipped
        self.faults: dict[int, str] = {}  # of items: what the first pass found out, and one look at the sample would not
        digest = hashlib.sha256()
        offsets, self.firsts = [np.zeros(0, np.int64)], [0]
        for shard in self.shards:
            digest.update(shard.encode("utf-8", "surrogateescape") + b"\0")
            offsets.append(self._index(shard, digest.update, skipped))
            self.firsts.append(self.firsts[-1] + len(offsets[-1]))
        self.offsets = np.concatenate(offsets)
        self.headers = digest.hexdigest()
        require(len(self) > 0, "source", "tar shards with images in them", str(root))

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, id: int) -> str:
        shard = self.shards[bisect.bisect_right(self.firsts, id) - 1]
        try:
            file, end = open_tar(self.folder / shard)
            with file:
                return _named(shard, self._sample(file, end, id))
        except (OSError, ValueError):
            return shard

    def parts(self, size: int) -> Sequence[Part]:
        parts: list[Part] = []
        for shard, first, stop in zip(self.shards, self.firsts, self.firsts[1:], strict=False):
            parts += parts_of(stop - first, size, container=shard, after=parts[-1] if parts else None)
        return parts

    def items(self, part: Part) -> Iterator[Item]:
        path, id = self.folder / part.container, part.first
        try:
            file, end = open_tar(path)
            with file:
                for id in part.ids:
                    yield self._item(file, end, part.container, id)
        except (OSError, ValueError) as broken:
            for rest in range(id, part.first + part.count):
                yield Item(rest, part.container, ItemError(self.faults.get(rest, str(unreadable(broken)))))

    def decode(self, item: Item) -> np.ndarray:
        if isinstance(item.content, ItemError):
            raise item.content
        content = item.content
        if isinstance(content, Path):
            content = b"".join(item.extras.chunks(item.extras.sample.image))
        assert isinstance(content, bytes)
        return self.shape.require_size(decode(content, self.shape.channels))

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "items": len(self), "shards": len(self.shards), "headers": self.headers}

    @cached_property
    def labels(self) -> np.ndarray | None:
        labels = np.full(len(self), NO_LABEL, np.int64)
        for part in self.parts(len(self)):
            self._read_labels(part, labels)
        return labels if (labels != NO_LABEL).any() else None

    def _index(self, shard: str, seen: Seen, skipped: list[Skipped]) -> np.ndarray:
        """Where the samples of a shard begin, by its headers; -1 where it cannot be read beyond the last of them."""
        first, offsets, keys = self.firsts[-1], array("q"), array("Q")

        def skip(name: str, reason: str) -> None:
            skipped.append(Skipped(f"{shard}/{name}" if name else shard, reason))

        try:
            file, end = open_tar(self.folder / shard)
            with file:
                for sample in samples(file, end, seen=seen, skip=skip):
                    if not sample.is_item:
                        skip(sample.key, sample.problem or "a sample without an image")
                        continue
                    if sample.is_cut:
                        self.faults[first + len(offsets)] = sample.problem
                    offsets.append(sample.offset)
                    keys.append(_key_hash(sample.key))
        except (OSError, ValueError) as broken:
            raise_passing(broken)
            self.faults[first + len(offsets)] = str(unreadable(broken))
            offsets.append(-1)
        for place in _repeated(np.array(keys, dtype=np.uint64)):
            self.faults.setdefault(first + int(place), "its key appeared before in the shard")
        return np.array(offsets, dtype=np.int64)

    def _sample(self, file: BinaryIO, end: int, id: int) -> Sample:
        offset = int(self.offsets[id])
        sample = next(samples(file, end, offset), None) if offset >= 0 else None
        if sample is None:
            raise ValueError(self.faults.get(id, "it is gone since the shard was opened"))
        return sample

    def _item(self, file: BinaryIO, end: int, shard: str, id: int) -> Item:
        try:
            sample = self._sample(file, end, id)
            name = _named(shard, sample)
            problem = self.faults.get(id) or sample.problem or _too_large(sample)
            if problem or sample.image is None:
                return Item(id, name, ItemError(problem or "its image is gone since the shard was opened"))
            path = self.folder / shard
            held = sum(member.size for member in sample.members) <= MOST_HELD
            contents = tuple(read(file, member) for member in sample.members) if held else None
            return Item(id, name, contents[sample.image] if contents else path, Stored(path, sample, contents))
        except (OSError, ValueError) as broken:
            return Item(id, shard, ItemError(self.faults.get(id, str(unreadable(broken)))))

    def _read_labels(self, part: Part, labels: np.ndarray) -> None:
        try:
            file, end = open_tar(self.folder / part.container)
            with file:
                for id in part.ids:
                    if id not in self.faults:
                        labels[id] = _label(file, self._sample(file, end, id))
        except (OSError, ValueError):  # what cannot be read fails as an item, and says why
            return


def _named(shard: str, sample: Sample) -> str:
    return f"{shard}/{sample.name}" if sample.name else shard


def _too_large(sample: Sample) -> str:
    size = 0 if sample.image is None else sample.members[sample.image].size
    return f"has {size} bytes, more than the cap of {MAX_IMAGE}" if size > MAX_IMAGE else ""


def _label(file: BinaryIO, sample: Sample) -> int:
    member = sample.member("cls")
    content = b"" if member is None or sample.problem or member.size > MOST_DIGITS else read(file, member).strip()
    return int(content) if content.isdigit() else NO_LABEL


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _repeated(keys: np.ndarray) -> np.ndarray:
    """The places of keys that stood before; the first of each is none of them."""
    order = np.argsort(keys, kind="stable")
    is_again = keys[order[1:]] == keys[order[:-1]]
    return order[1:][is_again]
