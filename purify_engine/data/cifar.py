"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009) as their author publishes them: Python's batches, unpacked or in their .tar.gz.

The batches are pickles. They are read as data: nothing in them is executed, and a batch that names more than arrays of NumPy and
plain values is refused. Nothing is unpacked onto the disk.
"""

from __future__ import annotations

import codecs
import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from purify_engine.config import require
from purify_engine.models.checkpoints.pickled import StandIn, UnknownNameError, unpickled

SIDE, CHANNELS = 32, 3
LARGEST = 2**28  # bytes of a batch; the training images of CIFAR-100 are 155 MB
LATEST = 64  # members of an archive that are looked at, of which the data sets have at most nine
AGAIN = "download it again"


class Batches(NamedTuple):
    """How one of the two data sets is laid out."""

    folder: str
    files: Mapping[str, tuple[str, ...]]  # by split, in the official order
    labels: bytes
    meta: str
    names: bytes


CIFAR10 = Batches(
    folder="cifar-10-batches-py",
    files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    labels=b"labels",
    meta="batches.meta",
    names=b"label_names",
)
CIFAR100 = Batches(
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    labels=b"fine_labels",
    meta="meta",
    names=b"fine_label_names",
)
LAYOUTS = (CIFAR10, CIFAR100)


class Cifar(NamedTuple):
    """One split: images uint8 [N, 3, 32, 32], labels int64 [N], and the names of the labels 0, 1, ... where a file has them."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None


def layout_of(path: Path) -> Batches | None:
    """Which of the two lies at `path`: a folder of batches, the folder around it, or the archive; None where neither does."""
    for layout in LAYOUTS:
        if path.is_dir() and any((_root(path, layout) / name).is_file() for name in (*layout.files["train"], layout.meta)):
            return layout
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        try:
            with tarfile.open(path, "r|gz") as archive:
                first = archive.next()
        except (OSError, EOFError, tarfile.TarError, zlib.error):
            return None
        return next((layout for layout in LAYOUTS if first is not None and first.name.split("/")[0] == layout.folder), None)
    return None


def read_cifar(path: Path, split: Literal["train", "test"]) -> Cifar:
    """One split of what `layout_of` finds, in the official order.

    FileNotFoundError where a batch is missing; ValueError, in one line, where one is damaged or holds more than data.
    """
    layout = layout_of(path)
    known = " or ".join(layout.folder for layout in LAYOUTS)
    require(layout is not None, "source", f"a folder {known}, or the .tar.gz of either", str(path))
    assert layout is not None
    wanted = (*layout.files[split], layout.meta)
    found = {name: _plain(content, name, path) for name, content in _contents(path, layout, wanted)}
    missing = [name for name in layout.files[split] if name not in found]
    if missing:
        raise FileNotFoundError(f"{path} lacks {missing[0]} of {layout.folder}: {AGAIN}")
    parts = [_batch(found[name], layout, f"{name} in {path}") for name in layout.files[split]]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Cifar(images, labels, _names(found.get(layout.meta), layout))


def _root(path: Path, layout: Batches) -> Path:
    return path / layout.folder if (path / layout.folder).is_dir() else path


def _contents(path: Path, layout: Batches, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The files of these names, each whole."""
    if path.is_dir():
        for name in wanted:
            if (file := _root(path, layout) / name).is_file():
                require(file.stat().st_size <= LARGEST, str(file), f"a batch of at most {LARGEST:,} bytes", file.stat().st_size)
                yield name, file.read_bytes()
        return
    with _damage_named(path), tarfile.open(path, "r|gz") as archive:
        left = {f"{layout.folder}/{name}": name for name in wanted}
        for _, member in zip(range(LATEST), archive, strict=False):
            if member.isreg() and member.name in left:
                require(member.size <= LARGEST, member.name, f"a batch of at most {LARGEST:,} bytes", member.size)
                opened = archive.extractfile(member)
                assert opened is not None  # as it is a regular file
                yield left.pop(member.name), opened.read()
            if not left:
                return


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); {AGAIN}") from None


class _Array:
    """What a pickle says of an array: its shape, its bytes, and the name of its numbers' type."""

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, tuple) else ()

    def pixels(self) -> np.ndarray:
        """As bytes, which images are."""
        _, shape, kind, is_fortran, raw = self.state
        rows = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")
        if not isinstance(kind, _Kind) or kind.name not in ("u1", "|u1", "uint8"):
            raise ValueError("its pixels are no bytes")
        return rows


class _Kind:
    """The name of a type of numbers."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        pass


def _latin(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes where the format has none."""
    if encoding != "latin1":
        raise ValueError(f"it holds text in {str(encoding)[:20]!r}")
    return codecs.encode(text, "latin-1")


KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): StandIn(lambda *_: _Array()) for core in ("core", "_core")},
    ("numpy", "ndarray"): StandIn(lambda *_: _Array()),
    ("numpy", "dtype"): StandIn(_Kind),
    ("_codecs", "encode"): StandIn(_latin),
}


def _plain(content: bytes, name: str, path: Path) -> dict[bytes, Any]:
    """The dictionary of a batch, its keys in bytes."""
    try:
        held = unpickled(io.BytesIO(content), KNOWN, encoding="bytes")
    except UnknownNameError as error:
        mend = "which only running code could read: it is not the file that was published"
        raise ValueError(f"{name} in {path} holds {error}, {mend}") from None
    except Exception as error:  # a hostile file can raise anything from within
        raise ValueError(f"{name} in {path} is damaged or cut short ({_first_line(error)}); {AGAIN}") from None
    require(isinstance(held, dict), f"{name} in {path}", "a dictionary, as published", type(held).__name__)
    return {key.encode() if isinstance(key, str) else key: value for key, value in held.items()}


def _batch(held: Mapping[bytes, Any], layout: Batches, name: str) -> tuple[np.ndarray, np.ndarray]:
    data, labels = held.get(b"data"), held.get(layout.labels)
    whole = isinstance(labels, list) and all(isinstance(label, int) for label in labels)
    wanted = f"a dictionary with images (data) and a list of numbers ({layout.labels.decode()})"
    require(whole and isinstance(data, _Array), name, wanted, list(held)[:6])
    assert isinstance(data, _Array) and isinstance(labels, list)
    try:
        return data.pixels().reshape(len(labels), CHANNELS, SIDE, SIDE), np.array(labels, dtype=np.int64)
    except Exception as error:  # a hostile file says anything of its array
        raise ValueError(f"{name} is damaged ({_first_line(error)}); {AGAIN}") from None


def _names(held: Mapping[bytes, Any] | None, layout: Batches) -> tuple[str, ...] | None:
    said = None if held is None else held.get(layout.names)
    if not isinstance(said, list):
        return None
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in said)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
