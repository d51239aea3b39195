"""Archives of samples written by hand, block by block, what is made of them, and what Python does meanwhile."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from purify_engine.data.items import ImageShape, ItemError, Outcome
from purify_engine.data.sinks.webdataset import WebDatasetSink
from purify_engine.data.sources.webdataset import WebDatasetSource

SHAPE = ImageShape(channels=1)
END = bytes(1024)


@cache
def png(level: int = 7) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def head(name=b"", size=0, kind=b"0", *, link=b"", magic=b"ustar\x0000", prefix=b"", tail=b"", checksum=None) -> bytes:
    """One header; `size` is a number, or the bytes of its field."""
    digits = b"%011o\0" % size if isinstance(size, int) else size
    fields = [(name, 100), (b"0000644\0", 8), (b"0000000\0", 8), (b"0000000\0", 8)]
    fields += [(digits, 12), (b"00000000000\0", 12), (b" " * 8, 8)]
    fields += [(kind, 1), (link, 100), (magic, 8), (b"", 80), (prefix, 155), (tail, 12)]
    block = b"".join(value.ljust(width, b"\0") for value, width in fields)
    assert len(block) == 512
    return block[:148] + (b"%06o\0 " % sum(block) if checksum is None else checksum) + block[156:]


def file(name: bytes, content: bytes = b"", kind: bytes = b"0", **fields) -> bytes:
    return head(name, len(content), kind, **fields) + padded(content)


def pax(kind: bytes = b"x", **records: bytes) -> bytes:
    content = b""
    for key, value in records.items():
        rest = b" %s=%s\n" % (key.replace("__", ".").encode(), value)
        length = next(len(rest) + digits for digits in range(1, 9) if len(str(len(rest) + digits)) == digits)
        content += str(length).encode() + rest
    return file(b"PaxHeader", content, kind)


def sample(key: bytes, label: int = 3, level: int = 7) -> bytes:
    return file(key + b".png", png(level)) + file(key + b".cls", str(label).encode())


A, B, C = sample(b"a"), sample(b"b"), sample(b"c")
LONG = b"d/" * 100 + b"long"


@dataclass
class Made:
    """What became of an archive."""

    ok: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    output: bytes = b""


def purified(folder: Path, content: bytes, part_size: int = 10**6) -> Made:
    """Read the archive `content`, decode every image, and write what is good as it is."""
    shard = folder / "in" / "shard.tar"
    shard.parent.mkdir(exist_ok=True)
    with shard.open("wb") as file:
        file.write(content)
    source, made = WebDatasetSource(shard, SHAPE), Made()
    sink = WebDatasetSink(source, folder / "out")
    sink.prepare()
    made.records += [reason for _, reason in source.skipped]
    for part in source.parts(part_size):
        outcomes = [Outcome(item, _encoded(source, sink, item)) for item in source.items(part)]
        assert [outcome.item.id for outcome in outcomes] == list(part.ids)
        written, failed = sink.write(part, iter(outcomes))
        made.records += [str(reason) for _, reason in failed]
        failures = {item.id for item, _ in failed}
        made.ok += [item.name.removeprefix("shard.tar/") for item, _ in outcomes if item.id not in failures]
        made.output += b"".join(sink.holds(file).read_bytes() for file in written)
    return made


def _encoded(source, sink, item):
    try:
        return sink.encode(item, source.decode(item).astype(np.float32) / 255)
    except ItemError as reason:
        return reason


def contents(archive: bytes) -> list[tuple[str, bytes]]:
    """(name, content) of the files of a good archive, by Python's own reader."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar if info.isreg()]


class Watch:
    """What Python does while a folder is watched, and may not: write outside of it, make links, load pickles, start programs."""

    FORBIDDEN = ("pickle.find_class", "os.symlink", "os.link", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[tuple] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event in self.FORBIDDEN:
            self.seen.append((event, arguments))
        written = {"os.mkdir": arguments[:1], "os.rename": arguments[1:2], "os.remove": arguments[:1]}.get(event, ())
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written = arguments[:1]
        self.seen += [(event, path) for path in written if not self._is_inside(path)]

    def _is_inside(self, path) -> bool:
        return isinstance(path, str | os.PathLike) and self.folder in Path(os.path.realpath(path)).parents


def assert_nothing_else(folder: Path, watch: Watch) -> None:
    """The folder holds one shard and what was made of it, and nothing was done elsewhere."""
    assert watch.seen == []
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} <= {"in", "in/shard.tar", "out", "out/shard.tar"}
