"""Turns at one GPU for processes that run side by side: all may prepare at once; one at a time measures, while none prepares."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Turns:
    """Locks on files of a folder that the processes share; a folder of its own where a process is the only one.

    place: from 0, each taken once; those of lower place measure first. A process that ends, however it ends, gives back what it
    held.
    """

    def __init__(self, folder: Path | None = None, place: int = 0) -> None:
        self.shared = folder is not None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="purify-turns-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.place = place
        self._own_place = (self.folder / f"place-{place}").open("w")
        fcntl.flock(self._own_place, fcntl.LOCK_EX)  # until this process has measured

    def preparing(self) -> contextlib.AbstractContextManager[None]:
        """While nothing is measured: compiling, loading; many at a time."""
        return self._locked("measuring", fcntl.LOCK_SH)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """While no other process prepares or measures, after those of lower place."""
        for place in range(self.place):
            with self._locked(f"place-{place}", fcntl.LOCK_SH):
                pass
        try:
            with self._locked("measuring", fcntl.LOCK_EX):
                yield
        finally:
            self._own_place.close()

    def choosing(self) -> contextlib.AbstractContextManager[None]:
        """While no other process chooses: what a library times to choose by, with the preparing of others around it."""
        return self._locked("choosing", fcntl.LOCK_EX)

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        with (self.folder / name).open("w") as file:
            fcntl.flock(file, how)
            yield  # closing the file unlocks it
