"""One comparison for all ops: an engine against the reference, by the yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.testing import extended
from purify_engine.testing.cases import Case
from purify_engine.testing.yardstick import assert_within_yardstick


def assert_matches_reference(case: Case, op: Callable[..., Any], reference: Callable[..., Any]) -> None:
    """The C++ room's results, by `assert_agrees`."""
    with ops.backend("cpp"):
        got = op(*case.arguments(), **case.keywords)
    assert_agrees(case, got, reference)


def assert_agrees(case: Case, got: Any, reference: Callable[..., Any]) -> None:
    """Values by the yardstick, and dtype, shape and strides exactly. Float64 is held to `testing/extended.py`."""
    honest = reference(*case.arguments(), **case.keywords)
    if case.dtype == torch.float64:
        truth = getattr(extended, reference.__name__)(*case.arguments(), **case.keywords)
    else:
        in_double = {**case.keywords, "dtype": torch.float64} if "dtype" in case.keywords else case.keywords
        truth = reference(*case.arguments(torch.float64), **in_double)
    for result, like, true in zip(*map(as_tuple, (got, honest, truth)), strict=True):
        assert result.dtype == like.dtype
        assert result.shape == like.shape
        assert strides(result) == strides(like)
        assert_within_yardstick(result, like, true)


def strides(tensor: Tensor) -> list[int]:
    """The strides that matter: those of dimensions one can step along."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


def as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)
