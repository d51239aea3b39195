"""A folder of images: every file below it whose name ends as images' do, in the order of the relative paths.

Nothing that lies there is passed over without a word. Hidden files and folders, and what is neither a file nor a folder, are
skipped; links to files are followed, links to folders are not, so that nothing is read twice and no circle is walked. A folder
that cannot be read counts as one item that fails, since images may be in it; so does an image's link that leads nowhere.
"""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from purify_engine.config import require
from purify_engine.data.encoded import kind_of
from purify_engine.data.items import ImageShape, raise_passing
from purify_engine.data.pixels import SUFFIXES
from purify_engine.data.sources.files import Files
from purify_engine.data.sources.names import Names, Skips

RESOURCE_FORKS = "__MACOSX"
NO_IMAGE = "its name does not end as an image's does"

Found: TypeAlias = "tuple[str, str | None]"  # a relative path, and why it is skipped; None for an item


class FolderSource(Files):
    """Every image below a folder."""

    kind, called = "folder", "an image folder"

    def __init__(self, root: Path, shape: ImageShape) -> None:
        super().__init__(root, shape)
        names, skips = Names(), Skips()
        for name, reason in self._walk():
            if reason is None:
                names.append(name)
            else:
                skips.append(name, reason)
        self.names, self.skipped = names, skips
        there = (
            f"{root} with {len(skips)} other things in it, such as {skips[0].name!r}: {skips[0].reason}" if skips else str(root)
        )
        require(len(names) > 0, "source", "a folder with images in it (.png, .jpg, .tif, .webp, ...)", there)
        self._number_classes()

    def fingerprint(self) -> dict[str, Any]:
        assert isinstance(self.names, Names)
        return {**super().fingerprint(), "names": self.names.sha256()}

    def _walk(self) -> Iterator[Found]:
        """Items and what is skipped, in the order of whole paths.

        A folder is sorted with the slash behind its name: then what is in it comes in its place among all paths. Folders are kept
        on a stack, since they may lie deeper than calls can.
        """
        stack = [iter(self._entries(""))]
        while stack:
            name, skipped = next(stack[-1], ("", None))
            if not name:
                stack.pop()
            elif skipped is not None or not name.endswith("/"):
                yield name, skipped
            else:
                try:
                    inside = self._entries(name)
                except OSError as broken:
                    raise_passing(broken)
                    self.unreadable[name] = f"the folder cannot be read: {broken.strerror}"
                    yield name, None
                else:
                    stack.append(iter(inside or [(name, "an empty folder")]))

    def _entries(self, folder: str) -> list[Found]:
        """What lies in a folder, sorted; names of folders end in a slash. OSError where it cannot be read."""
        with os.scandir(self.root / folder) as found:
            return sorted((self._sorted_out(folder + entry.name, entry) for entry in found), key=operator.itemgetter(0))

    def _sorted_out(self, name: str, entry: os.DirEntry[str]) -> Found:
        is_folder, is_image = entry.is_dir(follow_symlinks=False), entry.name[entry.name.rfind(".") :].lower() in SUFFIXES
        if entry.name.startswith("."):
            return (f"{name}/", "a hidden folder") if is_folder else (name, "a hidden file")
        if is_folder:
            return f"{name}/", "resource forks of macOS, which have images' names" if entry.name == RESOURCE_FORKS else None
        if entry.is_file(follow_symlinks=False):  # as the folder says: nothing asks for the file itself
            return name, None if is_image else NO_IMAGE
        try:
            there = entry.stat()
        except OSError:  # a link that leads nowhere, or back to itself: where it has an image's name, an image is missing
            return name, None if is_image else "a link that leads nowhere"
        if stat.S_ISDIR(there.st_mode):
            return name, "a link to a folder, which is not followed"
        kind = kind_of(there.st_mode)
        if kind is not None:
            return name, f"is {kind}"
        return name, None if is_image else NO_IMAGE
