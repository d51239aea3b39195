"""purify::group_norm_silu and its gradient: the C++ extension against reference/layers.py."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from purify_engine import ops
from purify_engine.reference import layers
from purify_engine.testing.cases import Case, cases
from tests.ops.against_reference import assert_matches_reference

VARIANTS = ("plain", "scale-shift", "shift-linear", "scale")
SMALL = [Case("group_norm_silu", (2, 4, 1, 3), torch.float64, variant=variant, num_groups=2) for variant in VARIANTS]


@pytest.mark.parametrize("case", cases("group_norm_silu"), ids=str)
def test_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, ops.group_norm_silu, layers.group_norm_silu)


@pytest.mark.parametrize("case", cases("group_norm_silu_backward"), ids=str)
def test_gradient_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, ops.group_norm_silu_backward, layers.group_norm_silu_backward)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_and_second_gradients_are_right(case):
    assert torch.autograd.gradcheck(ops.group_norm_silu, case.differentiable())
    assert torch.autograd.gradgradcheck(ops.group_norm_silu, case.differentiable())


@pytest.mark.parametrize("case", SMALL[1:2], ids=str)
@pytest.mark.parametrize("op", [torch.ops.purify.group_norm_silu, torch.ops.purify.group_norm_silu_backward], ids=str)
def test_registration_is_sound(case, op):
    arguments = case.differentiable()
    if op is torch.ops.purify.group_norm_silu_backward:
        arguments = (torch.randn_like(arguments[0]), *arguments)
    torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ["cpp", "reference"])
def test_low_precision_comes_back_as_it_went_in(dtype, engine):
    x, weight, bias, *rest = Case("group_norm_silu", (2, 8, 5, 5), num_groups=2).arguments()
    with ops.backend(engine):
        y = ops.group_norm_silu(x.to(dtype), weight, bias, *rest)
    truth = layers.group_norm_silu(x.to(dtype).double(), weight.double(), bias.double(), *rest)
    assert y.dtype == dtype
    # a few roundings of the low precision: the reference rounds between its steps
    assert (y - truth).abs().max() < 4 * torch.finfo(dtype).eps * truth.abs().max()


def test_a_large_mean_does_not_cancel(each_instruction_set):
    x, *rest = Case("group_norm_silu", (2, 8, 16, 16), num_groups=2).arguments()
    shifted = x + 4096  # exact enough: the spread keeps 12 bits
    truth = layers.group_norm_silu(shifted.double(), *(v.double() if isinstance(v, torch.Tensor) else v for v in rest))
    assert (ops.group_norm_silu(shifted, *rest) - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("far", [128.0, 2.0**14, 2.0**100, float("inf")])
def test_silu_is_its_limits_far_out(far, each_instruction_set):
    x, one = torch.zeros(1, 1, 1, 1), torch.ones(1)
    assert ops.group_norm_silu(x, one, far * one, None, None, 1, 1e-5).item() == far
    if far < float("inf"):
        assert abs(ops.group_norm_silu(x, one, -far * one, None, None, 1, 1e-5).item()) < 1e-30


def test_a_poisoned_image_never_touches_its_batch(each_instruction_set):
    x, *rest = Case("group_norm_silu", (3, 8, 5, 5), num_groups=2).arguments()
    clean = ops.group_norm_silu(x, *rest)
    x[1, 0, 0, 0] = torch.nan
    y = ops.group_norm_silu(x, *rest)
    assert y[1, :4].isnan().all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


def test_composes_with_checkpointing():
    plain, recomputed = SMALL[1].differentiable(), SMALL[1].differentiable()
    grads = torch.autograd.grad(ops.group_norm_silu(*plain).square().sum(), plain[:5])
    again = torch.autograd.grad(checkpoint(ops.group_norm_silu, *recomputed, use_reentrant=False).square().sum(), recomputed[:5])
    assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))
