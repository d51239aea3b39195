"""The records of a run: what it is (run.json), which parts are committed (manifest.jsonl), what failed and what was skipped.

A run is resumed by the same command: what decides its bytes, its identity, must be the same, and what was measured once, such as
the micro-batch, is taken from run.json. A part is committed by one line of manifest.jsonl, on the disk before the next one is;
the files that it names were on the disk before it. While a run goes on the lines stand in the order of their commits; in the end
they are sorted by part, so that the finished file is the same whatever the order was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from purify_engine.data.items import Sink, Skipped
from purify_engine.files import append_json_line, located_json_lines, write_text, write_whole

Record: TypeAlias = dict[str, Any]  # of a part: part, first, count, ok, failed, files, sizes, micro_batch, identity, versions

FAILURE = ("id", "name", "reason")  # of a record's failed images


class Manifest:
    """The records beside an output."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.path = sink.record("manifest.jsonl")
        self.run_path = sink.record("run.json")

    def begin(self, identity: Record, pinned: Record, skipped: Iterable[Skipped]) -> Record:
        """Start a run, or go on with the one that is there: what it had pinned, in place of `pinned`.

        ValueError where the run that is there has another identity, with what differs, or where the output is in the way.
        """
        if self.run_path.exists():
            run = json.loads(self.run_path.read_text())
            differences = changed(run["identity"], identity)
            if differences:
                said = "; ".join(differences)
                raise ValueError(f"output must be of the same run to be resumed, got {str(self.sink.output)!r}, where {said}")
            return run["pinned"]
        self.refuse_what_is_in_the_way()
        self.sink.prepare()
        write_record(self.sink.record("skipped.jsonl"), [entry._asdict() for entry in skipped])
        write_record(self.run_path, {"identity": identity, "identity_sha256": digest(identity), "pinned": pinned})
        return pinned

    def refuse_what_is_in_the_way(self) -> None:
        """ValueError where the output holds something, though no run of ours began it."""
        if not self.run_path.exists():
            refuse_what_is_there(self.sink)

    def done(self) -> dict[int, int]:
        """The committed parts, each with how many of its images failed."""
        return {record["part"]: len(record["failed"]) for record in self.records()}

    def records(self) -> Iterator[Record]:
        """Of the committed parts, the last one of each, sorted by part; in the memory of one."""
        return map(json.loads, self._lines())

    def _lines(self) -> Iterator[str]:
        if not self.path.exists():
            return
        latest = {record["part"]: offset for offset, record in located_json_lines(self.path)}
        with self.path.open(encoding="ascii") as file:
            for _, offset in sorted(latest.items()):
                file.seek(offset)
                yield file.readline()

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


def refuse_what_is_there(sink: Sink) -> None:
    """ValueError where the output holds something, though no run of ours began it."""
    output = sink.output
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"output must be a new or an empty folder, or one that this command began, got {str(output)!r}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a file that does not exist yet, or one that this command began, got {str(output)!r}")


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
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(lines)

    write_whole(path, fill)


def write_record(path: Path, content: Any) -> None:
    """`content` as JSON, or one JSON line per entry where the name ends in .jsonl; appears whole or not at all."""
    lines = [json.dumps(entry) for entry in content] if path.suffix == ".jsonl" else [json.dumps(content, indent=2)]
    write_text(path, "".join(f"{line}\n" for line in lines))
