"""Encoded images before they are decoded: what of them the decoder is given, and what is refused by the header alone.

A header costs nothing to read and a decoder believes it: what would take gigabytes or minutes is refused here. Chunks of a PNG
that hold no pixels (text, colour profiles, animations) are left out, so that nothing in them can spoil the image.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import struct
import zlib
from pathlib import Path

from purify_engine.data.items import ItemError

MAX_PIXELS = 50_000_000
MAX_BYTES = 2**29  # of an encoded image: 50 megapixels of four channels of 16 bits take 400 million, uncompressed
MOST_BLOCKS, MOST_PACKETS = 2**20, 2**23  # of a JPEG 2000 image: 50 megapixels in the usual blocks of 64x64 have 37 thousand
COD, COC = 0x52, 0x53  # its markers that say how components are coded

JPEG2000_PIXELS, JPEG2000_BYTES = 20e6, 8e6  # a second, as its decoder was measured; the others take several times as many
MOST_SECONDS = 4

PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
MOST_EXIF = 2**16  # bytes; JPEG files hold no more
MOST_CHUNKS = 2**17

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
BOX_BRANDS = (b"mif1", b"msf1")  # boxes for HEIC and AVIF alike: the compatible brands tell

EMPTY = "cannot read the image: the file is empty"
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # no fault of the file


def kind_of(mode: int) -> str | None:
    """What a file of this `st_mode` is, in words; None for a regular one."""
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; ItemError, in words, where it cannot be read.

    Nothing but a regular file is opened: to open a FIFO waits for its other end, and to open a device may set it going.
    """
    try:
        _require_regular(path.stat())  # an empty one, too: files of /proc are, and to read one may wait for ever
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
        with os.fdopen(descriptor, "rb") as file:
            _require_regular(os.fstat(file.fileno()))  # what has come in its place since
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as broken:
        if isinstance(broken, ItemError) or (isinstance(broken, OSError) and broken.errno in OUT_OF_DESCRIPTORS):
            raise
        reason = broken.strerror if isinstance(broken, OSError) else str(broken)
        raise ItemError(f"cannot read the image: {reason or type(broken).__name__}") from broken


def without_what_holds_no_pixels(content: bytes) -> bytes:
    """What to give to the decoder; ItemError where the header alone tells that it must not be decoded, or cannot be."""
    if not content:
        raise ItemError(EMPTY)
    if len(content) > MAX_BYTES:
        raise ItemError(f"the file holds more than {MAX_BYTES} bytes")
    if content.startswith(PNG):
        return _png_pixels(content)
    if content.startswith((b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n")):
        _check_jpeg2000(content)
    if content[4:8] == b"ftyp":
        _refuse_heic(content)
    return content


def check_size(width: int, height: int, what: str = "") -> None:
    """ItemError above the cap."""
    if width * height > MAX_PIXELS:
        raise ItemError(f"{what}{width}x{height} pixels exceed the cap of {MAX_PIXELS}")


def _require_regular(found: os.stat_result) -> None:
    kind = kind_of(found.st_mode)
    if kind is not None:
        raise ItemError(f"is {kind}, not a file")
    if found.st_size == 0:
        raise ItemError(EMPTY)
    if found.st_size > MAX_BYTES:
        raise ItemError(f"the file holds {found.st_size} bytes, more than {MAX_BYTES}")


def _png_pixels(content: bytes) -> bytes:
    """The chunks that pixels come from, and where whole the one that says how the image is turned."""
    if content[12:16] == b"IHDR" and len(content) >= 24:
        check_size(*struct.unpack(">II", content[16:24]))
    view, at, count = memoryview(content), len(PNG), 0
    kept = [view[:at]]
    while at + 8 <= len(content):
        length, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        if not kind.isalpha():
            break  # the decoder says what is wrong
        chunk = view[at : at + 12 + length]
        is_critical = kind[0] & 0x20 == 0
        if is_critical or kind in PNG_PIXELS or (kind == b"eXIf" and length <= MOST_EXIF and _is_whole(chunk)):
            kept.append(chunk)
        at, count = at + 12 + length, count + 1
        if count > MOST_CHUNKS:
            raise ItemError(f"a PNG of more than {MOST_CHUNKS} chunks")
    return b"".join([*kept, view[at:]])


def _is_whole(chunk: memoryview) -> bool:
    return len(chunk) >= 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _refuse_heic(content: bytes) -> None:
    length = int.from_bytes(content[:4], "big")
    major, compatible = content[8:12], [content[at : at + 4] for at in range(16, min(length, len(content), 256), 4)]
    is_heic = major in HEIC_BRANDS or (major in BOX_BRANDS and b"avif" not in compatible)
    if is_heic:
        raise ItemError("HEIC images are not read: convert them first, for one with the Python package pillow-heif")


def _check_jpeg2000(content: bytes) -> None:
    """Refuse what would take a decoder more memory or time than its pixels: very many tiles, layers, precincts or code blocks."""
    start = content.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(content) < start + 42:
        return  # the decoder says what is wrong
    right, low, left, top, tile_width, tile_height = struct.unpack(">6I", content[start + 8 : start + 32])
    components = int.from_bytes(content[start + 40 : start + 42], "big")
    width, height, layers = max(right - left, 0), max(low - top, 0), 1
    check_size(width, height)
    seconds = width * height / JPEG2000_PIXELS + len(content) / JPEG2000_BYTES
    if seconds > MOST_SECONDS:
        takes = f"takes about {seconds:.0f} s to decode, {MOST_SECONDS} at most"
        raise ItemError(f"a JPEG 2000 image that {takes}: convert it to PNG")
    tiles = math.ceil(width / max(tile_width, 1)) * math.ceil(height / max(tile_height, 1))
    for kind, body in _jpeg2000_markers(content, start + 2):
        if kind == COD and len(body) >= 10:
            layers = int.from_bytes(body[2:4], "big")
            style, coding = body[0], body[5:]
        elif kind == COC and len(body) >= 8:  # the same for one component, whose number comes first
            style, coding = (body[1], body[2:]) if components < 257 else (body[2], body[3:])
        else:
            continue
        precincts, blocks = _jpeg2000_blocks(coding, bool(style & 1), width * height)
        packets = layers * max(precincts, tiles * (coding[0] + 1))
        if components * (precincts + blocks) > MOST_BLOCKS or components * packets > MOST_PACKETS:
            raise ItemError("a JPEG 2000 image in so many small blocks or layers that it would take too much memory or time")


def _jpeg2000_markers(content: bytes, at: int) -> list[tuple[int, bytes]]:
    """(second byte, body) of the markers before the data of the first tile, and of those in the headers of the other tiles."""
    found: list[tuple[int, bytes]] = []
    tile_ends = 0
    while at + 4 <= len(content) and len(found) < MOST_CHUNKS:
        kind = content[at + 1]
        if content[at] != 0xFF or kind == 0xD9:
            break
        if kind == 0x93:  # data until the end of the tile's part
            if tile_ends <= at:
                break
            at = tile_ends
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        body = content[at + 4 : at + 2 + max(length, 2)]
        if kind == 0x90 and len(body) >= 6:
            tile_ends = at + int.from_bytes(body[2:6], "big")
        found.append((kind, body))
        at += 2 + max(length, 2)
    return found


def _jpeg2000_blocks(coding: bytes, has_precincts: bool, pixels: int) -> tuple[int, int]:
    """How many precincts and code blocks a component of so many pixels has, at least."""
    levels, blocks = coding[0], math.ceil(pixels / 2 ** ((coding[1] & 15) + (coding[2] & 15) + 4))
    sides = coding[5 : 6 + levels] if has_precincts else b""
    of_levels = [pixels / 4 ** (levels - level) / 2 ** ((side & 15) + (side >> 4)) for level, side in enumerate(sides)]
    return math.ceil(sum(of_levels)), blocks
