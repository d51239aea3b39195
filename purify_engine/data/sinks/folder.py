"""PNG files in folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Outcome, Part, Source, Written
from purify_engine.data.pixels import encode
from purify_engine.data.sinks.in_folder import InFolder
from purify_engine.files import make_durable, write_bytes

# Of a name, which costs one image; any other error concerns them all: a full or broken disk, a folder that none may write to.
OF_ONE_NAME = frozenset(
    {
        errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EILSEQ, errno.ELOOP,
    }
)  # fmt: skip
RECORDS = (".json", ".jsonl", ".html", ".csv")  # how names of records end, which lie beside the images


class FolderSink(InFolder):
    """PNG files under the same relative paths; a file that was no PNG gets `.png` appended, so that a.png and a.jpg stay two."""

    def __init__(self, source: Source, output: Path) -> None:
        inside = source.root.resolve() in (output.resolve(), *output.resolve().parents)
        require(not inside, "output", "a folder outside the source", str(output))
        require(not output.exists() or output.is_dir(), "output", "a folder, as the source is one", str(output))
        self.output, self.taken = output, _taken(source)

    def encode(self, item: Item, image: np.ndarray) -> bytes:
        self._require_a_place(item.name)
        return encode(image)

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        written: list[Written] = []
        failed: list[tuple[Item, ItemError]] = []
        for item, encoded in outcomes:
            try:
                if isinstance(encoded, ItemError):
                    self._remove(item.name)
                    raise encoded
                written.append(write_png(self.output / as_png(item.name), as_png(item.name), encoded))
            except ItemError as reason:
                failed.append((item, reason))
        make_durable(self.output / file.file for file in written)
        return written, failed

    def _require_a_place(self, name: str) -> None:
        """ItemError where the image's name belongs to another image, to a record, or to a place that is not below the output."""
        if name in self.taken:
            raise ItemError(f"would be written to {as_png(name)}, where another image or folder goes: rename one of them")
        if lies_in_a_record(name):
            raise ItemError(f"lies in a folder that is called as records of a run are ({', '.join(RECORDS)}): rename it")
        if not all(folder not in ("", ".", "..") for folder in name.split("/")[:-1]):
            raise ItemError("would not be written below the output")

    def _remove(self, name: str) -> None:
        """What an earlier try at this part may have written."""
        with contextlib.suppress(ItemError, OSError, ValueError):
            self._require_a_place(name)
            (self.output / as_png(name)).unlink()


def lies_in_a_record(name: str) -> bool:
    """Whether the first folder of a path is called as records of a run are, which lie beside it in the output."""
    folder, slash, _ = name.partition("/")
    return bool(slash) and folder.lower().endswith(RECORDS)


def refuse_names_of_records(names: Iterable[str]) -> None:
    """ValueError where files of a source lie in a folder that is called as records of a run are."""
    found = next(filter(lies_in_a_record, names), None)
    require(found is None, "source", f"free of folders that are called as records of a run are ({', '.join(RECORDS)})", found)


def as_png(name: str) -> str:
    """The name of the PNG file that is made of an image file; other suffixes are kept in front, so that two stay two."""
    return name if Path(name).suffix.lower() == ".png" else f"{name}.png"


def write_png(path: Path, name: str, encoded: bytes) -> Written:
    """Write the file, whole or not at all; ItemError where it cannot be, for a reason that concerns this file alone."""
    try:
        write_bytes(path, encoded, durable=False)
    except OSError as error:
        if error.errno not in OF_ONE_NAME:
            raise
        raise ItemError(f"cannot be written: {error.strerror}") from error
    return Written(name, len(encoded), hashlib.sha256(encoded).hexdigest())


def _taken(source: Source) -> frozenset[str]:
    """Names of images that would be written where another image, or a folder, goes: `a.jpg` beside `a.jpg.png`."""
    appended = {path.removesuffix(".png") for path in _paths(source) if path.endswith(".png") and "." in path[1:-4]}
    names = map(source.name, range(len(source))) if appended else ()
    return frozenset(name for name in names if name in appended and as_png(name) != name)


def _paths(source: Source) -> Iterator[str]:
    """Names of images, and of the folders among theirs that end as a PNG does."""
    for id in range(len(source)):
        name = source.name(id)
        yield name
        while ".png/" in name:
            name = name[: name.rindex(".png/") + 4]
            yield name
            name = name[:-4]
