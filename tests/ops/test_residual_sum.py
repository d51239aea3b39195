"""purify::residual_sum: bias, residual and gain behind a convolution, as PyTorch adds them one after the other."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import sums
from purify_engine.testing.cases import Case, cases
from tests.ops.against_reference import assert_matches_reference

OP = "residual_sum"
SMALL = [Case(OP, (2, 2, 1, 2), torch.float64, variant=variant) for variant in ("plain", "bias", "residual-bias-gain")]


@pytest.mark.parametrize("case", cases(OP), ids=str)
def test_matches_the_reference(case):
    assert_matches_reference(case, ops.residual_sum, sums.residual_sum, "reference")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_and_second_gradients_are_right(case):
    assert torch.autograd.gradcheck(ops.residual_sum, case.differentiable())
    assert torch.autograd.gradgradcheck(ops.residual_sum, case.differentiable())


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_registration_is_sound(case):
    torch.library.opcheck(torch.ops.purify.residual_sum.default, case.differentiable())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_a_convolution_with_its_bias_and_the_sum_after_it_to_the_bit(dtype):
    x, weight = torch.randn(2, 8, 5, 5).to(dtype), torch.randn(8, 8, 3, 3).to(dtype)
    bias, residual = torch.randn(8).to(dtype), torch.randn(2, 8, 5, 5).to(dtype)
    raw = torch.nn.functional.conv2d(x, weight, padding=1)
    expected = (residual + (raw + bias[:, None, None])) * 0.5**0.5
    assert torch.equal(ops.residual_sum(raw, bias, residual, 0.5**0.5), expected)


def test_is_in_memory_of_its_own():
    x = torch.randn(1, 2, 3, 3)
    y = ops.residual_sum(x)
    assert torch.equal(x, y) and x.data_ptr() != y.data_ptr()
