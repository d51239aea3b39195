"""purify::q_sample: the C++ room against reference/process.py, its gradient, its registration."""

from __future__ import annotations

import pytest
import torch
from against_reference import assert_matches_reference

from purify_engine import ops
from purify_engine.reference import process
from purify_engine.testing.cases import Case, cases

SMALL = Case("q_sample", (2, 3, 4, 4), torch.float64)


@pytest.mark.parametrize("case", cases("q_sample"), ids=str)
def test_matches_the_reference(case, room):
    assert_matches_reference(case, torch.ops.purify.q_sample, process.q_sample)


@pytest.mark.parametrize("net_dtype", [None, torch.float64], ids=str)
def test_first_and_second_gradients_are_right_from_both_outputs(net_dtype):
    def noised(*arguments):
        return ops.q_sample(*arguments, net_dtype=net_dtype)

    assert torch.autograd.gradcheck(noised, SMALL.differentiable())
    assert torch.autograd.gradgradcheck(noised, SMALL.differentiable())


@pytest.mark.parametrize("net_dtype", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 1, 3, 3), (0, 3, 2, 2)], ids=str)
def test_registration_is_sound(shape, net_dtype):
    case = Case("q_sample", shape)
    torch.library.opcheck(torch.ops.purify.q_sample.default, case.differentiable(), {"net_dtype": net_dtype})


def test_the_gradient_is_the_signal_share():
    x_start, marginal, *rest = SMALL.differentiable()
    (grad,) = torch.autograd.grad(ops.q_sample(x_start, marginal, *rest)[0].sum(), x_start)
    assert torch.equal(grad, marginal[0].expand_as(grad))
