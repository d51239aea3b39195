"""purify::q_sample: the C++ extension against reference/process.py, its gradient, its registration."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import process
from purify_engine.testing.cases import Case, cases
from tests.ops.against_reference import assert_matches_reference

SMALL = Case("q_sample", (2, 2, 1, 3), torch.float64)
# All of opcheck but a trace of the gradient with dynamic shapes: it takes seconds, and guided_step, of the same make, has it.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("case", cases("q_sample"), ids=str)
def test_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, torch.ops.purify.q_sample, process.q_sample)


@pytest.mark.parametrize("net_dtype", [None, torch.float64], ids=str)
def test_first_and_second_gradients_are_right_from_both_outputs(net_dtype):
    def noised(*arguments):
        return ops.q_sample(*arguments, net_dtype=net_dtype)

    assert torch.autograd.gradcheck(noised, SMALL.differentiable())
    assert torch.autograd.gradgradcheck(noised, SMALL.differentiable())


@pytest.mark.parametrize(
    ("shape", "net_dtype"), [((2, 3, 4, 4), torch.bfloat16), ((2, 1, 3, 3), torch.float32), ((0, 3, 2, 2), None)], ids=str
)
def test_registration_is_sound(shape, net_dtype):
    arguments = Case("q_sample", shape).differentiable()
    torch.library.opcheck(torch.ops.purify.q_sample.default, arguments, {"net_dtype": net_dtype}, test_utils=QUICK)


def test_the_gradient_is_the_signal_share():
    x_start, marginal, *rest = SMALL.differentiable()
    (grad,) = torch.autograd.grad(ops.q_sample(x_start, marginal, *rest)[0].sum(), x_start)
    assert torch.equal(grad, marginal[0].expand_as(grad))
