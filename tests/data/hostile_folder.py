"""A folder of good images among fifty things that fight back, for tests of one process and of the command line."""

import errno
import io
import os
import socket
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.tiffs import tiff

SIDE = 8
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIX = {"JPEG2000": ".jp2", "TIFF": ".tif"}
ODD = ("plain", "two  spaces", "quote'\"s", "new\nline", "\u202egnp.rtl", "\x1b[31mred", "-rf *", "%s%n", "名前")
ODD += (os.fsdecode(b"\xff\xfe"),)  # no UTF-8
GOOD_FORMATS = ("PNG", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")  # lossless: what is written can be checked


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def good(root: Path, count: int) -> dict[str, int]:
    """`count` images of a level each, under odd names; {relative path: level}."""
    levels = {}
    for index in range(count):
        kind = GOOD_FORMATS[index % len(GOOD_FORMATS)]
        name = f"class {index % 5}/{ODD[index % len(ODD)]} {index}{SUFFIX.get(kind, '.' + kind.lower())}"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(Image.new("L", (SIDE, SIDE), index % 256), kind))
        levels[name] = index % 256
    return levels


def _truncated(root: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    for kind in FORMATS:
        whole = saved(noise, kind)
        (root / f"cut{SUFFIX.get(kind, '.' + kind.lower())}").write_bytes(whole[: len(whole) // 2])


def _bombs(root: Path) -> None:
    small = {kind: saved(Image.new("L", (64, 64)), kind) for kind in FORMATS}
    header = struct.pack(">IIBBBBB", 12000, 12000, 1, 0, 0, 0, 0)
    (root / "bomb.png").write_bytes(small["PNG"][:16] + header + small["PNG"][29:])
    (root / "bomb.gif").write_bytes(small["GIF"].replace(struct.pack("<HH", 64, 64), struct.pack("<HH", 65000, 65000)))
    (root / "bomb.jpg").write_bytes(small["JPEG"].replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 65000, 65000)))
    (root / "bomb.ppm").write_bytes(small["PPM"].replace(b"64 64", b"65000 65000"))
    (root / "bomb.jp2").write_bytes(small["JPEG2000"].replace(struct.pack(">II", 64, 64), struct.pack(">II", 65000, 65000)))
    strips = struct.pack("<HHI", 273, 4, 1)
    (root / "bomb.tif").write_bytes(tiff(np.zeros((8, 8), np.uint8)).replace(strips, strips[:4] + struct.pack("<I", 10**7)))


def _links_and_special_files(root: Path) -> None:
    (root / "loop.png").symlink_to("loop.png")
    (root / "there.png").symlink_to("back.png")
    (root / "back.png").symlink_to("there.png")
    (root / "circle").symlink_to(".", target_is_directory=True)
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "fifo.png")
    with socket.socket(socket.AF_UNIX) as listening:
        there = Path.cwd()
        os.chdir(root)  # addresses of sockets are short
        listening.bind("socket.png")
        os.chdir(there)


def _samples(root: Path) -> None:
    for kind in ("u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8", "c8"):
        (root / f"{kind}.tif").write_bytes(tiff(np.zeros((SIDE, SIDE), kind)))
    (root / "planes.tif").write_bytes(tiff(np.zeros((SIDE, SIDE, 3), "u2"), planar=2))


def _names(root: Path) -> None:
    for name in ("quote'\".png", "new\nline.png", "\u202egnp.exe.png", "\x1b[2J.png", os.fsdecode(b"\xff\xfe.png")):
        (root / name).write_bytes(b"<html>")
    black = saved(Image.new("L", (SIDE, SIDE)), "PNG")
    (root / ("y" * 251 + ".bmp")).write_bytes(black)  # no room for .png behind it
    (root / "clash.jpg").write_bytes(black)


def _others(root: Path) -> None:
    (root / "empty.png").touch()
    (root / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    (root / "wide.png").write_bytes(saved(Image.new("L", (SIDE + 1, SIDE)), "PNG"))
    (root / "notes.txt").write_text("not an image")
    (root / ".DS_Store").touch()
    for folder in (".ipynb_checkpoints", "__MACOSX"):
        (root / folder).mkdir()
        (root / folder / "a.png").write_bytes(b"never looked at")
    (root / "nothing").mkdir()
    (root / "secret").mkdir()
    (root / "secret" / "a.png").touch()
    (root / "forbidden.png").write_bytes(b"for other eyes")


FORBIDDEN = ("secret", "forbidden.png")


def forbid(monkeypatch, *names: str) -> None:
    """Make names unreadable, also for root, who may read everything."""
    opened, listed = os.open, os.scandir

    def refuse(path):
        if Path(path).name in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", lambda path, *rest, **more: (refuse(path), opened(path, *rest, **more))[1])
    monkeypatch.setattr(os, "scandir", lambda path=".": (refuse(path), listed(path))[1])


def hostile(root: Path) -> int:
    """What fights back, most of it in a class folder of its own, and one good image among it; how much fights back."""
    there = root / "hostile"
    there.mkdir(parents=True)
    for make in (_truncated, _bombs, _links_and_special_files, _samples, _names, _others):
        make(there)
    count = len(list(there.iterdir()))
    (there / "clash.jpg.png").write_bytes(saved(Image.new("L", (SIDE, SIDE)), "PNG"))  # what clash.jpg would become
    (root / "report.html").mkdir()
    (root / "report.html" / "a.png").write_bytes((there / "clash.jpg.png").read_bytes())
    return count + 1
