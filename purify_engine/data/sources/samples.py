"""Samples of a WebDataset archive: members that stand next to each other and share a key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from purify_engine.data.items import ItemError
from purify_engine.data.pixels import SUFFIXES
from purify_engine.data.tar import Member, Seen, TarError, members, open_tar, read, shown

MAX_MEMBERS = 1000  # of a sample
CHUNK = 2**20  # bytes that are copied at once
META = re.compile(r"__[^/]*__(/|$)")  # what webdataset's own reader passes over

Skip = Callable[[str, str], object]  # (name, why it is no part of a sample)


class Sample(NamedTuple):
    """Members with one key, in their order."""

    key: str
    """Empty where the archive breaks off before any member of the sample."""
    offset: int
    """Of its first header."""
    members: tuple[Member, ...] = ()
    image: int | None = None
    """Which of them is the image."""
    problem: str = ""
    """Why it cannot be purified, in words; empty where it can."""
    is_cut: bool = False
    """The archive breaks off within it, or lacks what would show that it does not."""

    @property
    def is_item(self) -> bool:
        """There is an image to purify, or something is missing that may have been one."""
        return self.image is not None or self.is_cut

    @property
    def name(self) -> str:
        return self.key if self.image is None else self.members[self.image].name

    def member(self, suffix: str) -> Member | None:
        """The member `key.suffix`."""
        return next((member for member in self.members if split(member.name) == (self.key, suffix)), None)


class Stored(NamedTuple):
    """A sample, the file that holds it, and its contents where they are small."""

    path: Path
    sample: Sample
    contents: tuple[bytes, ...] | None

    def chunks(self, index: int) -> Iterator[bytes]:
        """The content of member `index`, piece by piece. ItemError where the file cannot be read any more."""
        if self.contents is not None:
            yield self.contents[index]
            return
        member = self.sample.members[index]
        try:
            file, _ = open_tar(self.path)
            with file:
                for start in range(0, member.size, CHUNK):
                    yield read(file, member._replace(start=member.start + start, size=min(CHUNK, member.size - start)))
        except (OSError, ValueError) as broken:
            raise unreadable(broken) from broken


class _Group:
    """The sample that is being read."""

    def __init__(self, key: str, offset: int) -> None:
        self.key, self.offset = key, offset
        self.members: list[Member] = []
        self.images: list[int] = []
        self.suffixes: set[str] = set()
        self.problem = ""

    def add(self, member: Member, suffix: str) -> None:
        if len(self.members) == MAX_MEMBERS:
            self.problem = self.problem or f"has more than {MAX_MEMBERS} members"
            return
        if member.refused:
            self.problem = self.problem or f"holds {member.refused}, {shown(member.name)}"
        if suffix.lower() in self.suffixes:
            self.problem = self.problem or f"holds {shown(member.name)} twice"
        if is_image(member.name):
            self.images.append(len(self.members))
        self.suffixes.add(suffix.lower())
        self.members.append(member)

    def sample(self, cut: str = "") -> Sample:
        image = self.images[0] if self.images else None
        two = f"holds {len(self.images)} images: which is to be purified?" if len(self.images) > 1 else ""
        return Sample(self.key, self.offset, tuple(self.members), image, cut or self.problem or two, bool(cut))


def samples(
    file: BinaryIO, end: int, offset: int = 0, *, seen: Seen = bool, skip: Skip = lambda name, reason: None
) -> Iterator[Sample]:
    """The samples of an archive of `end` bytes from `offset` on, by headers alone.

    `skip` is told of members that belong to none. Where the archive breaks off, the last sample is the one in which it does.
    """
    group: _Group | None = None
    try:
        for member in members(file, end, offset, seen):
            if _is_skipped(member, skip):
                continue
            key, suffix = split(member.name)
            if group is not None and key != group.key:
                yield group.sample()
                group = None
            group = group or _Group(key, member.offset)
            group.add(member, suffix)
    except TarError as broken:
        yield from _broken_off(group, broken, skip)
    else:
        if group is not None:
            yield group.sample()


def split(name: str) -> tuple[str, str]:
    """(key, suffix) of a member: its name up to the first dot of its base name, and the rest; ("", "") where it has neither."""
    folders, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (folders + slash + stem, suffix) if stem and dot else ("", "")


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def unreadable(broken: Exception) -> ItemError:
    """`broken` as the fault of one item."""
    return ItemError(f"cannot be read: {broken.strerror if isinstance(broken, OSError) else broken}")


def _broken_off(group: _Group | None, broken: TarError, skip: Skip) -> Iterator[Sample]:
    cut = broken.member
    key = "" if cut is None or cut.misnamed else split(cut.name)[0]
    if group is not None and (broken.is_ended or key not in ("", group.key)):
        yield group.sample()
        group = None
    if not broken.lost:
        skip("", str(broken))
        return
    if group is None:
        group = _Group(key, cut.offset if cut is not None and key else broken.offset)
    yield group.sample(cut=str(broken))


def _is_skipped(member: Member, skip: Skip) -> bool:
    """Whether a member is no part of a sample; `skip` is told why, but of folders."""
    no_key = "" if split(member.name)[0] else "no name of the form KEY.SUFFIX"
    metadata = "metadata of WebDataset" if META.match(member.name) else ""
    reason = member.misnamed or ("" if member.is_folder else metadata or (no_key and (member.refused or no_key)))
    if reason:
        skip(member.name, reason)
    return bool(reason) or member.is_folder
