"""What an output must be after an accident, and once the run was resumed: held against the output of a run that had none.

Nothing here asks the package what it thinks of its output: files are compared with files, byte by byte.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

RECORDS = ("run.json", "manifest.jsonl", "failed.jsonl", "skipped.jsonl")
TELLING = ("events.jsonl", "report.html", "progress.json")  # when and how fast it went: no two runs are alike
TIMES = ("seconds", "images_per_second", "started", "ended", "finished", "resumed", "peak_memory_bytes", "output")  # of run.json

ROWS = re.compile(r"(?P<file>.*)\[(?P<first>\d+):(?P<end>\d+)\]")


def files(root: Path) -> dict[str, bytes]:
    """Every file below `root` by its relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def identical(root: Path, reference: Path) -> list[str]:
    """How the finished output below `root` differs from `reference`; what only tells of the run is left out."""
    ours, theirs = (_comparable(files(folder)) for folder in (root, reference))
    missing = [f"{name} is lost" for name in theirs if name not in ours]
    strays = [f"{name} is left over" for name in ours if name not in theirs]
    return missing + strays + [f"{name} is another" for name in ours if name in theirs and ours[name] != theirs[name]]


def _comparable(tree: dict[str, bytes]) -> dict[str, bytes]:
    return {name: _timeless(name, content) for name, content in tree.items() if not _tells(name)}


def _tells(name: str) -> bool:
    return any(name == record or name.endswith(f".{record}") for record in TELLING)


def _timeless(name: str, content: bytes) -> bytes:
    if name != "run.json" and not name.endswith(".run.json"):
        return content
    return json.dumps({key: value for key, value in json.loads(content).items() if key not in TIMES}).encode()


def damage(root: Path, reference: Path) -> list[str]:
    """What an accident left in `root` that it must not: files that are torn, records of what is not there, ids recorded twice.

    A file under its final name is whole: only temporary ones (`.NAME.*.part`) may be anything.
    """
    ours, theirs = files(root), files(reference)
    final = {name: content for name, content in ours.items() if not Path(name).name.endswith(".part")}
    torn = [f"{name} is torn" for name, content in final.items() if not _is_record(name) and content != theirs.get(name)]
    lines = [line for name, content in final.items() if name.endswith("manifest.jsonl") for line in content.splitlines()]
    return torn + _broken_promises([record for line in lines if (record := _parsed(line))], ours, theirs)


def _is_record(name: str) -> bool:
    return any(name == record or name.endswith(f".{record}") for record in (*RECORDS, *TELLING, "lock"))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None  # a line that was cut short promises nothing


def _broken_promises(records: list[dict[str, Any]], ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    named = [file for record in records for file, *_ in record["files"]]
    lost = [
        f"{file} is recorded and not there"
        for file in named
        if not _content(file, ours) or _content(file, ours) != _content(file, theirs)
    ]
    ids = Counter(id for record in records for id in range(record["first"], record["first"] + record["count"]))
    return lost + [f"item {id} has {count} records" for id, count in ids.items() if count > 1]


def _content(name: str, tree: dict[str, bytes]) -> bytes | None:
    """Of a file of that name; of rows of an array, "clean.npy[4:8]", in the finished file or the one that collects them."""
    rows = ROWS.fullmatch(name)
    if rows is None:
        return tree.get(name)
    whole = tree.get(rows["file"], tree.get(f".{rows['file']}.part"))
    return None if whole is None else np.load(io.BytesIO(whole))[int(rows["first"]) : int(rows["end"])].tobytes()
