"""Every op is held to its reference on every instruction set that this CPU offers, its outputs poisoned beforehand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from purify_engine.ops import cpp


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan if dtype.is_floating_point else -1, dtype=dtype)


@pytest.fixture(params=["avx2", "portable"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The C++ room on one instruction set; an element that a kernel leaves unwritten is NaN, or -1."""
    assert cpp.room is not None, "build the extension first: pip install -e ."
    if request.param not in cpp.room.instruction_sets():
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setattr(cpp, "empty", poisoned)
    before = cpp.room.instruction_set()
    cpp.room.use_instruction_set(request.param)
    yield
    cpp.room.use_instruction_set(before)
