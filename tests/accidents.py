"""Accidents at the N-th call that reaches an output's folder: the process is killed, the disk full or broken, the power fails.

A process is "killed" by an exception that no `except Exception` sees, and whatever it does to the folder afterwards fails, too.
Where the power fails, what no fsync had waited for is taken back: a file's content beyond what was on the disk, and names that
were given, changed or taken away since their folder was last waited for. Calls are seen by an audit hook, and fsync by a patch;
single writes are not: `tests/soak/` has them, by strace.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEEN = {"open": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.chmod": (0,), "os.rmdir": (0,)}
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}
KINDS = ("killed", "power", *ERRORS)

_layers: list[Accident] = []


class Killed(BaseException):
    """The process is no more."""


class Accident:
    """`with Accident(folder, 7, "full"):` the 7th call fails. `calls` says what was called; `happened`, whether it came to it."""

    def __init__(self, folder: Path, at: int | None = None, kind: str = "killed") -> None:
        self.folder, self.at, self.kind = folder.resolve(), at, kind
        self.calls: list[tuple[str, str]] = []
        self.happened = False
        self._lock = threading.RLock()
        self._on_disk: dict[int, int] = {}  # inode -> bytes
        self._names: dict[Path, dict[str, int]] = {}  # folder -> name -> inode
        self._held: dict[int, int] = {}  # inode -> a descriptor of what lost its name: it is not used again
        self._inside = threading.local()

    def __enter__(self) -> Accident:
        _install()
        if self.folder.exists():  # what is there has long been on the disk
            for path in [self.folder, *self.folder.rglob("*")]:
                self._wait_for(path)
        _layers.append(self)
        self._fsync, os.fsync = os.fsync, self._noted_fsync
        return self

    def __exit__(self, *error: Any) -> None:
        os.fsync = self._fsync
        _layers.remove(self)
        if self.happened and self.kind == "power":
            self._fail_power(self.folder)
        for descriptor in self._held.values():
            os.close(descriptor)

    def see(self, event: str, paths: tuple[str, ...]) -> None:
        """A call that reaches the folder: note it, or let it fail."""
        if getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            with self._lock:
                self._count(event, paths)
                if event in ("os.rename", "os.remove"):
                    for path in paths:
                        self._hold(Path(path))
        finally:
            self._inside.busy = False

    def _count(self, event: str, paths: tuple[str, ...]) -> None:
        if self.happened and self.kind not in ERRORS:
            raise Killed
        self.calls.append((event, paths[-1]))
        if len(self.calls) == self.at:
            self.happened = True
            if self.kind in ERRORS:
                code = ERRORS[self.kind]
                raise OSError(code, os.strerror(code), paths[0])
            raise Killed

    def _noted_fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if self.folder in (path, *path.parents):
            self.see("fsync", (str(path),))
            self._wait_for(path)  # which is all that is done: a disk takes its time
            return
        self._fsync(descriptor)

    def _wait_for(self, path: Path) -> None:
        with self._lock:
            if path.is_dir():
                self._names[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
            else:
                self._on_disk[path.stat().st_ino] = path.stat().st_size

    def _hold(self, path: Path) -> None:
        if path.is_file():
            self._held.setdefault(path.stat().st_ino, os.open(path, os.O_RDONLY))

    def _fail_power(self, folder: Path) -> None:
        names = self._names.get(folder, {})
        for path in {*folder.iterdir(), *(folder / name for name in names)}:
            inode = names.get(path.name)
            if path.is_dir():
                _remove(path) if inode is None else self._fail_power(path)
            elif path.exists() and path.stat().st_ino == inode:
                os.truncate(path, min(path.stat().st_size, self._on_disk.get(inode, 0)))
            else:
                path.unlink(missing_ok=True)
                if inode in self._held:
                    path.write_bytes(os.pread(self._held[inode], self._on_disk.get(inode, 0), 0))


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        _remove(path) if path.is_dir() else path.unlink()
    folder.rmdir()


def _install() -> None:
    """Hooks cannot be taken away: one for all, which asks nothing while there is no accident."""
    if not getattr(sys, "_purify_accidents", False):
        sys._purify_accidents = True  # type: ignore[attr-defined]
        sys.addaudithook(_see)


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    if not _layers or event not in SEEN:
        return
    paths = tuple(os.path.abspath(os.fsdecode(arguments[place])) for place in SEEN[event] if _is_path(arguments[place]))  # noqa: PTH100
    for layer in list(_layers):
        if any(layer.folder in (Path(path), *Path(path).parents) for path in paths):
            layer.see(event, paths)


def _is_path(argument: Any) -> bool:
    return isinstance(argument, str | bytes | os.PathLike)


def every_call(folder: Path, run: Callable[[], object]) -> list[tuple[str, str]]:
    """The calls of `run` that reach `folder`."""
    with Accident(folder) as accident:
        run()
    return accident.calls
