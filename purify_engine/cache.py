"""Published checkpoints that were converted on the fly, kept by what they hold: `$XDG_CACHE_HOME/purify-engine/converted`.

An entry is a purifier's folder, named by the hash of the files' bytes, of what was stated of them, and this release. Of several
processes that want one, the first makes it and the others wait. An entry whose bytes are not those written is made again.
The folder may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from purify_engine import __version__
from purify_engine.config import to_dict
from purify_engine.conversion import AS_IT_IS, Stated, convert, tell
from purify_engine.files import parts_of, write_folder, write_text
from purify_engine.folders import read_config
from purify_engine.models.checkpoints.network import sha256
from purify_engine.models.checkpoints.reading import located

RECORD = "entry.json"  # of an entry: the hash of each of its other files


def cached(source: Path, stated: Stated = AS_IT_IS) -> Path:
    """The folder that `source` is converted into: made where it is not there, or is damaged."""
    files = {path.name: sha256(path) for path in located(source)}  # names count: RobustBench's tell a normalisation
    asked = json.dumps({"release": __version__, "files": files, "stated": to_dict(stated)}, sort_keys=True)
    entry = folder() / hashlib.sha256(asked.encode()).hexdigest()[:40]
    if not is_whole(entry):
        with _alone(entry):
            if not is_whole(entry):  # else another process has made it meanwhile
                _make(source, entry, stated)
    for part, origin in read_config(entry, needed=())["origin"].items():
        tell(f"{origin['file']} as {part}", origin["says"])
    return entry


def folder() -> Path:
    """Where entries lie, by the XDG base directory specification: a relative path in the variable counts as none."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a user without an entry, as in many containers, and no HOME
        raise ValueError(f"XDG_CACHE_HOME must be an absolute path where there is no home folder, got {str(named)!r}") from None
    return base / "purify-engine" / "converted"


def is_whole(entry: Path) -> bool:
    """Whether every file of an entry is there with the bytes that were written."""
    try:
        record = json.loads((entry / RECORD).read_text(encoding="utf-8"))
        return bool(record) and all(sha256(entry / name) == known for name, known in record.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make(source: Path, entry: Path, stated: Stated) -> None:
    """Convert into a folder that appears whole; a kill leaves nothing that looks like one."""

    def fill(folder: Path) -> None:
        convert(source, folder, stated=stated)
        record = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")

    for left in (entry, *parts_of(entry)):  # a damaged entry, and what processes left that were killed
        shutil.rmtree(left, ignore_errors=True)
    write_folder(entry, fill)


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """One process at a time; the lock of one that ends, however it ends, is free."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(f"{entry.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
