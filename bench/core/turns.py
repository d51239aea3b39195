"""Turns at one GPU for processes that run side by side: all may prepare at once; one at a time measures, while none prepares."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Turns:
    """Locks on files of a folder that the processes share; a folder of one's own where there is nobody to wait for.

    A process that ends, however it ends, gives back what it held.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="purify-turns-"))
        self.folder.mkdir(parents=True, exist_ok=True)

    def preparing(self) -> contextlib.AbstractContextManager[None]:
        """While nothing is measured: compiling, loading; many at a time."""
        return self._locked("measuring", fcntl.LOCK_SH)

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        """While no other process prepares or measures."""
        return self._locked("measuring", fcntl.LOCK_EX)

    def choosing(self) -> contextlib.AbstractContextManager[None]:
        """While no other process chooses: what a library times to choose by, with the preparing of others around it."""
        return self._locked("choosing", fcntl.LOCK_EX)

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        with (self.folder / name).open("w") as file:
            fcntl.flock(file, how)
            yield  # closing the file unlocks it
