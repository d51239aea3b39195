"""The time embeddings of a whole plan, computed once: they depend on the timestep alone, never on the image.

A table is valid for the parameters and the timesteps it was made from (derived.py). It is refilled in place where it can be: a
captured graph goes on reading it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from purify_engine import ops
from purify_engine.models.derived import State, Watched
from purify_engine.models.time_embedding import Embeddings, TimeEmbedding
from purify_engine.ops import autocast
from purify_engine.types import Step, Timesteps

CHUNK = 16  # times embedded at once: enough for the matrix products to be efficient, few enough for a plan of three steps


@dataclass
class _Table:
    made_of: State
    times: ops.TensorVersions
    threads: int  # that computed it: they divide the rows of a matrix product among them, so their number may change a rounding
    rows: Tensor  # [N, sum of n]: the projections of all residual blocks, side by side
    widths: list[int]


class EmbeddingTable:
    """One table a plan, made on first use and dropped with the plan. Copies and pickles of it start empty."""

    def __init__(self) -> None:
        self._tables: Any = WeakTensorKeyDictionary()  # plan.times -> _Table
        self._watched = Watched()

    def __reduce__(self) -> tuple[type[EmbeddingTable], tuple[()]]:
        return EmbeddingTable, ()  # deepcopy and pickle: a copy of the network makes its own

    def __len__(self) -> int:
        return len(self._tables)

    def row(self, embedding: TimeEmbedding, times: Timesteps, step: Step) -> Embeddings:
        """`embedding(times[step])`, gathered by the device tensor `step`; each entry is [1, n].

        Where a gradient to its parameters may be wanted, or their changes are not counted, nothing is kept and the time is
        embedded by itself: the same to rounding, since matrix products of one row are rounded otherwise.
        """
        table = self.table(embedding, times)
        if table is None:
            return embedding(times.index_select(0, step.reshape(1)))
        return table.rows.index_select(0, step.reshape(1)).split(table.widths, dim=1)

    def table(self, embedding: TimeEmbedding, times: Timesteps) -> _Table | None:
        """The table for `times`, up to date; None where none may be kept."""
        watched = self._watched
        if watched.roots != (embedding,):
            watched = self._watched = Watched(embedding)
        tensors, table = watched.tensors(), self._tables.get(times)
        if not ops.is_frozen(tensors) or watched.hooked() is not None:
            return None
        is_kept = table is not None and table.made_of.still_of(watched, tensors) and table.times.still_of([times])
        if not is_kept or table.threads != torch.get_num_threads():
            fresh = _build(embedding, times, State(watched))
            if table is not None and _alike(table.rows, fresh.rows):
                fresh.rows = table.rows.copy_(fresh.rows)
            table = self._tables[times] = fresh
        return table


def _build(embedding: TimeEmbedding, times: Timesteps, made_of: State) -> _Table:
    # Outside inference mode and autocast: the table outlives the call, and another call may want a gradient through its user.
    with torch.inference_mode(False), torch.no_grad(), autocast.off(times.device.type):
        # In a matrix product of another height a row may be rounded otherwise (MKL's are). A graph's table is longer than the
        # loop's, and both must hold the same bits: every product has CHUNK rows, and a time its place in them whatever follows.
        padded = torch.cat((times, times[-1:].expand(-len(times) % CHUNK)))
        chunks = [embedding(chunk) for chunk in padded.split(CHUNK)]
        rows = torch.cat([torch.cat(projections, dim=1) for projections in chunks])
        widths = [projection.shape[1] for projection in chunks[0]]
        return _Table(made_of, ops.TensorVersions([times]), torch.get_num_threads(), rows[: len(times)].clone(), widths)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
