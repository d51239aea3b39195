"""A data set as training and evaluation take it: labels and the names of its classes first, images when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from purify_engine.cli.console import named
from purify_engine.config import require

if TYPE_CHECKING:
    import torch

    from purify_engine.data import ImageShape
    from purify_engine.types import Images, Labels

DIGITS = "digits"  # the bundled data set, in the place of a path
SPREAD_SEED = 0


@dataclass(frozen=True)
class Labelled:
    """What SOURCE holds."""

    name: str
    """As the command line has it."""
    labels: Labels | None
    """int64 [N]; None where SOURCE has none."""
    classes: tuple[str, ...] | None
    """Names of the labels 0, 1, ..., where SOURCE has them: those of its class folders, in sorted order."""
    count: int
    """N."""
    read: Callable[[Sequence[int]], Images]
    """The images of some rows, float [B, C, H, W] in [0, 1]. ValueError names the first that is no good."""
    device: torch.device | str = field(default="cpu")

    def to(self, device: torch.device | str) -> Labelled:
        """The same, with its images on another device."""
        return replace(self, device=device)

    @cached_property
    def images(self) -> Images:
        """All of them."""
        return self.rows(range(self.count))

    def rows(self, rows: Sequence[int]) -> Images:
        """Some of them."""
        return self.read(rows).to(self.device)

    def required_labels(self) -> Labels:
        """The labels, on the device; ValueError where there are none."""
        if self.labels is None:
            wanted = "class folders, an array `labels` in a .npz file, or a table's column `label`"
            raise ValueError(f"source must have labels ({wanted}), got {self.name!r}")
        return self.labels.to(self.device)


def labelled(source: str, shape: ImageShape, *, split: Literal["train", "test"] = "train") -> Labelled:
    """The folder or file, or `split` of what holds both splits: CIFAR's batches, folders of .npz files, the bundled "digits".

    But for CIFAR's batches no image is read yet.
    """
    import torch

    from purify_engine.data import digits, open_source, read_rows
    from purify_engine.data.splits import open_split

    if source == DIGITS:
        images, labels = digits(split)
        return Labelled(source, labels, tuple("0123456789"), len(labels), lambda rows: images[list(rows)])
    one = open_split(Path(source), shape, split)
    if one is not None:
        numbers = None if one.labels is None else torch.from_numpy(one.labels)
        return Labelled(source, numbers, one.classes, one.count, one.read)
    opened = open_source(Path(source), shape)
    if opened.skipped:
        print(f"purify-engine: {source}: {named(opened.skipped)} skipped", file=sys.stderr)
    known = None if opened.labels is None else torch.as_tensor(opened.labels, dtype=torch.int64, device="cpu")
    return Labelled(source, known, opened.classes, len(opened), lambda rows: read_rows(opened, rows))


def spread(count: int, most: int) -> list[int]:
    """`most` of `count` rows, always the same choice, in order: the first of sorted class folders would be of one class."""
    import numpy as np

    chosen = np.random.RandomState(SPREAD_SEED).permutation(count)[:most]
    return [int(row) for row in np.sort(chosen)]


def stratified(labels: Labels, limit: int | None) -> list[int]:
    """Up to `limit` rows with as many of each class as of any other, where there are so many: always the same, in order.

    A smaller limit's rows are among a larger one's.
    """
    import numpy as np

    known = labels.cpu().numpy()
    if limit is None or limit >= len(known):
        return list(range(len(known)))
    require(limit >= 1, "limit", "at least 1", limit)
    shuffled = np.random.RandomState(SPREAD_SEED).permutation(len(known))
    place = np.empty(len(known), dtype=np.int64)  # of each row among those of its class, in the shuffled order
    for name in np.unique(known):
        of_it = shuffled[known[shuffled] == name]
        place[of_it] = np.arange(len(of_it))
    rank = np.empty_like(shuffled)
    rank[shuffled] = np.arange(len(shuffled))
    return sorted(int(row) for row in np.lexsort((rank, place))[:limit])
