"""Uncompressed TIFF files of any kind of sample, for tests: Pillow writes few of them."""

import struct
import zlib

import numpy as np

FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}
DEFLATE = 8


def tiff(samples: np.ndarray, *, photometric=None, order="<", planar=1, big=False, compression=1, extra=(), bits=None) -> bytes:
    """`samples` [H, W] or [H, W, C] of any dtype in one strip (a strip a plane where `planar` is 2)."""
    height, width, channels = samples.shape if samples.ndim == 3 else (*samples.shape, 1)
    photometric = photometric if photometric is not None else (1 if channels == 1 else 2)
    ordered = samples.astype(samples.dtype.newbyteorder(order)).reshape(height, width, channels)
    strips = [ordered.tobytes()] if planar == 1 else [ordered[..., plane].tobytes() for plane in range(channels)]
    strips = [zlib.compress(strip) for strip in strips] if compression == DEFLATE else strips
    head = 16 if big else 8
    offsets = [head + sum(map(len, strips[:index])) for index in range(len(strips))]
    depth = bits or samples.dtype.itemsize * 8
    tags = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [depth] * channels), (259, 3, [compression]), (262, 3, [photometric]),
        (273, 4, offsets), (277, 3, [channels]), (278, 4, [height]), (279, 4, list(map(len, strips))), (284, 3, [planar]),
        *([(338, 3, list(extra))] if extra else []), (339, 3, [FORMATS[samples.dtype.kind]] * channels),
    ]  # fmt: skip
    return _file(tags, b"".join(strips), order, big=big)


def _file(tags, data, order, *, big):
    head = 16 if big else 8
    directory = head + len(data)
    count, entry, inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    after = directory + struct.calcsize(order + count) + len(tags) * (20 if big else 12) + (8 if big else 4)
    entries, values = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        entries += struct.pack(order + entry, tag, kind, len(numbers))
        if len(packed) <= inline:
            entries += packed.ljust(inline, b"\0")
        else:
            entries += struct.pack(order + ("Q" if big else "I"), after + len(values))
            values += packed
    magic = b"II" if order == "<" else b"MM"
    start = struct.pack(order + "HHHQ", 43, 8, 0, directory) if big else struct.pack(order + "HI", 42, directory)
    return magic + start + data + struct.pack(order + count, len(tags)) + entries + bytes(8 if big else 4) + values
