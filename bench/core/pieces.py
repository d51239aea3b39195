"""A folder cut into pieces that travel in several trips, to and from a machine that takes only so much at once.

`INTO/trip-1/`, `INTO/trip-2/`, ... each hold pieces and `manifest.json`, which names every file and every piece of all trips with
its SHA-256. Files are laid end to end and cut without regard to where they end. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from purify_engine.config import require
from purify_engine.files import write_bytes, write_text, write_whole

PIECE = 13_000_000  # bytes of a file: some lenders bring none of 16 MiB or more back
TRIP = 3 * PIECE  # of the pieces of one trip: with sources and packages below 64 MiB
MANIFEST = "manifest.json"
_BUFFER = 2**20


@dataclass(frozen=True)
class Whole:
    """A file as it was, `path` below the folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Piece:
    """`name` in the folder of its trip, counted from 1."""

    name: str
    trip: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was cut into what, both in their order."""

    files: tuple[Whole, ...]
    pieces: tuple[Piece, ...]

    @property
    def trips(self) -> int:
        return max((piece.trip for piece in self.pieces), default=1)


def planned(folder: Path, piece: int = PIECE, trip: int = TRIP) -> Manifest:
    """How `folder` is cut: into pieces of at most `piece` bytes, and of at most `trip` bytes a trip. Reads it whole."""
    require(0 < piece <= trip, "piece", f"in [1, {trip}], the bytes of a trip", piece)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    require(bool(paths), "folder", "one that holds files", str(folder))
    files = tuple(Whole(path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path)) for path in paths)
    pieces = tuple(
        Piece(f"piece-{index + 1:03}", 1 + index // (trip // piece), len(content), hashlib.sha256(content).hexdigest())
        for index, content in enumerate(_cut(paths, piece))
    )
    return Manifest(files, pieces)


def cut(folder: Path, into: Path, only: int | None = None, piece: int = PIECE, trip: int = TRIP) -> Manifest:
    """Write the pieces of `folder` into folders `trip-1`, ... of `into`; with `only`, one trip, straight into `into`."""
    plan = planned(folder, piece, trip)
    require(only is None or 1 <= only <= plan.trips, "trip", f"in [1, {plan.trips}]", only)
    told = json.dumps(asdict(plan), indent=1) + "\n"
    for number in range(1, plan.trips + 1) if only is None else (only,):
        write_text((into / f"trip-{number}" if only is None else into) / MANIFEST, told)
    for known, content in zip(plan.pieces, _cut([folder / file.path for file in plan.files], piece), strict=True):
        if only in (None, known.trip):
            write_bytes((into / f"trip-{known.trip}" if only is None else into) / known.name, content)
    return plan


def joined(pieces: Path, folder: Path) -> Manifest:
    """Write into `folder` the files whose pieces lie anywhere in `pieces`; ValueError names the trips that are missing.

    Every piece and every file is held to its SHA-256. A file that is there already, and is the same, stays as it is.
    """
    told = sorted(pieces.rglob(MANIFEST))
    require(bool(told), "pieces", f"a folder with a {MANIFEST} in it", str(pieces))
    plans = {_read(path) for path in told}
    require(len(plans) == 1, "pieces", "of one folder that was cut", f"{len(plans)} different {MANIFEST} in {pieces}")
    (plan,) = plans
    found = {path.name: path for path in pieces.rglob("piece-*")}
    missing = sorted({piece.trip for piece in plan.pieces if piece.name not in found})
    require(not missing, "pieces", "of all trips", f"without those of {', '.join(f'trip-{trip}' for trip in missing)}")
    for piece in plan.pieces:
        require(_sha256(found[piece.name]) == piece.sha256, "pieces", "as they were cut", f"another {found[piece.name]}")
    source = _Pieces([found[piece.name] for piece in plan.pieces])
    for file in plan.files:
        target = folder / file.path
        there = target.is_file() and _sha256(target) == file.sha256
        if there:
            source.skip(file.size)
        else:
            write_whole(target, lambda temporary, size=file.size: source.copy(size, temporary))  # type: ignore[misc]
            require(_sha256(target) == file.sha256, "pieces", "as they were cut", f"another {file.path}")
    return plan


def _read(path: Path) -> Manifest:
    said = json.loads(path.read_text(encoding="utf-8"))
    return Manifest(tuple(Whole(**file) for file in said["files"]), tuple(Piece(**piece) for piece in said["pieces"]))


def _cut(paths: list[Path], piece: int) -> Iterator[bytes]:
    """The bytes of all files end to end, `piece` at a time; one empty piece of nothing."""
    source, first = _Pieces(paths), True
    while (content := source.read(piece)) or first:
        yield content
        first = False


class _Pieces:
    """Files read as if they were one."""

    def __init__(self, paths: list[Path]) -> None:
        self._waiting = iter(paths)
        self._open: BinaryIO | None = None

    def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            if self._open is None:
                path = next(self._waiting, None)
                if path is None:
                    break
                self._open = path.open("rb")
            content = self._open.read(size - len(found))
            if not content:
                self._open.close()
                self._open = None
            found += content
        return bytes(found)

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.read(min(size, _BUFFER)))

    def copy(self, size: int, to: Path) -> None:
        with to.open("wb") as file:
            while size > 0:
                content = self.read(min(size, _BUFFER))
                file.write(content)
                size -= len(content)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(_BUFFER):
            digest.update(content)
    return digest.hexdigest()
