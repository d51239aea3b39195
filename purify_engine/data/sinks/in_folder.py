"""What all sinks share whose output is a folder: a part is in its place once it is written, and records lie beside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from purify_engine.data.items import Part, Written

DIGITS = 5  # of the number of a part


class InFolder:
    """Files below the folder `output`."""

    output: Path

    def prepare(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)

    def assemble(self, parts: Sequence[Part], failed: Sequence[int], written: Iterable[Written]) -> list[Written]:
        """Every part is in its place already."""
        return []

    def record(self, name: str) -> Path:
        return self.output / name

    def holds(self, written: Written) -> Path:
        return self.output / written.file


def part_name(part: Part) -> str:
    """The file that a part becomes, relative to the output: "train.tar", or "train-00000.tar" where its container has several."""
    file = PurePosixPath(part.container)
    return part.container if part.places == 1 else str(file.with_name(f"{file.stem}-{part.place:0{DIGITS}d}{file.suffix}"))
