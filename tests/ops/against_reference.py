"""What runs on a CPU, held to the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from purify_engine import ops
from purify_engine.testing.agreement import assert_agrees, judge_of
from purify_engine.testing.cases import Case


def as_called(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    temb: Tensor | None = None,
    residual: Tensor | None = None,
    num_groups: int = 1,
    norm_eps: float = 1e-5,
    gain: float = 1.0,
    upsample: bool = False,
) -> Tensor:
    """`ops.conv3x3` by the arguments of its schema, which has the norm's one by one."""
    normed = norm_weight is not None or norm_bias is not None
    norm: Any = ops.Norm(norm_weight, norm_bias, scale, shift, num_groups, norm_eps) if normed else None  # type: ignore[arg-type]
    return ops.conv3x3(x, weight, bias, norm, temb=temb, residual=residual, gain=gain, upsample=upsample)


def chosen(case: Case) -> str:
    """The engine that a CPU chooses for a case."""
    return ops.OPS[case.op].resolve(*case.arguments(), **case.keywords)[0]


def assert_matches_reference(case: Case, op: Callable[..., Any], reference: Callable[..., Any], engine: str = "cpp") -> None:
    """The results of `engine`, which is what a CPU chooses, by the yardstick that the op names for it."""
    named = ops.OPS[case.op]
    assert named.reference is reference
    assert chosen(case) == engine
    with ops.backend(engine):
        got = op(*case.arguments(), **case.keywords)
    assert_agrees(case, got, reference, judge_of(named, engine))
