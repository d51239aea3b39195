"""TIFF files hold numbers of every kind, and not all have an agreed range: a file's directory tells whether it can be taken."""

from __future__ import annotations

import struct
from typing import NamedTuple

from purify_engine.data.encoded import check_size
from purify_engine.data.items import ItemError

BITS, PHOTOMETRIC, STRIPS, PLANAR, TILE_WIDTH, TILE_HEIGHT, TILES, FORMAT = 258, 262, 273, 284, 322, 323, 324, 339  # its tags
WHITE_IS_ZERO, IN_SEPARATE_PLANES = 0, 2
UNSIGNED, SIGNED, FLOATING, UNDEFINED = 1, 2, 3, 4  # what FORMAT says of samples
MOST_STRIPS = 2**18  # or tiles; 50 megapixels in tiles of 16x16, the smallest, have 196 thousand
MOST_VALUES = 8  # of an entry that are read here

PREFIXES = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")  # + is BigTIFF; two are malformed, and read all the same
INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of entries
MEND = "have no agreed range; convert the image to 8 or 16 bits"


class Entry(NamedTuple):
    """One of the directory: how many values it has, and the first of them."""

    length: int
    values: tuple[int, ...]


class Tiff(NamedTuple):
    """What the first directory of a TIFF file says of its samples."""

    entries: dict[int, Entry]

    @property
    def bits(self) -> tuple[int, ...]:
        return self.first(BITS) or (1,)

    @property
    def white(self) -> int:
        """The number that stands for white in a grey image; negative where that one stands for black, and 0 for white."""
        white = 2 ** self.bits[0] - 1
        return -white if self.first(PHOTOMETRIC) == (WHITE_IS_ZERO,) else white

    @property
    def described(self) -> str:
        planes = ", in separate planes" if self.first(PLANAR) == (IN_SEPARATE_PLANES,) else ""
        bits, photometric = "+".join(map(str, self.bits)), "".join(map(str, self.first(PHOTOMETRIC)[:1])) or "missing"
        return f"TIFF of {bits} bits a pixel, photometric interpretation {photometric}{planes}"

    def first(self, tag: int) -> tuple[int, ...]:
        return self.entries[tag].values if tag in self.entries else ()

    def require_taken(self) -> None:
        """ItemError where its numbers are of a kind that is not taken, or what it consists of is too large or too much."""
        kinds, deepest = set(self.first(FORMAT)) or {UNSIGNED}, max(self.bits)
        if FLOATING in kinds:
            raise ItemError(f"floating-point pixels {MEND}: they have {deepest} bits")
        if SIGNED in kinds:
            raise ItemError(f"signed pixels {MEND}, unsigned: they have {deepest} bits")
        if not kinds <= {UNSIGNED, UNDEFINED}:
            raise ItemError(f"complex pixels {MEND}")
        if deepest > 16:
            raise ItemError(f"pixels of {deepest} bits {MEND}")
        if deepest > 8 and len(self.bits) > 1 and self.first(PLANAR) == (IN_SEPARATE_PLANES,):
            raise ItemError(f"{self.described}: not read; convert it to PNG")
        width, height = self.first(TILE_WIDTH)[:1] or (0,), self.first(TILE_HEIGHT)[:1] or (0,)
        check_size(width[0], height[0], "tiles of ")
        count = max((self.entries[tag].length for tag in (STRIPS, TILES) if tag in self.entries), default=0)
        if count > MOST_STRIPS:
            raise ItemError(f"{count} strips or tiles, more than {MOST_STRIPS}: they would take too much memory")


def read_directory(content: bytes) -> Tiff | None:
    """The first directory of a TIFF file; None where there is none, and what is wrong is the decoder's to say."""
    if not content.startswith(PREFIXES):
        return None
    order, is_big = "<" if content.startswith(b"II") else ">", b"+" in content[:4]
    offset, count, entry, inline = ("Q", "Q", "HHQ8s", 8) if is_big else ("I", "H", "HHI4s", 4)
    entries: dict[int, Entry] = {}
    try:
        (at,) = struct.unpack_from(order + offset, content, 8 if is_big else 4)
        (length,) = struct.unpack_from(order + count, content, at)
        at += struct.calcsize(order + count)
        for _ in range(min(length, 2**16)):
            tag, kind, number, value = struct.unpack_from(order + entry, content, at)
            at += struct.calcsize(order + entry)
            layout = f"{order}{min(number, MOST_VALUES)}{INTEGERS[kind]}" if kind in INTEGERS else order
            is_inline = struct.calcsize(layout) <= inline
            (elsewhere,) = struct.unpack(order + offset, value)
            entries[tag] = Entry(number, struct.unpack_from(layout, *((value,) if is_inline else (content, elsewhere))))
    except (struct.error, OverflowError):  # it ends early
        pass
    return Tiff(entries)
