"""Damaged tables and arrays, each read to its end by `python -m tests.data.mutated_tables KIND FIRST COUNT`.

pyarrow is C++: what goes wrong in it may end the process, which only another one can tell.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from purify_engine.data import ImageShape, ItemError, open_source
from tests.data.tables import table, write_dataset, write_parquet

PLACES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80")  # lengths and offsets that lead elsewhere


def bases(kind, folder):
    """(the source, the file in it that will be damaged, what it may hold)."""
    rows = [table(40), table(7, 40)]
    if kind == "arrow":
        write_dataset(folder / "in", {"data-0.arrow": rows})
        return folder / "in", folder / "in" / "data-0.arrow", [(folder / "in" / "data-0.arrow").read_bytes()]
    path = folder / f"in.{kind}"
    made = []
    for way in ("NONE", "snappy", "zstd") if kind == "parquet" else (np.savez, np.savez_compressed):
        write_parquet(path, rows, compression=way) if kind == "parquet" else way(path, images=np.ones((47, 4, 5), np.uint8))
        made.append(path.read_bytes())
    return path, path, made


def damaged(content, seed):
    """`content` with one to eight places changed, half of them near its end, where tables describe themselves."""
    chance = random.Random(seed)
    left = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        near_the_end = max(0, len(left) - 1 - int(chance.expovariate(1 / 300)))
        place = chance.randrange(len(left)) if chance.random() < 0.5 else near_the_end
        how = chance.randrange(5)
        if how < 3:
            left[place] = chance.randrange(256)
        elif how == 3:
            left[place : place + 4] = chance.choice(PLACES)
        else:
            del left[place : place + chance.randrange(1, 9)]
    return bytes(left)


def read(kind, seeds):
    """Read one damaged file a seed; (refused, rows, rows that are images, seconds of the slowest)."""
    refused = rows = images = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        source, path, whole = bases(kind, Path(folder))
        for seed in seeds:
            path.write_bytes(damaged(whole[seed % len(whole)], seed))
            started = time.process_time()
            try:
                opened = open_source(source, ImageShape(1))
            except ValueError as reason:
                assert "\n" not in str(reason), seed
                refused += 1
                continue
            items = [item for part in opened.parts(16) for item in opened.items(part)]
            assert [item.id for item in items] == list(range(len(opened))), seed
            rows += len(items)
            for item in items:
                try:
                    opened.decode(item)
                    images += 1
                except ItemError:
                    pass
            slowest = max(slowest, time.process_time() - started)
    return refused, rows, images, slowest


if __name__ == "__main__":
    named, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(*read(named, range(first, first + count)))
