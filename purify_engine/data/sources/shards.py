"""Which tar shards a path names."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from purify_engine.config import require
from purify_engine.data.items import Skipped, raise_passing
from purify_engine.data.pixels import SUFFIXES

MOST_SHARDS = 1_000_000
BRACES = re.compile(r"\{([^{}]*)\}")


def find_shards(root: Path) -> tuple[Path, list[str], list[Skipped]]:
    """(folder, names of shards relative to it, what else lies there) of a folder, a .tar file, or a pattern with braces.

    Hidden files, files that are no .tar, and links to folders are none. ValueError where there is no shard, or one of a pattern's
    does not exist.
    """
    if root.is_dir():
        names, skipped = _below(root)
        require(bool(names), "source", "a folder with .tar files in it", str(root))
        return root, names, skipped
    if root.exists() or not is_pattern(root):
        require(root.suffix.lower() == ".tar" and root.exists(), "source", "a .tar file that exists", str(root))
        return root.parent, [root.name], []
    folder = Path(*itertools.takewhile(lambda piece: not BRACES.search(piece), root.parts))
    names = sorted(set(expanded(root.relative_to(folder).as_posix())))
    for name in names:
        require((folder / name).exists(), "source", "a pattern whose files all exist", f"{str(root)!r} without {name}")
    return folder, names, []


def is_shards(path: Path) -> bool:
    """Whether `path` is a .tar file, or a folder that has some and no image anywhere below it."""
    if not path.is_dir():
        return path.suffix.lower() == ".tar"
    has_shard = False
    for _, folders, files in os.walk(path, onerror=raise_passing):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes = {os.path.splitext(name)[1].lower() for name in files if not name.startswith(".")}  # noqa: PTH122, of millions
        if suffixes & SUFFIXES:
            return False
        has_shard |= ".tar" in suffixes
    return has_shard


def is_pattern(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and bool(BRACES.search(str(path)))


def expanded(pattern: str) -> list[str]:
    """Every name of a pattern with ranges {000..009}, whose digits are kept, and lists {a,b}; ValueError for other braces."""
    pieces = BRACES.split(pattern)
    choices = [_choices(piece, pattern) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    require(count <= MOST_SHARDS, "source", f"a pattern of {MOST_SHARDS} names at most", pattern)
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    limits = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside)
    if limits is None:
        require("," in inside, "source", "a pattern with ranges {000..009} or lists {a,b}", pattern)
        return inside.split(",")
    first, last = int(limits[1]), int(limits[2])
    require(first <= last < first + MOST_SHARDS, "source", "a pattern whose ranges go up", pattern)
    return [f"{number:0{len(limits[1])}d}" for number in range(first, last + 1)]


def _below(root: Path) -> tuple[list[str], list[Skipped]]:
    names: list[str] = []
    skipped: list[Skipped] = []

    def refuse(error: OSError) -> None:
        raise_passing(error)
        skipped.append(Skipped(os.path.relpath(error.filename, root), f"cannot be read: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=refuse):
        relative = Path(folder).relative_to(root)
        for name in list(folders):
            reason = "hidden" if name.startswith(".") else "a link to a folder" if Path(folder, name).is_symlink() else ""
            if reason:
                folders.remove(name)
                skipped.append(Skipped((relative / name).as_posix(), reason))
        for name in files:
            reason = _is_no_shard(Path(folder, name))
            if reason:
                skipped.append(Skipped((relative / name).as_posix(), reason))
            else:
                names.append((relative / name).as_posix())
    return sorted(names), sorted(skipped)


def _is_no_shard(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.suffix.lower() != ".tar":
        return "no .tar file"
    return "" if path.is_file() else "no regular file"
