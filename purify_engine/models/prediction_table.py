"""What a network that does not put out the noise needs of a whole plan: three numbers a step, and what it is told."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from purify_engine import ops
from purify_engine.config import Prediction
from purify_engine.reference.prediction import edm_label, mixture
from purify_engine.types import Timesteps


class Mixing(NamedTuple):
    """Of every step of a plan (docs/math.md E27)."""

    made_of: ops.TensorVersions
    rows: Tensor  # float64 [N, 3]: e_x, e_F, gain
    labels: Timesteps  # float64 [N]: what an EDM network is told


class PredictionTable:
    """One a plan, made on first use, dropped with the plan, and refilled in place: a captured graph goes on reading it.

    Copies and pickles of it start empty.
    """

    def __init__(self) -> None:
        self._kept: Any = WeakTensorKeyDictionary()  # plan.marginals -> Mixing

    def __reduce__(self) -> tuple[type[PredictionTable], tuple[()]]:
        return PredictionTable, ()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, prediction: Prediction, marginals: Tensor) -> Mixing:
        """The table for `marginals` [N, 2], up to date."""
        if marginals.is_inference():  # whose changes are not counted
            return _made(prediction, marginals)
        kept: Mixing | None = self._kept.get(marginals)
        if kept is None or not kept.made_of.still_of([marginals]):
            made = _made(prediction, marginals)
            if kept is not None and kept.rows.device == made.rows.device:
                made = made._replace(rows=kept.rows.copy_(made.rows), labels=kept.labels.copy_(made.labels))
            kept = self._kept[marginals] = made
        return kept


def _made(prediction: Prediction, marginals: Tensor) -> Mixing:
    with torch.inference_mode(False), torch.no_grad():  # it outlives the call: another may record a gradient
        return Mixing(ops.TensorVersions([marginals]), mixture(prediction, marginals), edm_label(marginals))
