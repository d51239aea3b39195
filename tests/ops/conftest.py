"""Every op is held to its reference on every instruction set that this CPU offers, its outputs poisoned beforehand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from purify_engine.ops import _extension


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=layout).fill_(torch.nan if dtype.is_floating_point else -1)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def each_instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The C++ extension on one instruction set; an element that a kernel leaves unwritten is NaN, or -1."""
    assert _extension.extension is not None, "build the extension first: pip install -e ."
    if request.param not in _extension.instruction_sets():
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setattr(_extension, "empty", poisoned)
    before = _extension.instruction_set()
    _extension.use_instruction_set(request.param)
    yield
    _extension.use_instruction_set(before)
