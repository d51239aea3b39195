"""One comparison for all ops: the C++ room against the reference, by the yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.testing.cases import Case
from purify_engine.testing.yardstick import assert_within_yardstick


def assert_matches_reference(case: Case, op: Callable[..., Any], reference: Callable[..., Any]) -> None:
    """Values by the yardstick, and dtype, shape and strides exactly."""
    with ops.backend("cpp"):
        got = op(*case.arguments(), **case.keywords)
    honest_keywords, true_keywords = dict(case.keywords), dict(case.keywords)
    if "dtype" in case.keywords:
        honest_keywords["dtype"], true_keywords["dtype"] = torch.float32, torch.float64
    same = reference(*case.arguments(), **case.keywords)
    honest = reference(*case.arguments(torch.float32), **honest_keywords)
    truth = reference(*case.arguments(torch.float64), **true_keywords)
    for result, like, approximate, true in zip(*map(tensors, (got, same, honest, truth)), strict=True):
        assert result.dtype == like.dtype
        assert result.shape == like.shape
        assert strides(result) == strides(like)
        assert_within_yardstick(result, approximate, true)


def strides(tensor: Tensor) -> list[int]:
    """The strides that matter: those of dimensions one can step along."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


def tensors(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results
