"""Sinks as one might write them: the tests of crashes must find each of them out."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from purify_engine.data.items import Written
from purify_engine.data.sinks import FolderSink


class InPlace(FolderSink):
    """Files grow under their own names."""

    def write(self, part, outcomes):
        return [self.put(self.output / item.name, item.name, encoded) for item, encoded in outcomes], []

    def put(self, path, name, content):
        path.parent.mkdir(exist_ok=True)
        for half, mode in ((content[: len(content) // 2], "wb"), (content[len(content) // 2 :], "ab")):
            with path.open(mode) as file:
                file.write(half)
                file.flush()
                os.fsync(file.fileno())
        return Written(name, len(content), hashlib.sha256(content).hexdigest())


class WithoutFsync(InPlace):
    """Files appear by rename, before the disk has them; so does the part's record."""

    def put(self, path, name, content):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_bytes(content)
        temporary.replace(path)
        return Written(name, len(content), hashlib.sha256(content).hexdigest())


class RecordedFirst(WithoutFsync):
    """A part is said to be done, and its last file is written when the next one is."""

    waiting: tuple[Path, str, bytes] | None = None

    def write(self, part, outcomes):
        if self.waiting is not None:
            super().put(*self.waiting)
        return super().write(part, outcomes)

    def assemble(self, *parts):
        super().put(*self.waiting)
        return super().assemble(*parts)

    def put(self, path, name, content):
        if name.endswith(("1.png", "3.png", "5.png", "7.png")):
            self.waiting = path, name, content
            return Written(name, len(content), hashlib.sha256(content).hexdigest())
        return super().put(path, name, content)


CARELESS = {"in place": InPlace, "without fsync": WithoutFsync, "recorded first": RecordedFirst}
