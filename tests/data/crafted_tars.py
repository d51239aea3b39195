"""Archives that are each wrong in one way, and what is to become of them."""

from __future__ import annotations

import gzip
import random
from dataclasses import dataclass

from tests.data.tars import END, LONG, A, B, C, file, head, padded, pax, png, sample

ALL = ("a.png", "b.png", "c.png")


@dataclass(frozen=True)
class Crafted:
    """An archive, the images in it that are purified, and a word of every record of what is not."""

    content: bytes
    ok: tuple[str, ...] = ALL
    records: tuple[str, ...] = ()


def between(*inserted: bytes, ok=ALL, records=()) -> Crafted:
    return Crafted(A + b"".join(inserted) + B + C + END, ok, records)


def breaks(*inserted: bytes, reason: str) -> Crafted:
    """What stands between a and b ends the reading, and a may have lost members by it."""
    return Crafted(A + b"".join(inserted) + B + C + END, (), (reason,))


def skipped(name: bytes, reason: str, kind: bytes = b"0", **fields) -> Crafted:
    return between(head(name, 0, kind, **fields), records=(reason,))


PASSWD = b"/etc/passwd"
LINKS = {"hard link": b"1", "symbolic link": b"2", "character device": b"3", "block device": b"4", "FIFO": b"6"}
UPWARDS, ABSOLUTE = "leads upwards", "absolute"

CRAFTED: dict[str, Crafted] = {
    "upwards": skipped(b"../evil.png", UPWARDS),
    "upwards in the middle": skipped(b"x/../../evil.png", UPWARDS),
    "upwards by backslashes": skipped(b"x\\..\\..\\evil.png", UPWARDS),
    "upwards by the prefix": skipped(b"evil.png", UPWARDS, prefix=b"../.."),
    "upwards by a pax path": between(pax(path=b"../evil.png"), file(b"x.png", png()), records=(UPWARDS,)),
    "upwards by a GNU name": between(file(b"L", b"../evil.png\0", b"L"), file(b"x.png", png()), records=(UPWARDS,)),
    "upwards as a folder": skipped(b"../", UPWARDS, kind=b"5"),
    "absolute": skipped(b"/tmp/evil.png", ABSOLUTE),
    "absolute by the prefix": skipped(b"evil.png", ABSOLUTE, prefix=b"/tmp"),
    "absolute by a pax path": between(pax(path=b"/tmp/evil.png"), file(b"x.png", png()), records=(ABSOLUTE,)),
    "absolute for Windows": skipped(b"C:\\evil.png", ABSOLUTE),
    "a share of Windows": skipped(b"\\\\host\\evil.png", ABSOLUTE),
    "NUL in a name": skipped(b"x.png\0/../y.png", "NUL"),
    "NUL in a pax path": between(pax(path=b"x\0.png"), file(b"x.png", png()), records=("NUL",)),
    "no name": skipped(b"", "no name"),
    "a GNU name of 5000 bytes": between(file(b"L", b"n" * 5000 + b"\0", b"L"), file(b"x.png"), records=("a name of 5000 bytes",)),
    "a pax path of 5000 bytes": between(pax(path=b"n" * 5000), file(b"x.png"), records=("a name of 5000 bytes",)),
    **{f"an image that is a {name}": skipped(b"x.png", name.split()[-1], kind, link=PASSWD) for name, kind in LINKS.items()},
    "a link beside an image": Crafted(
        sample(b"a") + head(b"a.json", 0, b"2", link=PASSWD) + B + C + END, ("b.png", "c.png"), ("symbolic link, 'a.json'",)
    ),
    "a link without a key": skipped(b"LICENSE", "symbolic link", b"2", link=PASSWD),
    "a file behind a link to a folder": between(
        head(b"d", 0, b"2", link=b"/tmp"), file(b"d/x.png", png()),
        ok=("a.png", "d/x.png", "b.png", "c.png"), records=("symbolic link",),
    ),
    "a sparse file": between(
        head(b"x.png", 512, b"S", magic=b"ustar  \0", prefix=bytes(137) + b"\1"),
        bytes(504) + b"\1" + bytes(7), bytes(512), b"y" * 512,
        records=("a sparse file",),
    ),
    "a pax sparse file": between(pax(GNU__sparse__major=b"1"), file(b"x.png", b"0\n"), records=("a sparse file",)),
    "an unknown type": between(file(b"x.png", png(), b"Z"), records=("unknown type b'Z'",)),
    "a volume label": skipped(b"label", "unknown type b'V'", b"V"),
    "a negative size": breaks(head(b"x.png", b"\xff" * 12), reason="no size"),
    "an enormous size": Crafted(A + head(b"x.json", b"\x80" + b"\xff" * 11) + B + C + END, ("a.png",), ("cut short",)),
    "a size in other digits": breaks(head(b"x.png", b"0000000009\0"), reason="no size"),
    "a size with a sign": breaks(head(b"x.png", b"-0000000001\0"), reason="no size"),
    "a size beyond the file": Crafted(A + head(b"x.png", 10**6) + B + C + END, ("a.png",), ("cut short",)),
    "a pax size beyond the file": Crafted(A + pax(size=b"9" * 18) + file(b"x.png") + B + C + END, ("a.png",), ("cut short",)),
    "a pax size with a sign": breaks(pax(size=b"-1"), file(b"x.png"), reason="no single size"),
    "a pax size in words": breaks(pax(size=b"1_0"), file(b"x.png"), reason="no single size"),
    "two pax sizes": breaks(pax(size=b"0"), pax(size=b"5"), file(b"x.png"), reason="no single size"),
    "a link with content": breaks(file(b"x.png", png(), b"1", link=b"a.png"), reason="readers read differently"),
    "a folder with content": breaks(file(b"x/", png(), b"5"), reason="readers read differently"),
    "an old folder with content": breaks(file(b"x/", png(), b"\0"), reason="readers read differently"),
    "a pax header of 2 MiB": breaks(pax(comment=b"c" * 2**21), file(b"x.png"), reason="more than 1048576"),
    "a GNU name of 8 GiB": breaks(head(b"L", 2**33 - 1, b"L"), reason="more than 1048576"),
    "a wrong checksum": breaks(head(b"x.png", checksum=b"0000000\0"), reason="no tar header"),
    "a checksum of spaces": breaks(head(b"x.png", checksum=b"        "), reason="no tar header"),
    "a wrong magic": breaks(head(b"x.png", magic=b"rats!\0"), reason="no tar header"),
    "a block of noise": breaks(random.Random(0).randbytes(512), reason="no tar header"),
    "a path twice": breaks(pax(path=b"x.png") + file(b"L", b"y.png\0", b"L") + file(b"z.png"), reason="twice"),
    "a global path": breaks(pax(b"g", path=b"x.png"), reason="global"),
    "a global size": breaks(pax(b"g", size=b"0"), reason="global"),
    "a global comment": between(pax(b"g", comment=b"made by git")),
    "a pax record without an end": breaks(file(b"P", b"12 path=x.pn", b"x"), file(b"x.png"), reason="broken record"),
    "a pax record that is too long": breaks(file(b"P", b"99 path=x\n", b"x"), file(b"x.png"), reason="broken record"),
    "a pax record of length 0": breaks(file(b"P", b"0 path=x\n", b"x"), file(b"x.png"), reason="broken record"),
    "a pax record without a value": breaks(file(b"P", b"7 path\n", b"x"), file(b"x.png"), reason="broken record"),
    "an extension before the end": Crafted(A + B + C + pax(comment=b"x") + END, ("a.png", "b.png"), ("before the closing",)),
    "a member twice": Crafted(A + file(b"a.cls", b"4") + B + C + END, ("b.png", "c.png"), ("'a.cls' twice",)),
    "a member in two cases": Crafted(A + file(b"a.CLS", b"4") + B + C + END, ("b.png", "c.png"), ("'a.CLS' twice",)),
    "a key that comes again": Crafted(A + B + sample(b"a") + C + END, ALL, ("appeared before",)),
    "two images": between(file(b"x.png", png()), file(b"x.jpg", png()), records=("2 images",)),
    "no image": between(file(b"x.json", b"{}"), file(b"x.cls", b"1"), records=("without an image",)),
    "more members than are taken": between(
        file(b"x.png", png()), *(file(b"x.%d" % number) for number in range(1000)), records=("more than 1000 members",)
    ),
    "a hole of zeros": Crafted(A + bytes(512) + B + C + END, ("a.png",), ("follow the end",)),
    "two archives in one": Crafted(A + END + B + C + END, ("a.png",), ("follow the end",)),
    "an end of 2 MiB": Crafted(A + B + C + bytes(2**21), ALL, ("follow the end",)),
    "an end of 1500 bytes": Crafted(A + B + C + bytes(1500), ALL, ("closing blocks",)),
    "one closing block": Crafted(A + B + C + bytes(512), ALL, ("closing blocks",)),
    "no closing blocks": Crafted(A + B + C, ("a.png", "b.png"), ("append 1024 zero bytes",)),
    "compressed": Crafted(gzip.compress(A + END), (), ("decompress it first",)),
    "empty": Crafted(b"", (), ("cut short at byte 0",)),
    "names that are none of a sample": between(
        file(b".hidden.png"), file(b"x/._a.png"), file(b"README"), file(b"__meta__/x.png"), head(b"x/", 0, b"5"),
        records=("KEY.SUFFIX", "KEY.SUFFIX", "KEY.SUFFIX", "metadata"),
    ),
    "an image of no bytes": between(file(b"x.png"), records=("cannot",)),
    "a pickle as an image": between(file(b"x.png", b"\x80\x04cos\nsystem\n(S'true'\ntR."), records=("cannot",)),
    "names of every kind": Crafted(
        sample(b"q'\"") + sample(b"n\n\x1b[31m") + sample("\u202ertl".encode()) + sample(b"\xff\xfe") + END,
        ("q'\".png", "n\n\x1b[31m.png", "\u202ertl.png", "\udcff\udcfe.png"),
    ),
    "every way to write a member": Crafted(
        head(b"a.png", b"\x80" + len(png()).to_bytes(11, "big")) + padded(png())
        + file(b"b.png", png(), b"\0", magic=b"") + file(b"c.png", png(), b"7")
        + file(b"L", LONG + b".png\0", b"L") + file(b"x", png()) + pax(path=LONG + b"er.png", size=b"%d" % len(png()))
        + head(b"y", 0) + padded(png()) + file(b"name.png", png(), prefix=b"pre/fix") + END,
        ("a.png", "b.png", "c.png", f"{LONG.decode()}.png", f"{LONG.decode()}er.png", "pre/fix/name.png"),
    ),
}  # fmt: skip
