"""Data sets that hold both of their splits: CIFAR as published (`cifar.py`), and folders of .npz files, a few for each split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ImageShape
from purify_engine.data.sources.array import ArraySource

if TYPE_CHECKING:
    from purify_engine.types import Images

Split = Literal["train", "test"]


@dataclass(frozen=True)
class SplitOf:
    """One split of a data set."""

    labels: np.ndarray | None
    """int64 [N], where the data set has them."""
    classes: tuple[str, ...] | None
    """Names of the labels 0, 1, ..., where it has them."""
    count: int
    """N."""
    read: Callable[[Sequence[int]], Images]
    """The images of some rows, float32 [B, C, H, W] in [0, 1]."""


def open_split(path: Path, shape: ImageShape, split: Split) -> SplitOf | None:
    """`split` of the data set at `path`; None where it holds no splits that are known.

    A folder of .npz files has files train-0.npz, train-1.npz, ..., joined in the order of their numbers, and so for the test.
    ValueError, in one line, where images are not of `shape`, or a file is damaged; FileNotFoundError where one is missing.
    """
    from purify_engine.data.cifar import layout_of

    if layout_of(path) is not None:
        return _of_cifar(path, shape, split)
    files = _files(path, split) if path.is_dir() else []
    return _joined([ArraySource(file, shape) for file in files]) if files else None


def _of_cifar(path: Path, shape: ImageShape, split: Split) -> SplitOf:
    import torch

    from purify_engine.data.cifar import CHANNELS, SIDE, read_cifar

    require(shape.channels == CHANNELS, "source", f"of images of {shape.channels} channels, as the network takes", str(path))
    refused = shape.refused(SIDE, SIDE)
    require(refused is None, "source", f"of other images than {SIDE}x{SIDE}: {refused}", str(path))
    found = read_cifar(path, split)

    def read(rows: Sequence[int]) -> Images:
        return torch.from_numpy(found.images[np.asarray(rows, dtype=np.int64)]).float().div_(255)

    return SplitOf(found.labels, found.classes, len(found.labels), read)


def _files(folder: Path, split: Split) -> list[Path]:
    found = {kind: sorted(folder.glob(f"{kind}-*.npz"), key=_by_number) for kind in ("train", "test")}
    wanted = f"a folder with {split}-0.npz, {split}-1.npz, ..."
    require(not any(found.values()) or bool(found[split]), "source", wanted, str(folder))
    return found[split]


def _by_number(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.stem)], path.name


def _joined(sources: list[ArraySource]) -> SplitOf:
    import torch

    from purify_engine.data.reading import read_rows

    first = sources[0]
    for source in sources:
        require(source.classes == first.classes, source.root.name, f"of the classes of {first.root.name}", source.classes)
        alike = (source.labels is None) == (first.labels is None)
        wanted = f"with labels where {first.root.name} has them, and else without"
        require(alike, source.root.name, wanted, list(source.header.shape))
    starts = np.cumsum([0, *map(len, sources)])
    labels = [source.labels for source in sources if source.labels is not None]

    def read(rows: Sequence[int]) -> Images:
        wanted = np.asarray(rows, dtype=np.int64)
        home = np.searchsorted(starts, wanted, "right") - 1
        images = torch.empty(0, device="cpu")
        for number in np.unique(home):
            part = read_rows(sources[number], (wanted[home == number] - starts[number]).tolist())
            images = images if len(images) else torch.empty((len(wanted), *part.shape[1:]), device="cpu")
            images[torch.from_numpy(home == number)] = part
        return images

    return SplitOf(np.concatenate(labels) if labels else None, first.classes, int(starts[-1]), read)
