"""Is an output what its records say, whole and nothing else? Needs neither the source nor what purified it.

Every file is read again and its size and SHA-256 held against its part's record; every id has exactly one record; nothing else
lies there. With the source at hand also: it is the one that was purified.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from purify_engine.data.items import ImageShape
from purify_engine.data.manifest import FAILURE, RECORDS, Record, changed, leftovers, read_run
from purify_engine.data.manifest_files import is_record, manifests_of
from purify_engine.data.shares import RECORD
from purify_engine.data.sources import open_source
from purify_engine.data.sources.npy import Rows, open_rows, recorded_rows
from purify_engine.files import TEMPORARY

READERS = 8  # hashing lets other threads run
BLOCK = 2**20
LEFT, UNKNOWN = "a temporary file, left by a run that was killed", "no record names it"
LOCK = "a run goes on, or was killed: the same command goes on with it"

Progress = Callable[[int, int], None]  # (files read, of how many)


@dataclass(frozen=True)
class Verified:
    """What was found."""

    items: int
    """Ids with exactly one record."""
    ok: int
    """Of them, those that were purified."""
    failed: int
    """Of them, those that could not be, each with its reason."""
    files: int
    """That are as recorded."""
    bytes: int
    """Of those files."""
    problems: tuple[str, ...]
    """One line each; none where the output is proved."""

    def as_record(self) -> dict[str, Any]:
        return {**vars(self), "problems": list(self.problems)}


class Output:
    """An output's place and its records, as they lie on the disk: nothing of them is trusted yet."""

    def __init__(self, output: Path) -> None:
        is_tree = output.is_dir()
        self.root = output if is_tree else output.parent
        self.prefix = "" if is_tree else f"{output.stem}."
        self.output, self.is_tree = output, is_tree
        self.problems: list[str] = []
        if not self.record("run.json").is_file():
            said = f"what `purify` wrote: a folder that holds run.json, or a file with {self.prefix or 'NAME.'}run.json beside it"
            raise ValueError(f"output must be {said}, got {str(output)!r}")
        self.run = self._run()
        self.parts = self._parts()

    def record(self, name: str) -> Path:
        return self.root / f"{self.prefix}{name}"

    @property
    def identity(self) -> Record:
        return dict(self.run.get("identity") or {})

    def _run(self) -> Record:
        try:
            return read_run(self.record("run.json"))
        except ValueError as damaged:
            self.problems.append(f"run.json: {damaged}")
            return {}

    def _lines(self, name: str) -> Iterator[tuple[int, Any]]:
        path = self.record(name)
        if not path.is_file():
            self.problems.append(f"{name}: is missing")
            return
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                yield number, json.loads(line)
            except ValueError:
                self.problems.append(f"{name}: line {number} is no JSON")

    def _parts(self) -> list[Record]:
        """Every line of the manifest; while shares of the run go on also theirs, of parts that it does not have."""
        whole = self.record("manifest.jsonl")
        found: list[Record] = []
        for path in reversed(manifests_of(whole) or [whole]):
            name, known = path.name.removeprefix(self.prefix), {record["part"] for record in found}
            records = [record for number, line in self._lines(name) if (record := self._part(name, number, line))]
            found += [record for record in records if record["part"] not in known]
        return found

    def _part(self, name: str, number: int, record: Any) -> Record | None:
        if not is_record(record):
            self.problems.append(f"{name}: line {number} is no record of a part")
            return None
        if record.get("identity") != self.run.get("identity_sha256"):
            self.problems.append(f"{name}: line {number} is of another run")
        return dict(record)

    def failures(self) -> list[Any]:
        """What failed.jsonl lists."""
        return [entry for _, entry in self._lines("failed.jsonl")]


def verify(output: Path, source: Path | None = None, *, progress: Progress | None = None) -> Verified:
    """Hold the output at `output` against its records, and `source` against the one that was purified.

    ValueError where no run.json lies there; every other defect is one of `problems`.
    """
    found = Output(output)
    items, ok, failed = _count_items(found)
    written = list(_files(found))
    files, size = _read(found, written, progress)
    found.problems += _strays(found, {name for name, *_ in written})
    if source is not None:
        found.problems += _other_source(found, source)
    return Verified(items, ok, failed, files, size, tuple(found.problems))


def _count_items(found: Output) -> tuple[int, int, int]:
    """(items with one record, purified ones, failed ones)."""
    total = found.identity.get("source", {}).get("items", 0)
    records, ok, failed = Counter[int](), 0, []
    for part in found.parts:
        ids = range(part["first"], part["first"] + part["count"])
        records.update(ids)
        ok += part["ok"]
        failed += part["failed"]
        if part["ok"] + len({id for id, *_ in part["failed"] if id in ids}) != part["count"]:
            found.problems.append(
                f"part {part['part']}: {part['ok']} purified and {len(part['failed'])} failed of {part['count']}"
            )
    found.problems += [f"{said}: no record" for said in _spans(id for id in range(total) if not records[id])]
    found.problems += [f"{said}: more than one record" for said in _spans(id for id in sorted(records) if records[id] > 1)]
    found.problems += [f"{said}: not of the source" for said in _spans(id for id in sorted(records) if id >= total)]
    listed = [[entry.get(key) for key in FAILURE] if isinstance(entry, dict) else entry for entry in found.failures()]
    if listed != sorted(failed, key=lambda failure: failure[0]):
        found.problems.append("failed.jsonl: lists other failures than manifest.jsonl")
    once = sum(records[id] == 1 for id in range(total))
    return once, ok, len(failed)


def _spans(ids: Iterable[int]) -> Iterator[str]:
    """Runs of consecutive ids in words: "items 3 to 5"."""
    first = last = None
    for id in (*ids, None):
        if first is not None and id != last + 1:  # type: ignore[operator]
            yield f"item {first}" if first == last else f"items {first} to {last}"
            first = None
        first, last = (id if first is None else first), id


def _files(found: Output) -> Iterator[tuple[str, Any, Any]]:
    """Every file that a record names, once; what a record may not name is a problem."""
    seen = set[str]()
    for entry in [*(file for part in found.parts for file in part["files"]), *(found.run.get("files") or [])]:
        name, size, sha256 = entry
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            found.problems.append(f"{name}: no file of the output may be called so")
        elif name in seen:
            found.problems.append(f"{name}: recorded twice")
        else:
            seen.add(name)
            yield name, size, sha256


def _read(found: Output, written: list[tuple[str, Any, Any]], progress: Progress | None) -> tuple[int, int]:
    """(files that are as recorded, their bytes); rows of a file are looked at and not counted."""
    files = size = 0
    with ThreadPoolExecutor(READERS) as pool:
        problems = pool.map(lambda entry: _wrong(found.root, *entry), written)
        for done, (entry, problem) in enumerate(zip(written, problems, strict=True)):
            if problem is not None:
                found.problems.append(f"{entry[0]}: {problem}")
            elif recorded_rows(entry[0]) is None:
                files, size = files + 1, size + entry[1]
            if progress is not None:
                progress(done + 1, len(written))
    return files, size


def _wrong(root: Path, name: str, size: Any, sha256: Any) -> str | None:
    """How a file, or rows of one, are not as recorded; None where they are."""
    rows = recorded_rows(name)
    path = root / (name if rows is None else rows[0])
    if path.is_symlink() or not path.is_file():
        return "is missing" if not os.path.lexists(path) else "is no file"
    try:
        now, digested = _hashed(path) if rows is None else _hashed_rows(open_rows(path, rows[1]), *rows[2:])
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if now != size:
        return f"has {now} bytes, {size} were written"
    return None if digested == sha256 else "holds other bytes than were written"


def _hashed(path: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file."""
    size, digested = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            digested.update(block)
    return size, digested.hexdigest()


def _hashed_rows(rows: Rows, first: int, count: int) -> tuple[int, str]:
    return rows.header.array_bytes // rows.header.shape[0] * count, rows.sha256(first, count)


def _strays(found: Output, known: set[str]) -> Iterator[str]:
    """What lies there and no record names; beside an output that is a file, its temporary files only."""
    known |= {f"{found.prefix}{name}" for name in RECORDS}
    if not found.is_tree:
        yield from (f"{path.name}: {LEFT}" for path in leftovers(found.output))
        return
    for folder, folders, names in os.walk(found.root):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted(names + links):
            path = Path(folder, name).relative_to(found.root).as_posix()
            if path not in known and not RECORD.fullmatch(path):
                is_lock = path.startswith(".manifest.") and path.endswith(".lock")
                yield f"{path}: {LOCK if is_lock else LEFT if TEMPORARY.fullmatch(name) else UNKNOWN}"


def _other_source(found: Output, source: Path) -> list[str]:
    """How the source at hand differs from the one that was purified."""
    images = found.identity.get("images", {})
    shape = ImageShape(images.get("channels", 3), images.get("size"), clip=images.get("clip", False))
    before = found.identity.get("source", {})
    now = open_source(source, shape, before.get("column")).fingerprint()
    return [f"source: {said}" for said in changed(before, now)]
