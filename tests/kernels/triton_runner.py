"""Triton kernels in tests: on the GPU where there is one, else in Triton's interpreter on CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.testing.agreement import as_tuple
from purify_engine.testing.cases import Case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GUARD = 64  # elements before and behind every output; a multiple of 16 bytes, so that the output itself is aligned


def moved(value: Any) -> Any:
    """A tensor where the kernels run, with its strides, gaps and repetitions."""
    if not isinstance(value, Tensor) or value.device.type == DEVICE:
        return value
    memory = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return memory.to(DEVICE).as_strided(value.shape, value.stride(), value.storage_offset())


def run(case: Case) -> tuple[Tensor, ...]:
    """The results of a case on the Triton engine, on the CPU."""
    with ops.backend("triton"):
        results = getattr(torch.ops.purify, case.op)(*map(moved, case.arguments()), **case.keywords)
    return tuple(result.cpu() for result in as_tuple(results))


class Poison:
    """`_outputs.empty`, full of NaN (of 173 where there is none), between two guards that must not change."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        like = torch.empty(tuple(shape), dtype=dtype, device="meta", memory_format=layout)
        poison = torch.nan if dtype.is_floating_point else 173
        buffer = torch.full((GUARD + like.numel() + GUARD,), poison, dtype=dtype, device=device)
        buffer[:GUARD], buffer[-GUARD:] = 7, 7
        self.buffers.append(buffer)
        return buffer.as_strided(like.shape, like.stride(), GUARD)

    def assert_untouched(self) -> None:
        for buffer in self.buffers:
            if buffer.device.type != "meta":
                assert (buffer[:GUARD] == 7).all() and (buffer[-GUARD:] == 7).all(), "a kernel wrote beyond its output"
