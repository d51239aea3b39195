"""Tar archives, read strictly: by headers alone, nothing is extracted, no link is followed.

ustar, pax and GNU's long names are read. A member that is no plain file, or whose name leads anywhere else, is given with what is
wrong with it. Where two readers could differ in what follows, the reading ends and the error names the byte: behind a broken
header nothing can be trusted. So it does where the archive was cut short, or does not end in two blocks of zeros.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 512
CLOSING = bytes(2 * BLOCK)
EMPTY = tarfile.TarInfo().tobuf(tarfile.PAX_FORMAT)  # the header of a file without a name and a content
MAX_EXTENSION = 2**20  # bytes of a pax header or a long name; those of real archives are a few hundred
MAX_NAME = 4096  # bytes, as Linux has it for paths
MAX_TAIL = 2**20  # zero bytes behind the closing blocks that are looked at; writers fill up to 10 KiB
SHOWN = 200  # characters of a refused name in a reason

GZIP = b"\x1f\x8b"
MAGICS = (b"ustar\0", b"ustar ", b"\0" * 6)  # POSIX, GNU, and archives older than either
PLAIN, FOLDER, EXTENDED, GLOBAL, LONG_NAME, LONG_LINK, SPARSE = b"0\0" b"7", b"5", b"xX", b"g", b"L", b"K", b"S"
REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a FIFO", b"S": "a sparse file",
}  # fmt: skip

Seen = Callable[[bytes], object]


class Member(NamedTuple):
    """A member of an archive, as its headers tell it."""

    name: str
    offset: int
    """Of its first header."""
    start: int
    """Of its content."""
    size: int
    """Of its content, in bytes."""
    misnamed: str = ""
    """What is wrong with its name; empty where nothing is."""
    refused: str = ""
    """What it is, where it is no plain file."""
    is_folder: bool = False

    @property
    def following(self) -> int:
        """Where the next header begins."""
        return self.start + -(-self.size // BLOCK) * BLOCK


class TarError(ValueError):
    """The archive cannot be read beyond `offset`, and why."""

    def __init__(
        self, offset: int, reason: str, *, member: Member | None = None, is_ended: bool = False, lost: bool = True
    ) -> None:
        super().__init__(reason)
        self.offset = offset
        self.member = member
        """The one whose content is cut short."""
        self.is_ended = is_ended
        """A closing block was seen: the members before it are all there."""
        self.lost = lost
        """Something may be missing from what was read."""


def open_tar(path: Path) -> tuple[BinaryIO, int]:
    """The file to read and how many bytes it has. OSError where it cannot be opened, ValueError where it is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would be waited for
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError("is no regular file")
    return os.fdopen(descriptor, "rb", buffering=2**16), status.st_size


def members(file: BinaryIO, end: int, offset: int = 0, seen: Seen = bool) -> Iterator[Member]:
    """Every member of the archive of `end` bytes from the header at `offset` on, by headers alone: contents are not read.

    `seen` is given each block that was read. TarError ends it where the archive does not end as it should.
    """
    while (member := _next(file, end, offset, seen)) is not None:
        if member.start + member.size > end:
            there = max(0, end - member.start)
            reason = f"the archive is cut short at byte {end}: {there} of {member.size} bytes of {shown(member.name)} are there"
            raise TarError(end, reason, member=member)
        yield member
        offset = member.following


def read(file: BinaryIO, member: Member) -> bytes:
    """The content of a member. TarError where the file has become shorter."""
    file.seek(member.start)
    content = file.read(member.size)
    if len(content) < member.size:
        raise TarError(member.start, f"the file became shorter while it was read, {shown(member.name)} is cut", member=member)
    return content


def header(name: str, size: int) -> bytes:
    """The header blocks of a plain file, the same for every user, machine and time: mode 0644, no owner, time 0."""
    if not name.isascii() or len(name) > 100 or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    block = name.encode().ljust(100, b"\0") + EMPTY[100:124] + b"%011o\0" % size + EMPTY[136:]  # the same in a tenth of the time
    return block[:148] + b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * ord(" ")) + block[156:]


def padding(size: int) -> bytes:
    """What fills the last block of a content of `size` bytes."""
    return bytes(-size % BLOCK)


@dataclass
class _Extension:
    """What extension headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    is_sparse: bool = False

    def take(self, kind: bytes, content: bytes, offset: int) -> None:
        if kind in LONG_NAME:
            self._rename(content.rstrip(b"\0"), offset)
        elif kind not in LONG_LINK:
            for key, value in _pax_records(content, offset):
                self._record(kind, key, value, offset)

    def _record(self, kind: bytes, key: bytes, value: bytes, offset: int) -> None:
        is_sparse = key.startswith(b"GNU.sparse.")
        if kind in GLOBAL and (is_sparse or key in (b"path", b"size", b"linkpath")):
            raise TarError(offset, f"a global header at byte {offset} names or sizes all members that follow")
        if key == b"path":
            self._rename(value, offset)
        elif key == b"size":
            if self.size is not None or not re.fullmatch(rb"[0-9]{1,19}", value):
                raise TarError(offset, f"a pax header at byte {offset} gives no single size in digits")
            self.size = int(value)
        self.is_sparse |= is_sparse

    def _rename(self, name: bytes, offset: int) -> None:
        if self.name is not None:
            raise TarError(offset, f"extension headers name one member twice, at byte {offset}")
        self.name = name


def _next(file: BinaryIO, end: int, first: int, seen: Seen) -> Member | None:
    """The member whose first header stands at `first`; None where the closing blocks do."""
    extension, offset = _Extension(), first
    while True:
        block = _block(file, end, offset, seen)
        if not block.strip(b"\0"):
            if offset > first:
                raise TarError(offset, f"an extension header stands before the closing blocks at byte {offset}")
            _require_ending(file, end, offset)
            return None
        kind, size = _checked(block, offset)
        if kind not in EXTENDED + GLOBAL + LONG_NAME + LONG_LINK:
            return _member(file, end, (first, offset), block, kind, size, extension)
        if size > MAX_EXTENSION:
            raise TarError(offset, f"an extension header at byte {offset} has {size} bytes, more than {MAX_EXTENSION}")
        content = file.read(size)
        if len(content) < size:
            raise TarError(end, f"the archive is cut short at byte {end}, within an extension header")
        seen(content)
        extension.take(kind, content, offset)
        offset += BLOCK + -(-size // BLOCK) * BLOCK


def _member(
    file: BinaryIO, end: int, offsets: tuple[int, int], block: bytes, kind: bytes, size: int, extension: _Extension
) -> Member:
    first, offset = offsets
    name = extension.name if extension.name is not None else _name(block)
    is_folder = kind == FOLDER or (kind == b"\0" and name.endswith(b"/"))
    refused = "a sparse file" if extension.is_sparse else REFUSED.get(kind, "")
    if not refused and not is_folder and kind not in PLAIN:
        refused = f"a member of the unknown type {kind!r}"
    size = size if extension.size is None else extension.size
    if size and (is_folder or kind in b"123456"):
        raise TarError(offset, f"a folder, link or device at byte {offset} claims {size} bytes, which readers read differently")
    start = offset + BLOCK
    if kind == SPARSE:
        start += BLOCK * _sparse_blocks(file, end, block, start)
    return Member(name.decode("utf-8", "surrogateescape"), first, start, size, _misnamed(name), refused, is_folder)


def _block(file: BinaryIO, end: int, offset: int, seen: Seen) -> bytes:
    file.seek(offset)
    block = file.read(BLOCK)
    if offset == 0 and block.startswith(GZIP):
        raise TarError(0, "the archive is compressed: decompress it first (gunzip)")
    if len(block) == BLOCK:
        seen(block)
        return block
    if offset < end:
        raise TarError(end, f"the archive is cut short at byte {end}, within a header")
    if offset > end:
        raise TarError(end, f"the archive is cut short at byte {end}, within the padding of a member")
    mend = f"its two closing blocks are missing (if it is whole, append {2 * BLOCK} zero bytes)"
    raise TarError(end, f"the archive is cut short at byte {end}: {mend}")


def _checked(block: bytes, offset: int) -> tuple[bytes, int]:
    """(type, size) of a header whose checksum, magic and size are as they should be."""
    claimed = _number(block[148:156])
    actual = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if claimed != actual or block[257:263] not in MAGICS:
        raise TarError(offset, f"no tar header at byte {offset}: its checksum or its magic is wrong")
    size = _number(block[124:136])
    if size is None:
        raise TarError(offset, f"no size in the header at byte {offset}: {block[124:136]!r}")
    return block[156:157], size


def _number(field: bytes) -> int | None:
    """Octal digits, or bytes after 0x80 (base 256); None where it is neither, or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = re.fullmatch(rb" *([0-7]*)[ \0]*", field)
    return int(digits[1] or b"0", 8) if digits else None


def _name(block: bytes) -> bytes:
    """The name field, with what stands behind its end where that is not empty, so that it is refused."""
    name = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0") if block[257:263] == MAGICS[0] else b""
    return prefix + b"/" + name if prefix else name


def _misnamed(name: bytes) -> str:
    if not name:
        return "no name"
    if len(name) > MAX_NAME:
        return f"a name of {len(name)} bytes"
    if b"\0" in name:
        return "a name with a NUL"
    if name[:1] in b"/\\" or re.match(rb"[A-Za-z]:[/\\]", name):
        return "an absolute name"
    return "a name that leads upwards" if b".." in re.split(rb"[/\\]", name) else ""


def _pax_records(content: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of "LENGTH KEY=VALUE\\n" after one another."""
    at = 0
    while at < len(content):
        length = re.compile(rb"([1-9][0-9]{0,6}) ").match(content, at)
        stop = at + int(length[1]) if length else 0
        record = content[length.end() : stop] if length and stop <= len(content) else b""
        key, equals, value = record[:-1].partition(b"=")
        if not key or not equals or record[-1:] != b"\n":
            raise TarError(offset, f"a pax header at byte {offset} holds a broken record")
        yield key, value
        at = stop


def _sparse_blocks(file: BinaryIO, end: int, block: bytes, offset: int) -> int:
    """How many blocks that map a sparse file follow its header."""
    count, goes_on = 0, block[482] != 0
    while goes_on:
        goes_on = _block(file, end, offset + count * BLOCK, bool)[504] != 0
        count += 1
    return count


def _require_ending(file: BinaryIO, end: int, offset: int) -> None:
    """Two closing blocks and nothing else behind them."""
    rest = file.read(BLOCK + MAX_TAIL)
    tail = end - offset - BLOCK
    if rest.strip(b"\0") or tail > BLOCK + MAX_TAIL:
        said = f"{tail} bytes follow the end of the archive at byte {offset} and are not read"
        raise TarError(offset, f"{said}: archives joined with cat must be split, others written anew", is_ended=True)
    if tail < BLOCK or tail % BLOCK:
        raise TarError(offset, f"the archive is cut short at byte {end}, within its closing blocks", is_ended=True, lost=False)


def shown(name: str) -> str:
    """`name` as reasons give it: quoted, without control characters, and not longer than a line."""
    return repr(name if len(name) <= SHOWN else name[:SHOWN] + "...")
