"""Damaged images by number, the same every time, and what becomes of each: `python -m tests.data.mutated_images FIRST COUNT`.

A process of its own, so that a crash, a hang or a gigabyte of memory is seen from outside. It writes a line an image.
"""

import functools
import io
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from purify_engine.data import ItemError
from purify_engine.data.pixels import decode, quiet
from tests.data.tiffs import DEFLATE, tiff

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "PGM", "AVIF", "JPEG2000")
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Became(NamedTuple):
    """What became of one damaged image."""

    index: int
    outcome: str  # ok, refused, or what else was raised
    seconds: float


def _saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def whole(kind: str) -> list[bytes]:
    """Sound images of a format, of several modes."""
    noise = Image.fromarray(np.random.default_rng(15).integers(0, 256, (21, 33)).astype(np.uint8))
    grey = Image.radial_gradient("L").resize((40, 30))
    colour = Image.merge("RGB", [noise, noise.rotate(180), grey.resize(noise.size)])
    clear = colour.copy()
    clear.putalpha(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.arange(33 * 21, dtype=np.uint16).reshape(21, 33) * 90
    if kind == "PNG":
        modes = (grey, colour, clear, colour.quantize(), noise.convert("1"), Image.fromarray(deep))
        return [*(_saved(one, kind) for one in modes), _saved(colour, kind, exif=exif)]
    if kind == "JPEG":
        return [_saved(colour, kind, exif=exif), _saved(colour, kind, progressive=True), _saved(colour.convert("CMYK"), kind)]
    if kind == "WEBP":
        return [_saved(colour, kind, exif=exif), _saved(clear, kind, lossless=True),
                _saved(colour, kind, save_all=True, append_images=[colour.rotate(90)])]  # fmt: skip
    if kind == "BMP":
        return [_saved(one, kind) for one in (grey, colour, clear, colour.quantize(), noise.convert("1"))]
    if kind == "GIF":
        return [_saved(colour.quantize(), kind), _saved(grey, kind, save_all=True, append_images=[grey.rotate(90)])]
    if kind == "TIFF":
        how = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
        special = {"jpeg": colour, "group4": noise.convert("1")}
        packed = [_saved(special.get(one, clear), kind, **({"compression": one} if one else {})) for one in how]
        return [*packed, tiff(deep, order=">"), tiff(deep, big=True), tiff(np.asarray(colour), planar=2, compression=DEFLATE),
                tiff(deep.astype("i4")), tiff(deep.astype("f4"))]  # fmt: skip
    if kind == "PPM":
        return [_saved(colour, kind), b"P3 2 2 9\n1 2 3 4 5 6 7 8 9 1 2 3\n", b"P6 2 2 9\n" + bytes(range(12))]
    if kind == "PGM":
        return [_saved(grey, "PPM"), b"P5 33 21 65535\n" + deep.tobytes(), b"P1 3 2\n1 0 1\n0 1 0\n", b"Pf 2 2 1\n" + bytes(16)]
    if kind == "AVIF":
        return [_saved(colour, kind, exif=exif), _saved(clear, kind)]
    options = ({}, {"no_jp2": True}, {"irreversible": True, "quality_layers": [20, 5]}, {"tile_size": (16, 16)})
    return [_saved(one, kind, **more) for one, more in zip((colour, grey, colour, clear), options, strict=True)]


def damaged(index: int) -> bytes:
    """Image `index`: cut, overwritten, repeated, joined to another, or a few of these."""
    random = np.random.default_rng([15, index])
    kind = FORMATS[index % len(FORMATS)]
    sound = whole(kind)
    content = bytearray(sound[random.integers(len(sound))])
    for _ in range(random.integers(1, 5)):
        _damage(content, random, sound)
    return _with_checksums(bytes(content)) if kind == "PNG" and random.random() < 0.7 else bytes(content)


def _damage(content: bytearray, random: np.random.Generator, others: list[bytes]) -> None:
    size = max(len(content), 1)
    # Headers decide: half of all damage lies in the first hundred bytes.
    at = int(random.integers(min(size, 100) if random.random() < 0.5 else size))
    length = int(random.integers(1, 60))
    match random.integers(7):
        case 0:
            content[at : at + 1] = bytes([int(random.integers(256))])
        case 1:
            content[at : at + 1] = bytes([content[at] ^ 1 << int(random.integers(8))]) if at < len(content) else b""
        case 2:
            layout = str(random.choice(["<H", ">H", "<I", ">I"]))
            value = int(random.choice(EDGES)) & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF)
            content[at : at + struct.calcsize(layout)] = struct.pack(layout, value)
        case 3:
            del content[at:]
        case 4:
            del content[at : at + length]
        case 5:
            content[at:at] = content[at : at + length] * int(random.integers(1, 50))
        case _:
            other = others[random.integers(len(others))]
            content[at:] = other[int(random.integers(len(other))) :]


def _with_checksums(content: bytes) -> bytes:
    """The same PNG with the checksums that its chunks now have: else nothing behind the first damage would be looked at."""
    at, mended = 8, bytearray(content)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            break
        mended[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(content[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(mended)


def outcome(content: bytes, channels: int) -> str:
    """ok, refused, or what should not be."""
    try:
        image = decode(content, channels)
    except ItemError as reason:
        said = str(reason)
        return "refused" if said.isprintable() and "at 0x" not in said and len(said) < 400 else f"said {ascii(said)}"
    except BaseException as fault:  # of any kind: the run would end
        return f"raised {ascii(fault)}"
    is_sound = image.dtype in (np.uint8, np.float32) and image.ndim == 3 and image.shape[0] == channels and image.size > 0
    return "ok" if is_sound and image.min() >= 0 and image.max() <= (255 if image.dtype == np.uint8 else 1) else "beyond [0, 1]"


def became(first: int, count: int, timeout: float) -> tuple[list[Became], int]:
    """(what became of `count` images from `first` on, the most memory it took in bytes), by a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "tests.data.mutated_images", str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"ended by {done.returncode} after {done.stdout[-60:]!r}: {done.stderr[-2000:]}"
    assert done.stderr == ""  # no warning either, of Python or of a library
    *lines, last = done.stdout.splitlines()
    split = [line.split("\t") for line in lines]
    return [Became(int(index), said, float(seconds)) for index, seconds, said in split], int(last)


def main(first: int, count: int) -> None:
    with quiet():
        for index in range(first, first + count):
            content, started = damaged(index), time.perf_counter()
            said = outcome(content, 1 + 2 * (index // len(FORMATS) % 2))
            print(index, f"{time.perf_counter() - started:.3f}", said, sep="\t", flush=True)
    # Not ru_maxrss, in which the memory of the process that started this one is counted.
    print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
