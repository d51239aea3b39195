"""Good archives with some of their bytes, fields or blocks changed, cut, doubled or taken out."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from tests.data.tars import (
    END,
    LONG,
    A,
    B,
    C,
    Made,
    Watch,
    assert_nothing_else,
    contents,
    file,
    head,
    pax,
    png,
    purified,
    sample,
)


class Mutated:
    """A good archive with some of its bytes, fields or blocks changed."""

    VALUES = (b"\0" * 12, b"7" * 11 + b"\0", b"\x80" + b"\0" * 11, b"\xff" * 12, b"00000000001\0", b"00000001000\0", b" " * 12)
    NAMES = (b"../x.png", b"/tmp/x.png", b"a.png", b"x", b"..", b"a/../../x.png", b"\0x.png", b"a.\0", b"x.tar/", b"__m__/a.png")

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.archive = bytearray(self._good())
        for _ in range(self.draw.choice((0, 1, 1, 2, 3, 8))):
            self.draw.choice((self._flip, self._fields, self._fields, self._name, self._kind, self._blocks))()
        self.is_cut = self.draw.random() < 0.3 and self._cut()

    def _good(self) -> bytes:
        pieces = [A, B, C, sample(b"d/e"), file(b"f.png", png()) + file(b"f.json", b"{}" * 400), head(b"d/", 0, b"5")]
        pieces += [file(b"L", LONG + b".png\0", b"L") + file(b"x", png())]
        pieces += [pax(path=LONG + b"er.png", mtime=b"1.5") + file(b"y", png())]
        pieces += [file(b"p.png", png()) + file(b"p.pkl", b"cos\nsystem\n(S'exit 1'\ntR."), pax(b"g", comment=b"git")]
        return b"".join(self.draw.choices(pieces, k=self.draw.randint(1, 6))) + END + bytes(512 * self.draw.randint(0, 3))

    def _block(self) -> int:
        return 512 * self.draw.randrange(max(1, len(self.archive) // 512))

    def _flip(self) -> None:
        for _ in range(self.draw.choice((1, 4, 64))):
            self._put(self.draw.randrange(max(1, len(self.archive))), bytes([self.draw.randrange(256)]))

    def _fields(self) -> None:
        at = self._block()
        field, width = self.draw.choice(((100, 8), (124, 12), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155), (476, 24)))
        self._put(at + field, self.draw.choice((*self.VALUES, self.draw.randbytes(12)))[:width])
        self._sum(at)

    def _name(self) -> None:
        at = self._block()
        self._put(at, self.draw.choice(self.NAMES).ljust(100, b"\0"))
        self._sum(at)

    def _kind(self) -> None:
        at = self._block()
        self._put(at + 156, self.draw.choice((b"\0", *(bytes([kind]) for kind in b"01234567xgLKSNVDMXZ"))))
        self._sum(at)

    def _blocks(self) -> None:
        at, to = self._block(), self._block()
        piece = self.archive[at : at + 512 * self.draw.randint(1, 4)]
        if self.draw.random() < 0.5:
            del self.archive[at : at + len(piece)]
        if self.draw.random() < 0.5:
            self.archive[to:to] = self.draw.choice((piece, bytes(512), self.draw.randbytes(512)))

    def _cut(self) -> bool:
        """Whether it shows: more is gone than zeros, and what is left does not end in two blocks of them."""
        at = self.draw.choice((self._block(), self.draw.randrange(len(self.archive) + 1)))
        lost = self.archive[at:]
        del self.archive[at:]
        return any(lost) and any(self.archive[-1024:])

    def _put(self, at: int, value: bytes) -> None:
        self.archive[at : at + len(value)] = value[: max(0, len(self.archive) - at)]

    def _sum(self, at: int) -> None:
        """Make the checksum right again, so that the change is looked at; not always."""
        block = self.archive[at : at + 512]
        if len(block) == 512 and self.draw.random() < 0.8:
            block[148:156] = b" " * 8
            self._put(at + 148, b"%06o\0 " % sum(block))


def purify_mutated(seeds: Iterable[int], folder: Path, watch: Watch) -> int:
    """Read, decode and write the mutated archives of `seeds`: how many of them had lost bytes, each of which was reported."""
    cut = 0
    for seed in seeds:
        archive = Mutated(seed)
        try:
            made = purified(folder, bytes(archive.archive))
        except ValueError as reason:
            assert "source must be tar shards with images in them" in str(reason), seed
            made = Made(records=[str(reason)])
        if made.ok:
            names = [name for name, _ in contents(made.output)]
            assert sum(name.endswith(".png") for name in names) == len(made.ok), seed
            assert not [name for name in names if name.startswith("/") or ".." in name.split("/")], seed
        assert made.records or not archive.is_cut, f"{seed}: not reported"
        cut += archive.is_cut
        assert_nothing_else(folder, watch)
    return cut
