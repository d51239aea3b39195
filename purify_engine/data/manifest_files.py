"""Which manifests lie beside an output, and their locks: one of the run, or one of each of its shares."""

from __future__ import annotations

import glob
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from purify_engine.data.shares import RECORD
from purify_engine.files import located_json_lines, lock, unlock

LOOKS, PAUSE = 5, 0.05  # how often a lock is looked at, and seconds between two looks


def lock_of(path: Path) -> Path:
    """The lock that goes with the record `path`."""
    return path.with_name(f".{path.name}.lock")


def is_locked(path: Path) -> bool:
    """Whether a process that lives holds the lock; one that was left is removed. Others may look at the same time."""
    for _ in range(LOOKS):
        held = lock(path) if path.exists() else -1
        if held is not None:
            if held >= 0:
                unlock(path, held)
            return False
        time.sleep(PAUSE)
    return True


def shares_of(whole: Path) -> list[Path]:
    """The manifests of shares beside `whole`, also those of which only the lock is there yet."""
    before = whole.name.removesuffix("manifest.jsonl")
    names = {path.name.removeprefix(".").removesuffix(".lock") for path in whole.parent.glob(f"*{glob.escape(before)}manifest.*")}
    return [whole.with_name(name) for name in sorted(names) if RECORD.fullmatch(name.removeprefix(before))]


def manifests_of(whole: Path) -> list[Path]:
    """All that are there; `whole` comes last, since what was removed was written into it before."""
    return [path for path in [*shares_of(whole), whole] if path.exists()]


def lines_that_count(whole: Path) -> Iterator[str]:
    """Of each committed part, sorted, the line with the fewest failed images of the last ones of all manifests."""
    best: dict[int, tuple[int, Path, int]] = {}  # part -> (failed images, manifest, where its line begins)
    for path in manifests_of(whole):
        for part, found in latest_records(path).items():
            best[part] = min(found, best.get(part, found))
    for _, (_, path, offset) in sorted(best.items()):
        with path.open("rb") as file:
            file.seek(offset)
            yield file.readline().decode().rstrip("\n") + "\n"  # a kill may have cut the end of a last line alone


def latest_records(path: Path) -> dict[int, tuple[int, Path, int]]:
    """Of each part in a manifest its last record: (failed images, `path`, the byte at which its line begins)."""
    found = {}
    for offset, record in located_json_lines(path):
        if is_record(record):
            found[record["part"]] = len(record["failed"]), path, offset
        else:
            warnings.warn(f"{path} holds a line that is no record of a part; such a part is done again", stacklevel=2)
    return found


def is_record(record: Any) -> bool:
    """Whether a line of the manifest is of the shape that a part's record has."""
    if not isinstance(record, dict):
        return False
    counts = all(type(record.get(key)) is int and record[key] >= 0 for key in ("part", "first", "count", "ok"))
    lists = all(isinstance(record.get(key), list) and all(map(_is_triple, record[key])) for key in ("failed", "files"))
    return counts and lists and isinstance(record.get("sizes"), dict)


def _is_triple(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3
