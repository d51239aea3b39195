"""Where few results are judged: no luck fails a right kernel, and a wrong one is still caught. Of many nothing has changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from purify_engine.ops import OPS
from purify_engine.testing.agreement import as_tuple
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.magnitudes import magnitudes
from purify_engine.testing.yardstick import assert_within_yardstick

MEASURED = [op for op in OPS if op not in ("philox", "to_images")]  # integers; one sum, rounded once
# An ordinary tensor of every op, and one whose results are a few numbers.
WHOLE = {
    "philox_normal": Case("philox_normal", (2, 1000), keywords={"dtype": torch.float32}),
    "q_sample": Case("q_sample", (2, 3, 16, 16), keywords={"net_dtype": torch.float32}),
    "guided_step": Case("guided_step", (3, 3, 16, 16), variant="guided", keywords={"net_dtype": torch.float32}),
    "attention": Case("attention", (2, 4, 64, 16)),
    "attention_backward": Case("attention_backward", (2, 4, 64, 16)),
    "group_norm_silu": Case("group_norm_silu", (2, 32, 8, 8), variant="scale-shift", num_groups=8),
    "group_norm_silu_backward": Case("group_norm_silu_backward", (2, 32, 8, 8), variant="scale-shift", num_groups=8),
    "residual_sum": Case("residual_sum", (2, 16, 8, 8), variant="residual-bias-gain"),
    "sum_norm_silu": Case("sum_norm_silu", (2, 16, 8, 8), variant="residual-bias-temb-skip-scale-shift-gain", num_groups=8),
    "sum_norm_silu_backward": Case("sum_norm_silu_backward", (2, 32, 8, 8), variant="residual-scale-shift", num_groups=8),
    "conv3x3": Case("conv3x3", (2, 16, 8, 8), variant="norm-scale-bias-residual-gain", num_groups=8),
    "conv3x3_backward": Case("conv3x3_backward", (2, 16, 8, 8)),
    "relu_conv3x3": Case("relu_conv3x3", (2, 16, 8, 8), variant="line-bias-residual"),
    "relu_conv3x3_backward": Case("relu_conv3x3_backward", (2, 16, 8, 8), variant="line-bias-residual"),
    "affine_relu": Case("affine_relu", (2, 16, 8, 8), variant="residual"),
    "affine_relu_backward": Case("affine_relu_backward", (2, 16, 8, 8), variant="residual"),
}
TINY = {op: dataclasses.replace(case, shape=(1, 1, 1, 3), num_groups=1) for op, case in WHOLE.items()} | {
    "philox_normal": Case("philox_normal", (1, 3), keywords={"dtype": torch.float32}),
    "attention": Case("attention", (1, 1, 5, 4)),
    "attention_backward": Case("attention_backward", (1, 1, 5, 4)),
    "relu_conv3x3_backward": Case("relu_conv3x3_backward", (1, 2, 1, 3), variant="line-bias-residual"),
    "group_norm_silu_backward": Case("group_norm_silu_backward", (1, 6, 1, 2), variant="scale-shift", num_groups=2),
    "sum_norm_silu_backward": Case("sum_norm_silu_backward", (1, 6, 1, 2), variant="residual-scale-shift", num_groups=2),
}


def reference(op: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, ...]:
    function: Any = OPS[op].reference
    return as_tuple(function(*arguments, **keywords))


def judge(case: Case, place: int = 0, change: Callable[[Any], Any] = lambda same: same, factor: float = 1.0) -> None:
    """Holds what an exact kernel would compute from a changed argument, times `factor`, to the yardstick."""
    exact = case.arguments(torch.float64)
    wrong = (*exact[:place], change(exact[place]), *exact[place + 1 :])
    double = dict.fromkeys(case.keywords, torch.float64)
    honest = reference(case.op, case.arguments(), case.keywords)
    truth, got = (reference(case.op, given, double) for given in (exact, wrong))
    of_each = magnitudes(case.op, case.arguments(), case.keywords)
    assert of_each is not None
    for result, like, true, size in zip(got, honest, truth, of_each, strict=True):
        assert_within_yardstick((factor * result).to(like.dtype), like, true, size)


@pytest.mark.parametrize("op", MEASURED)
def test_many_results_are_measured_by_the_largest_as_ever(op):
    assert set(magnitudes(op, WHOLE[op].arguments(), WHOLE[op].keywords)) == {None}


@pytest.mark.parametrize("op", MEASURED)
@pytest.mark.parametrize("of", [WHOLE, TINY], ids=["whole", "tiny"])
def test_the_truth_rounded_is_within(op, of):
    judge(of[op])


@pytest.mark.parametrize("op", MEASURED)
@pytest.mark.parametrize(("of", "fault"), [(WHOLE, 1e-6), (TINY, 1e-5)], ids=["whole", "tiny"])
def test_a_whole_result_that_is_off_by_little_is_caught(op, of, fault):
    """By eight roundings, or, where a few numbers are all there is, by eighty."""
    with pytest.raises(AssertionError, match="is beyond"):
        judge(of[op], factor=1 + fault)


# What a kernel might get wrong: (op, the argument's place, what becomes of it). Four millionths where other terms are larger.
GREATER, GREATER_4 = 1 + 1e-6, 1 + 4e-6
FAULTS = {
    "guided_step-a": ("guided_step", 3, lambda rows: rows * torch.tensor([GREATER_4, 1, 1, 1])),
    "guided_step-b": ("guided_step", 3, lambda rows: rows * torch.tensor([1, GREATER_4, 1, 1])),
    "guided_step-d": ("guided_step", 3, lambda rows: rows * torch.tensor([1, 1, GREATER_4, 1])),
    "guided_step-c": ("guided_step", 3, lambda rows: rows * torch.tensor([1, 1, 1, GREATER_4])),
    "q_sample-signal": ("q_sample", 1, lambda marginal: marginal * torch.tensor([GREATER, 1])),
    "q_sample-sigma": ("q_sample", 1, lambda marginal: marginal * torch.tensor([1, GREATER_4])),
    "attention-scale": ("attention", 0, lambda q: q * GREATER),
    "attention_backward-scale": ("attention_backward", 1, lambda q: q * GREATER),
    "group_norm_silu-eps": ("group_norm_silu", 6, lambda norm_eps: 3 * norm_eps),
    "group_norm_silu-scale": ("group_norm_silu", 3, lambda scale: scale * GREATER),
    "group_norm_silu_backward-eps": ("group_norm_silu_backward", 7, lambda norm_eps: 5 * norm_eps),
    "residual_sum-gain": ("residual_sum", 3, lambda gain: gain * GREATER),
    "residual_sum-residual": ("residual_sum", 2, lambda residual: residual * GREATER_4),
    "sum_norm_silu-temb": ("sum_norm_silu", 3, lambda temb: temb * GREATER_4),
    "sum_norm_silu-scale": ("sum_norm_silu", 7, lambda scale: scale * GREATER),
    "conv3x3-gain": ("conv3x3", 11, lambda gain: gain * GREATER),
    "conv3x3-residual": ("conv3x3", 8, lambda residual: residual * GREATER_4),
    "affine_relu-slope": ("affine_relu", 1, lambda slope: slope * GREATER_4),
    "affine_relu_backward-slope": ("affine_relu_backward", 2, lambda slope: slope * GREATER_4),
    "relu_conv3x3-offset": ("relu_conv3x3", 4, lambda offset: offset * GREATER_4),
}
MISSING = {
    "guided_step-grad": ("guided_step", 2, lambda grad: None),
    "guided_step-noise": ("guided_step", 3, lambda rows: rows * torch.tensor([1, 1, 1, 0])),
    "q_sample-noise": ("q_sample", 1, lambda marginal: marginal * torch.tensor([1, 0])),
    "attention-scale": ("attention", 0, lambda q: q * q.shape[-1] ** 0.5),
    "attention_backward-scale": ("attention_backward", 1, lambda q: q * q.shape[-1] ** 0.5),
    "group_norm_silu-shift": ("group_norm_silu", 4, lambda shift: None),
    "group_norm_silu_backward-silu": ("group_norm_silu_backward", 8, lambda silu: False),
    "sum_norm_silu_backward-sum": ("sum_norm_silu_backward", 6, lambda grad_sum: None),
    "residual_sum-bias": ("residual_sum", 1, lambda bias: None),
    "sum_norm_silu-temb": ("sum_norm_silu", 3, lambda temb: None),
    "sum_norm_silu-gain": ("sum_norm_silu", 11, lambda gain: 1.0),
    "sum_norm_silu-shift": ("sum_norm_silu", 8, lambda shift: None),
    "conv3x3-bias": ("conv3x3", 2, lambda bias: None),
    "conv3x3-residual": ("conv3x3", 8, lambda residual: None),
    "affine_relu-residual": ("affine_relu", 3, lambda residual: 0 * residual),
    "affine_relu_backward-sum": ("affine_relu_backward", 3, lambda grad_sum: None),
    "relu_conv3x3-bias": ("relu_conv3x3", 2, lambda bias: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_constant_that_is_off_by_a_few_millionths_is_caught(fault):
    op, place, change = FAULTS[fault]
    with pytest.raises(AssertionError, match="is beyond"):
        judge(WHOLE[op], place, change)


@pytest.mark.parametrize("fault", MISSING)
@pytest.mark.parametrize("of", [WHOLE, TINY], ids=["whole", "tiny"])
def test_a_term_that_is_missing_is_caught(fault, of):
    op, place, change = MISSING[fault]
    with pytest.raises(AssertionError, match="is beyond"):
        judge(of[op], place, change)

# A norm's x and scale; a skip, which is read as it is.
FIXED = {
    "group_norm_silu": (0, 3),
    "group_norm_silu_backward": (1, 4),
    "conv3x3": (0, 5),
    "sum_norm_silu": (4, 7),
    "sum_norm_silu_backward": (1, 4),
}


@pytest.mark.parametrize("op", [op for op in MEASURED if op != "philox_normal"])
def test_a_rounding_of_every_input_moves_a_result_by_about_its_size(op):
    """Sizes are derived by hand; here the specification is asked, in float64. A term of two factors moves by two roundings, and
    where sizes add up as their squares do, a sum may move by a few of them.

    Of a norm, x and scale are left as they are: where groups are small, every engine takes the moments and 1 + scale in float64.
    """
    step, reached = 1e-7, 0.0
    generator = torch.Generator().manual_seed(0)
    for case in [TINY[op], *(case for case in cases(op) if case.dtype == torch.float32 and 0 not in case.shape)]:
        of_each = magnitudes(op, case.arguments(), case.keywords)
        if all(size is None for size in of_each):
            continue
        keywords = dict.fromkeys(case.keywords)
        exact = case.arguments(torch.float64)
        truth = reference(op, exact, keywords)
        for _ in range(16):
            moved = (value if place in FIXED.get(op, ()) else nudged(value, step, generator) for place, value in enumerate(exact))
            for result, true, size in zip(reference(op, tuple(moved), keywords), truth, of_each, strict=True):
                if size is None or not true.numel():
                    continue
                difference = (result - true).abs().numpy() / step
                assert (difference <= 6 * size + 1e-6).all(), case
                reached = max(reached, float((difference / np.maximum(size, 1e-300)).max()))
    assert reached > 0.4


def nudged(value: Any, step: float, generator: torch.Generator) -> Any:
    """A float tensor, every element a rounding greater or less."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value * (1 + step * (2 * torch.randint(0, 2, value.shape, generator=generator) - 1))
