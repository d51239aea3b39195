"""What a case costs at the least, counted on tensors that hold no numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import purify_engine.ops  # noqa: F401  (tells PyTorch's counter what our ops cost)
from purify_engine.testing.cases import Case


def flops(case: Case) -> int:
    """What the call costs in matrix products and convolutions, 2 a multiply-add; 0 for what is bound by memory."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        _call(case)
    return counter.get_total_flops()


def bytes_moved(case: Case) -> int:
    """The least that the call must move: every input read once, every result written once."""
    with FakeTensorMode():
        given, results = _call(case)
    return sum(tensor.numel() * tensor.element_size() for tensor in (*given, *results) if isinstance(tensor, Tensor))


def _call(case: Case) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of a call and its results."""
    arguments = case.arguments()
    results = getattr(torch.ops.purify, case.op)(*arguments, **case.keywords)
    return arguments, results if isinstance(results, tuple) else (results,)
