"""The adversarial image of each image's worst attack, kept in a folder until it is scored afresh.

One .npz file for each defence on a data set and each norm: `ids` int64 [N], `scores` float64 [N], `cells` (the fingerprints of
the cells whose attack found them), `images` [N, C, H, W]. Where a file is missing or damaged, the attack is simply run again.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from purify_engine.evaluation.cells import Cell
from purify_engine.files import make_folder, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from purify_engine.types import Images

FIELDS = ("ids", "scores", "cells", "images")


class WorstImages:
    """A folder of adversarial images. `order`: the fingerprints of cells; of equal scores the earlier cell's image is kept."""

    def __init__(self, folder: Path, order: Sequence[str] = ()) -> None:
        self.folder = folder
        self.rank = {fingerprint: place for place, fingerprint in enumerate(order)}

    def keep(self, defence: str, cell: Cell) -> None:
        """Those images of `cell.adversarial` whose score is lower than that of what is kept of `defence`, a key of its own."""
        if cell.adversarial is None or cell.norm == "none":
            return
        known = self._read(defence, cell.norm)
        path, rank = self._path(defence, cell.norm), self.rank.get(cell.fingerprint, len(self.rank))
        changed = False
        for place, (image, score) in enumerate(zip(cell.images, cell.pooled, strict=True)):
            before = known.get(image)
            if before is None or (score, rank) < (before[0], self.rank.get(before[1], len(self.rank))):
                known[image], changed = (score, cell.fingerprint, cell.adversarial[place]), True
        if not changed:
            return
        buffer, ids = io.BytesIO(), sorted(known)
        scores, cells, pixels = zip(*(known[image] for image in ids), strict=True)
        np.savez(buffer, ids=ids, scores=scores, cells=cells, images=np.stack(pixels))
        make_folder(self.folder)
        write_bytes(path, buffer.getvalue())

    def found(self, defence: str, winners: Mapping[int, Cell]) -> dict[int, Images]:
        """Of each image's id the adversarial image [C, H, W] of its winner, as it was scored; without those not kept."""
        known = {norm: self._read(defence, norm) for norm in {cell.norm for cell in winners.values()}}
        kept: dict[int, Tensor] = {}
        for image, cell in winners.items():
            score, fingerprint, pixels = known[cell.norm].get(image, (0.0, "", None))
            if pixels is not None and fingerprint == cell.fingerprint:
                kept[image] = torch.from_numpy(pixels)
        return kept

    def _path(self, defence: str, norm: str) -> Path:
        return self.folder / f"{defence}-{norm}.npz"

    def _read(self, defence: str, norm: str) -> dict[int, tuple[float, str, np.ndarray]]:
        path = self._path(defence, norm)
        if not path.exists():
            return {}
        try:
            with np.load(path) as file:
                ids, *columns = (file[name] for name in FIELDS)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}
        return {int(image): (float(score), str(cell), pixels) for image, score, cell, pixels in zip(ids, *columns, strict=True)}
