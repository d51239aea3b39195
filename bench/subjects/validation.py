"""Images that settings are chosen on: the last of the training data, and others that guidance is calibrated on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from purify_engine.cli.labelled import labelled, spread, stratified
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
    data = labelled(source, image_shape(purifier), split="train")
    labels = data.required_labels()
    first = len(labels) - min(held, len(labels) // 4)
    chosen = [first + row for row in stratified(labels[first:], images)]
    rows, device = torch.tensor(chosen, device=labels.device), purifier.device
    known = data.rows(spread(first, calibration))
    return Chosen(path.stem, data.rows(chosen).to(device), labels[rows].to(device), rows.to(device), known.to(device))
