"""The records of a run: what it is (run.json), which parts are committed (manifest.jsonl), what failed and what was skipped.

A run is resumed by the same command: what decides its bytes, its identity, must be the same, and what was measured once, such as
the micro-batch, is taken from run.json. A part is committed by one line of manifest.jsonl, on the disk before the next one is;
the files that it names were on the disk before it. While a run goes on the lines stand in the order of their commits; in the end
they are sorted by part, so that the finished file is the same whatever the order was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from purify_engine.data.items import Sink, Skipped
from purify_engine.files import (
    NAMED,
    TEMPORARY,
    append_json_line,
    located_json_lines,
    lock,
    parts_of,
    unlock,
    write_text,
    write_whole,
)

Record: TypeAlias = dict[str, Any]  # of a part: part, first, count, ok, failed, files, sizes, micro_batch, identity, versions

RECORDS = ("run.json", "manifest.jsonl", "failed.jsonl", "skipped.jsonl", "events.jsonl", "report.html")
FAILURE = ("id", "name", "reason")  # of a record's failed images


class Manifest:
    """`with Manifest(sink) as manifest:` the records beside an output, which no other run touches from `begin` on."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.path = sink.record("manifest.jsonl")
        self.run_path = sink.record("run.json")
        self.lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._held: int | None = None

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        if self._held is not None:
            unlock(self.lock_path, self._held)
            self._held = None

    def begin(self, identity: Record, pinned: Record, skipped: Iterable[Skipped]) -> Record:
        """Start a run, or go on with the one that is there: what it had pinned, in place of `pinned`.

        ValueError where the run that is there has another identity, with what differs, where another process works on it, or
        where something else is in the way. Temporary files that a killed run left are removed.
        """
        if not self.run_path.exists():
            self.refuse_what_is_in_the_way()
            self.sink.prepare()
        self._lock()
        remove_leftovers(self.sink)
        if self.run_path.exists():
            return self._same_run(identity)["pinned"]
        write_record(self.sink.record("skipped.jsonl"), [entry._asdict() for entry in skipped])
        write_record(self.run_path, {"identity": identity, "identity_sha256": digest(identity), "pinned": pinned})
        return pinned

    def refuse_what_is_in_the_way(self) -> None:
        """ValueError where the output holds something, though no run of ours began it."""
        if not self.run_path.exists():
            refuse_what_is_there(self.sink, self.lock_path.name)

    def _lock(self) -> None:
        self._held = lock(self.lock_path)
        if self._held is None:
            said = "wait for it, or choose another output"
            raise ValueError(f"output must not be in use by a run that goes on, got {str(self.sink.output)!r}: {said}")

    def _same_run(self, identity: Record) -> Record:
        run = read_run(self.run_path)
        differences = changed(run["identity"], identity)
        if differences:
            said = f"{'; '.join(differences)}. Repeat its command, or choose another output"
            raise ValueError(f"output must be of the same run to be resumed, got {str(self.sink.output)!r}, where {said}")
        return run

    def done(self) -> dict[int, int]:
        """The committed parts, each with how many of its images failed."""
        return {record["part"]: len(record["failed"]) for record in self.records()}

    def records(self) -> Iterator[Record]:
        """Of the committed parts, the last one of each, sorted by part; in the memory of one."""
        return map(json.loads, self._lines())

    def _lines(self) -> Iterator[str]:
        if not self.path.exists():
            return
        latest: dict[int, int] = {}
        for offset, record in located_json_lines(self.path):
            if is_record(record):
                latest[record["part"]] = offset
            else:
                warnings.warn(f"{self.path} holds a line that is no record of a part; such a part is done again", stacklevel=2)
        with self.path.open("rb") as file:
            for _, offset in sorted(latest.items()):
                file.seek(offset)
                yield file.readline().decode().rstrip("\n") + "\n"  # a kill may have cut the end of a last line alone

    def commit(self, record: Record) -> None:
        """A part is done: its files are on the disk already."""
        append_json_line(self.path, record)

    def finish(self, told: Mapping[str, Any]) -> None:
        """All that can be done is done: sort the lines, list the failures, and add `told` to run.json."""
        if self.path.exists():
            write_lines(self.path, self._lines())
        failures = (dict(zip(FAILURE, failure, strict=True)) for record in self.records() for failure in record["failed"])
        write_lines(self.sink.record("failed.jsonl"), (json.dumps(failure) + "\n" for failure in failures))
        run = json.loads(self.run_path.read_text())
        write_record(self.run_path, {**run, **told})


def refuse_what_is_there(sink: Sink, lock_name: str) -> None:
    """ValueError where the output holds something, though no run of ours began it."""
    output = sink.output
    ours = {lock_name, *(sink.record(name).name for name in ("skipped.jsonl", "events.jsonl"))}  # which may come before run.json
    if output.is_dir() and any(path.name not in ours and not TEMPORARY.fullmatch(path.name) for path in output.iterdir()):
        raise ValueError(f"output must be a new or an empty folder, or one that this command began, got {str(output)!r}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a file that does not exist yet, or one that this command began, got {str(output)!r}")


def leftovers(output: Path) -> Iterator[Path]:
    """Temporary files and folders of an output, which nobody writes any more: those within a folder, those beside a file."""
    if output.is_dir():
        for folder, folders, names in os.walk(output):
            yield from (Path(folder, name) for name in sorted(folders + names) if TEMPORARY.fullmatch(name))
        return
    for name in (output.name, *(f"{output.stem}.{record}" for record in RECORDS)):  # and of no other output there
        yield from (path for path in parts_of(output.with_name(name)) if path.name.count(".") == name[:NAMED].count(".") + 3)


def remove_leftovers(sink: Sink) -> None:
    """Of runs that were killed."""
    for path in list(leftovers(sink.output)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_run(path: Path) -> Record:
    """run.json; ValueError where it is none."""
    try:
        run = json.loads(path.read_bytes())
        if run["identity_sha256"] == digest(run["identity"]) and isinstance(run["pinned"], dict):
            return dict(run)
        reason = "its identity is not the one that the run began with"
    except (ValueError, TypeError, KeyError) as broken:
        reason = f"{type(broken).__name__}: {broken}"
    raise ValueError(f"output must have the run.json of its run to be resumed, got {str(path)!r}, which is damaged: {reason}")


def is_record(record: Any) -> bool:
    """Whether a line of the manifest is of the shape that a part's record has."""
    if not isinstance(record, dict):
        return False
    counts = all(type(record.get(key)) is int and record[key] >= 0 for key in ("part", "first", "count", "ok"))
    lists = all(isinstance(record.get(key), list) and all(map(_is_triple, record[key])) for key in ("failed", "files"))
    return counts and lists and isinstance(record.get("sizes"), dict)


def _is_triple(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested settings differ: "purifier.t_star was 150 and is 100"."""
    differences: list[str] = []
    plain = json.loads(json.dumps(now))
    for name in dict.fromkeys([*before, *plain]):
        old, new = before.get(name), plain.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += changed(old, new, f"{prefix}{name}.")
        elif old != new:
            differences.append(f"{prefix}{name} was {old!r} and is {new!r}")
    return differences


def digest(identity: Mapping[str, Any]) -> str:
    """One hash of plain data."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """The lines, each with its end, as one file that appears whole or not at all."""

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)

    write_whole(path, fill)


def write_record(path: Path, content: Any) -> None:
    """`content` as JSON, or one JSON line per entry where the name ends in .jsonl; appears whole or not at all."""
    lines = [json.dumps(entry) for entry in content] if path.suffix == ".jsonl" else [json.dumps(content, indent=2)]
    write_text(path, "".join(f"{line}\n" for line in lines))
