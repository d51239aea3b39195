"""The time embeddings of a whole plan, computed once: they depend on the timestep alone, never on the image.

A table is valid for the parameters it was made from. It is keyed by their (data_ptr, version, device, dtype) and keeps their
storage alive, so that no address can come to mean another weight. An optimizer step, `load_state_dict` or `.to` makes a new
table; only writing into `parameter.data` goes unseen, by PyTorch's version counter and so by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from purify_engine.models.time_embedding import Embeddings, TimeEmbedding
from purify_engine.types import Step, Timesteps

Key = tuple[tuple[int, int, torch.device, torch.dtype], ...]


@dataclass(frozen=True)
class _Table:
    key: Key
    rows: Tensor  # [N, sum of n]: the projections of all residual blocks, side by side
    widths: list[int]
    alive: list[Tensor]  # the parameters' storages: an address in `key` means what it meant


class EmbeddingTable:
    """One table a plan, made on first use and dropped with the plan. Copies and pickles of it start empty."""

    def __init__(self) -> None:
        self._tables: Any = WeakTensorKeyDictionary()  # plan.times -> _Table

    def __reduce__(self) -> tuple[type[EmbeddingTable], tuple[()]]:
        return EmbeddingTable, ()  # deepcopy and pickle: a copy of the network makes its own

    def __len__(self) -> int:
        return len(self._tables)

    def row(self, embedding: TimeEmbedding, times: Timesteps, step: Step) -> Embeddings:
        """`embedding(times[step])`, gathered by the device tensor `step`; each entry is [1, n].

        Where a gradient to its parameters may be wanted, or their changes are not counted, nothing is kept.
        """
        parameters = list(embedding.parameters())
        if any(parameter.requires_grad or parameter.is_inference() for parameter in parameters):
            return embedding(times.index_select(0, step.reshape(1)))
        table = self._tables.get(times)
        key = _key([*parameters, times])
        if table is None or table.key != key:
            table = self._tables[times] = _build(embedding, times, key, parameters)
        return table.rows.index_select(0, step.reshape(1)).split(table.widths, dim=1)


def _key(tensors: list[Tensor]) -> Key:
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version, t.device, t.dtype) for t in tensors)


def _build(embedding: TimeEmbedding, times: Timesteps, key: Key, parameters: list[Any]) -> _Table:
    # Outside inference mode and autocast: the table outlives the call, and another call may want a gradient through its user.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(times.device.type, enabled=False):
        projections = embedding(times)
        return _Table(key, torch.cat(projections, dim=1), [p.shape[1] for p in projections], [p.detach() for p in parameters])
