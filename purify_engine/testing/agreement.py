"""Does an engine compute what the reference does? The one comparison of all ops, for tests, bench and `doctor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purify_engine.ops import Op
from purify_engine.testing import extended
from purify_engine.testing.cases import Case
from purify_engine.testing.magnitudes import magnitudes
from purify_engine.testing.yardstick import assert_as_good_as_direct, assert_within_yardstick

Judge = Callable[[Tensor, Tensor, Any, Any], None]  # of a result, honest PyTorch's, the truth, and the magnitude
_JUDGES: dict[str, Judge] = {"elementwise": assert_within_yardstick, "whole": assert_as_good_as_direct}


def judge_of(op: Op, engine: str) -> Judge:
    """The yardstick that an op names for what an engine computes."""
    return _JUDGES[op.judge_of(engine)]


def assert_agrees(case: Case, got: Any, reference: Callable[..., Any], judge: Judge = assert_within_yardstick) -> None:
    """Values by a yardstick, integers exactly, and dtype, shape and strides. Float64 is held to `testing/extended.py`."""
    honest = reference(*case.arguments(), **case.keywords)
    if case.dtype == torch.float64:
        truth = getattr(extended, reference.__name__)(*case.arguments(), **case.keywords)
    else:
        in_double = {**case.keywords, "dtype": torch.float64} if "dtype" in case.keywords else case.keywords
        truth = reference(*case.arguments(torch.float64), **in_double)
    results = as_tuple(got)
    sizes = magnitudes(case.op, case.arguments(), case.keywords) or (None,) * len(results)
    for result, like, true, size in zip(results, as_tuple(honest), as_tuple(truth), sizes, strict=True):
        assert (result.dtype, result.shape) == (like.dtype, like.shape), f"{result.dtype} {list(result.shape)}"
        assert strides(result) == strides(like), f"strides {strides(result)}, expected {strides(like)}"
        if result.is_floating_point():
            judge(result, like, true, size)
        else:
            assert result.equal(like), f"{int((result != like).sum())} of {result.numel()} elements differ"


def strides(tensor: Tensor) -> list[int]:
    """The strides that matter: those of dimensions one can step along."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


def as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)
