"""A text file with the path of an image a line, relative to the folder that it lies in: a part of a folder, or of several."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

from purify_engine.config import require
from purify_engine.data.items import ImageShape
from purify_engine.data.sources.files import Files
from purify_engine.data.sources.names import Names, Skips


class ListSource(Files):
    """The images that a list names, in its order; whatever their names end in.

    Their names in the output are the relative paths. One that leads out of the list's folder, or is absolute, is named by its
    absolute path without the slash in front, so that nothing is written beside the output.
    """

    kind, called = "list", "a list of images"

    def __init__(self, path: Path, shape: ImageShape) -> None:
        super().__init__(path, shape)
        self.folder, self.lines = path.parent, Names()
        names, skips, seen = Names(), Skips(), set[str]()
        self.leaves_its_folder = False
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                written = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip(b"\r\n"))
                if not written:
                    continue
                name = self._named(written)
                if name in seen:
                    skips.append(written, f"line {number} names an image that is listed before")
                    continue
                seen.add(name)
                names.append(name)
                self.lines.append(written)
        self.names, self.skipped = names, skips
        require(len(names) > 0, "source", "a list with the path of an image a line", str(path))
        if not self.leaves_its_folder:
            self._number_classes()

    def path(self, id: int) -> Path:
        return self.folder / self.lines[id]

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "names": self.lines.sha256()}

    def _named(self, written: str) -> str:
        """The path of an image below the output."""
        name = posixpath.normpath(written)
        if name.startswith("/") or name.split("/")[0] in ("..", "."):
            self.leaves_its_folder = True
            name = posixpath.normpath(posixpath.join(self.folder.resolve().as_posix(), name)).lstrip("/") or "/"
        return name
