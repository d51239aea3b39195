"""The records of a run: what it is (run.json), which parts are committed (manifest.jsonl), what failed and what was skipped.

A run is resumed by the same command: what decides its bytes, its identity, must be the same, and what was measured once, such as
the micro-batch, is taken from run.json. A part is committed by one line of manifest.jsonl, on the disk before the next one is;
the files that it names were on the disk before it. While a run goes on the lines stand in the order of their commits; in the end
they are sorted by part, so that the finished file is the same whatever the order was.

Each of several shares of a run (shares.py) commits to a manifest of its own, manifest.I-of-N.jsonl, and all read all of them. The
share that finds every part committed ends the run: it writes them into manifest.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from purify_engine.data.items import Sink, Skipped
from purify_engine.data.manifest_files import PAUSE, is_locked, lines_that_count, lock_of, manifests_of, shares_of
from purify_engine.data.shares import WHOLE, Share
from purify_engine.files import (
    NAMED,
    TEMPORARY,
    append_json_line,
    lock,
    parts_of,
    unlock,
    write_text,
    write_whole,
)

Record: TypeAlias = dict[str, Any]  # of a part: part, first, count, ok, failed, files, sizes, micro_batch, identity, versions

RECORDS = ("run.json", "manifest.jsonl", "failed.jsonl", "skipped.jsonl", "events.jsonl", "report.html")
BEFORE_RUN = re.compile(rf"\.(run|manifest)\..*\.lock|(skipped|events)\..*|{TEMPORARY.pattern}")  # made before run.json is
FAILURE = ("id", "name", "reason")  # of a record's failed images


class Manifest:
    """`with Manifest(sink) as manifest:` the records beside an output, which no other run touches from `begin` on.

    share: other shares of the same run may, each in a manifest of its own.
    """

    def __init__(self, sink: Sink, share: Share = WHOLE) -> None:
        self.sink, self.share = sink, share
        self.path, self.whole_path = sink.record(share.record("manifest.jsonl")), sink.record("manifest.jsonl")
        self.run_path, self.lock_path = sink.record("run.json"), lock_of(self.path)
        self._held: dict[Path, int] = {}  # locks

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        while self._held:
            unlock(*self._held.popitem())

    def begin(
        self,
        identity: Record,
        pinned: Record | Callable[[], Record],
        skipped: Iterable[Skipped],
        about: Mapping[str, Any] | None = None,
    ) -> Record:
        """Start a run, or go on with the one that is there: what it had pinned, in place of `pinned`, or of what that returns.

        about: further facts for run.json, which decide nothing.
        ValueError where the run that is there has another identity, with what differs, where another process works on it, or
        where something else is in the way. Temporary files that a killed run left are removed.
        """
        with self._in_turn():
            return self._begun(identity, pinned, skipped, about or {})

    def _begun(
        self, identity: Record, pinned: Record | Callable[[], Record], skipped: Iterable[Skipped], about: Mapping[str, Any]
    ) -> Record:
        if not self.run_path.exists():
            self.refuse_what_is_in_the_way()
            self.sink.prepare()
        self._lock()
        if self.share.is_whole:
            remove_leftovers(self.sink)
        if self.run_path.exists():
            return self._same_run(identity)["pinned"]
        write_record(self.sink.record("skipped.jsonl"), [entry._asdict() for entry in skipped])
        chosen = pinned() if callable(pinned) else pinned
        write_record(self.run_path, {**about, "identity": identity, "identity_sha256": digest(identity), "pinned": chosen})
        return chosen

    def refuse_what_is_in_the_way(self) -> None:
        """ValueError where the output holds something, though no run of ours began it."""
        if not self.run_path.exists():
            refuse_what_is_there(self.sink)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Shares begin one after another, so that the first one's run.json is all others'."""
        if self.share.is_whole:
            yield
            return
        path = lock_of(self.run_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        while (held := lock(path)) is None:
            time.sleep(PAUSE)
        try:
            yield
        finally:
            unlock(path, held)

    def _lock(self) -> None:
        if not self._take(self.path) or self._has_rivals():
            said = "wait for it, or choose another output"
            raise ValueError(f"output must not be in use by a run that goes on, got {str(self.sink.output)!r}: {said}")

    def _take(self, path: Path) -> bool:
        """Hold the lock of a manifest until the end."""
        held = lock(lock_of(path))
        if held is not None:
            self._held[lock_of(path)] = held
        return held is not None

    def _has_rivals(self) -> bool:
        """Whether a run of the whole goes on beside this share, or shares beside the run of the whole."""
        rivals = shares_of(self.whole_path) if self.share.is_whole else [self.whole_path]
        return any(is_locked(lock_of(path)) for path in rivals)

    def ends(self, parts: int) -> bool:
        """Whether this process ends the run of so many parts: from then on no other does."""
        return self.share.is_whole or (len(self.done()) == parts and self._take(self.whole_path))

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
        return map(json.loads, lines_that_count(self.whole_path))

    def commit(self, record: Record) -> None:
        """A part is done: its files are on the disk already."""
        append_json_line(self.path, record)

    def finish(self, told: Mapping[str, Any]) -> None:
        """All that can be done is done: sort the lines, list the failures, and add `told` to run.json.

        A share notes `told` in a run.json of its own, and does the rest only where it `ends` the run.
        """
        if not self.share.is_whole:
            write_record(self.sink.record(self.share.record("run.json")), told)
        if lock_of(self.whole_path) not in self._held:
            return
        if manifests_of(self.whole_path):
            write_lines(self.whole_path, lines_that_count(self.whole_path))
        failures = (dict(zip(FAILURE, failure, strict=True)) for record in self.records() for failure in record["failed"])
        write_lines(self.sink.record("failed.jsonl"), (json.dumps(failure) + "\n" for failure in failures))
        run = json.loads(self.run_path.read_text())
        write_record(self.run_path, {**run, **told})
        self._tidy()

    def _tidy(self) -> None:
        """Remove what shares left, now that manifest.jsonl says it all; where one of them is still there, a later run does."""
        shares = shares_of(self.whole_path)
        if not any(is_locked(lock_of(path)) for path in shares if path != self.path):
            for path in shares:
                path.unlink(missing_ok=True)
            if not self.share.is_whole:
                remove_leftovers(self.sink)


def refuse_what_is_there(sink: Sink) -> None:
    """ValueError where the output holds something, though no run of ours began it."""
    output = sink.output
    is_other = output.is_dir() and any(not BEFORE_RUN.fullmatch(path.name) for path in output.iterdir())
    if is_other and not sink.record("run.json").exists():  # which another share may have written just now
        raise ValueError(f"output must be a new or an empty folder, or one that this command began, got {str(output)!r}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a file that does not exist yet, or one that this command began, got {str(output)!r}")


def leftovers(output: Path) -> Iterator[Path]:
    """Temporary files and folders of an output whose writer has ended: those within a folder, those beside a file."""
    if output.is_dir():
        for folder, folders, names in os.walk(output):
            yield from (Path(folder, name) for name in sorted(folders + names) if TEMPORARY.fullmatch(name))
        return
    rows = f".{output.name}.part"  # of an array
    for name in (output.name, rows, *(f"{output.stem}.{record}" for record in RECORDS)):  # and of no other output there
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
