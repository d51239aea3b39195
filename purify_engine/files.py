"""Files that survive a crash: written whole or not at all, and JSON lines that are added one at a time.

Free of torch, so that every part may use it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FEW, WAITING = 8, 16  # files that are waited for one by one; threads that wait for more
NAMED = 40  # characters of a name that a temporary one begins with: with something added, a longest name would be refused
FREE = "bytes are free"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.part")  # as `_part` names them


def write_whole(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old file or the whole new one.

    Missing folders are made. The file may be read by whom the umask lets (0644 by default), even if `write` made it private.
    `durable` waits for the disk before and after the rename, so that a power failure leaves the old file or the new one, never an
    empty one; without it only a kill is survived (for many files at once: `make_durable` when all are written). Where `write`
    raises, the old file is untouched and the temporary one removed; an OSError names `path`.
    """
    make_folder(path.parent)
    temporary = _part(path)
    try:
        with naming(path, temporary):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            allowed = temporary.stat().st_mode & 0o777
            write(temporary)
            temporary.chmod(allowed)  # safetensors replaces the file by one for its owner alone
            if durable:
                publish(temporary, path)
            else:
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, write: Callable[[Path], object]) -> None:
    """Write `path` as `write_whole` does, where nothing is there yet; what another process put there meanwhile stays."""
    temporary = _part(path)
    try:
        with naming(path, temporary):
            write(temporary)
            make_durable([temporary])
            try:
                os.link(temporary, path)
            except FileExistsError:
                return
            except OSError:  # a file system without links
                temporary.replace(path)
            _wait_for_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` as `write_whole` does, asking the file system for as little as can be: for many small files."""
    temporary = _part(path)
    with naming(path, temporary):
        descriptor = _created(temporary)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                _write_all(file, content)
            if durable:
                publish(temporary, path)
            else:
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a file that is complete to `path`, in the same folder; its content is on the disk before, its name after."""
    _wait_for_disk(temporary)
    temporary.replace(path)
    _wait_for_disk(path.parent)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `path`, then rename it: a reader sees no folder, or the whole one.

    `path` must be a new or an empty folder: OSError where it holds something by then. `write` makes each file durable itself.
    """
    make_folder(path.parent)
    temporary = _part(path)
    temporary.mkdir()
    try:
        with naming(path, temporary):
            write(temporary)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _wait_for_disk(path.parent)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Inside, an OSError that names no file, or `temporary`, which stands for `path`, names `path`; of a full disk also bytes."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            error.args = (f"{error}: {path}",)
        elif error.filename is None or (temporary is not None and str(error.filename) == str(temporary)):
            error.filename = str(path)
            if error.errno in NO_ROOM and FREE not in str(error.strerror):
                error.strerror = f"{error.strerror}{_room(path, temporary or path)}"
        raise


def make_folder(path: Path) -> None:
    """Make `path` and what is missing above it; the disk has their names before this returns."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        with suppress(PermissionError):  # to write into a folder, one need not be allowed to list it
            _wait_for_disk(path.parent)


def parts_of(path: Path) -> list[Path]:
    """The temporary files and folders of `path` that are there: being written, or left by processes that were killed."""
    return sorted(path.parent.glob(f".{glob.escape(path.name[:NAMED])}.*.part"))


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_durable(paths: Iterable[Path]) -> None:
    """Wait until the files `paths`, and the folders that name them, are on the disk.

    For many files at once, since a disk writes down what several wait for in the time of one.
    """
    paths = list(paths)
    if len(paths) <= FEW:
        for path in paths:
            _wait_for_disk(path)
    else:
        with ThreadPoolExecutor(WAITING, "wait-for-disk") as waiting:
            list(waiting.map(_wait_for_disk, paths))
    for path in sorted({path.parent for path in paths}):
        _wait_for_disk(path)


def append_json_line(path: Path, record: Any) -> None:
    """Add `record` to a file of JSON lines, on the disk before this returns; missing folders are made.

    Where a kill cut the last line short, the record begins a line of its own: nothing that is there is removed. Where the line
    cannot be written whole (OSError), nothing of it is left.
    """
    make_folder(path.parent)
    line = json.dumps(record).encode() + b"\n"
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            with naming(path):
                _write_all(file, line if _ends_a_line(file) else b"\n" + line)
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
    if end == 0:  # it may have no name on the disk yet
        _wait_for_disk(path.parent)


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock file `path`, which is made; None where a process that lives holds it.

    The lock is given back by `unlock`, or with its process, however that ends. On a file system without locks it is a mere file.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            warnings.warn(f"{path} cannot be locked, so that two runs at once would not notice: {error.strerror}", stacklevel=2)
            return descriptor
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # it was removed by the one that had held it


def unlock(path: Path, descriptor: int) -> None:
    """Give back what `lock` gave; the file is removed."""
    try:
        with suppress(OSError):
            path.unlink()
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[Any]:
    """The records of a file of JSON lines, in order. FileNotFoundError where there is no file.

    A last line that was cut short is no record: that is what a kill leaves. Any other line that is no JSON is left out with a
    warning that names it.
    """
    return [record for _, record in located_json_lines(path)]


def located_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The same one by one, in the memory of one, each with the byte at which its line begins."""
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    yield offset, json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):
                    warnings.warn(f"line {number} of {path} is no JSON and is left out: {line[:40]!r}", stacklevel=2)
            offset += len(line)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name[:NAMED]}.{secrets.token_hex(4)}.part")


def _created(path: Path) -> int:
    """A descriptor of the file `path`, which did not exist; missing folders are made."""
    try:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileNotFoundError:
        make_folder(path.parent)
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)


def _write_all(file: Any, content: bytes) -> None:
    """On a disk that is nearly full one call may write a part of it."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _ends_a_line(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _room(path: Path, written: Path) -> str:
    """How much of a file is there, and how much more fits."""
    with suppress(OSError):
        there = written.stat().st_size if written.is_file() else 0
        return f" after {there} bytes of it, {shutil.disk_usage(path.parent).free} {FREE}"
    return ""
