"""A million names, and what was skipped, in little memory."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from typing import overload

from purify_engine.data.items import Skipped


class Names(Sequence[str]):
    """Names of files one after another in one block of bytes: a tenth of what a list of them takes."""

    def __init__(self) -> None:
        self.block, self.ends = bytearray(), array("Q")

    def append(self, name: str) -> None:
        self.block += os.fsencode(name)  # names that are no UTF-8 keep their bytes
        self.ends.append(len(self.block))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return os.fsdecode(bytes(self.block[self.ends[index - 1] if index else 0 : self.ends[index]]))

    def sha256(self) -> str:
        """Differs where the names, or their order, do."""
        return hashlib.sha256(self.ends.tobytes() + self.block).hexdigest()


class Skips(Sequence[Skipped]):
    """Names with reasons; there are many names and few reasons."""

    def __init__(self) -> None:
        self.names, self.reasons = Names(), list[str]()

    def append(self, name: str, reason: str) -> None:
        self.names.append(name)
        self.reasons.append(reason)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Skipped: ...
    @overload
    def __getitem__(self, index: slice) -> list[Skipped]: ...
    def __getitem__(self, index: int | slice) -> Skipped | list[Skipped]:
        if isinstance(index, slice):
            return [Skipped(*both) for both in zip(self.names[index], self.reasons[index], strict=True)]
        return Skipped(self.names[index], self.reasons[index])
