"""Images that settings are chosen on: the last of the training data, and others that guidance is calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from purify_engine.cli.labelled import DIGITS, Labelled, labelled, spread, stratified
from purify_engine.cli.loading import image_shape
from purify_engine.config import require
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Ids, Images, Labels


@dataclass(frozen=True)
class Chosen:
    """Validation images in [0, 1], their labels and places in the data, and images that scales are calibrated on."""

    name: str
    """Of the data, in the name of the results file."""
    images: Images
    labels: Labels
    ids: Ids
    known: Images


def validation(source: str, purifier: GuidedPurifier, *, images: int, held: int, calibration: int) -> Chosen:
    """`images` of the last `held` of the training data (a quarter of it at most), as many of each class; always the same.

    ValueError: what is called test data is refused, since settings are chosen by what is seen here.
    """
    path = Path(source)
    require("test" not in path.stem.lower(), "data", "training data: settings are not chosen on a test set", source)
    parts = _parts(source, purifier)
    labels = torch.cat([part.required_labels() for part in parts])
    first = len(labels) - min(held, len(labels) // 4)
    chosen = [first + row for row in stratified(labels[first:], images)]
    rows, device = torch.tensor(chosen, device=labels.device), purifier.device
    known = _rows(parts, spread(first, calibration))
    return Chosen(path.stem, _rows(parts, chosen).to(device), labels[rows].to(device), rows.to(device), known.to(device))


def _parts(source: str, purifier: GuidedPurifier) -> list[Labelled]:
    """A file or a folder of images is one part; a folder of .npz files is as many, in the order of their names."""
    shape = image_shape(purifier)
    files = sorted(path for path in Path(source).glob("*.npz") if "test" not in path.stem.lower())
    return [labelled(str(name), shape) for name in files or [source]] if source != DIGITS else [labelled(DIGITS, shape)]


def _rows(parts: Sequence[Labelled], rows: Sequence[int]) -> Tensor:
    """Rows of the parts one after the other; `rows` rise."""
    found, first = [], 0
    for part in parts:
        own = [row - first for row in rows if first <= row < first + part.count]
        found += [part.rows(own)] if own else []
        first += part.count
    return torch.cat(found)
