"""purify::affine_relu and its gradient: the sum, the line and the ReLU between two blocks of a residual classifier."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import layers
from purify_engine.testing.cases import Case, cases
from tests.ops.against_reference import assert_matches_reference

OPS = ("affine_relu", "affine_relu_backward")
SMALL = [Case(op, (2, 3, 1, 2), torch.float64, variant=variant) for op in OPS for variant in ("plain", "residual")]


def op_of(name):
    return getattr(torch.ops.purify, name)


@pytest.mark.parametrize("case", [case for op in OPS for case in cases(op)], ids=lambda case: f"{case.op}-{case}")
def test_matches_the_reference(case):
    assert_matches_reference(case, getattr(ops, case.op), getattr(layers, case.op), "reference")


def test_it_is_what_it_says():
    x, slope, offset, residual = Case(OPS[0], (2, 3, 5, 4), torch.float64, variant="residual").arguments()
    total, y = ops.affine_relu(x, slope, offset, residual)
    assert torch.equal(total, x + residual)
    assert (y - (slope[:, None, None] * (x + residual) + offset[:, None, None]).clamp(min=0)).abs().max() < 1e-14
    nothing, y = ops.affine_relu(x, slope, offset)
    assert nothing.numel() == 0
    assert (y - (slope[:, None, None] * x + offset[:, None, None]).clamp(min=0)).abs().max() < 1e-14


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_first_and_second_gradients_are_right(case, frozen):
    given, op = list(case.arguments()), op_of(case.op)
    constant = {"affine_relu": (1, 2) if frozen else (), "affine_relu_backward": (1, 2) if frozen else (1,)}[case.op]
    for place, tensor in enumerate(given):
        if tensor is not None and place not in constant:  # the gradient is constant in y, where that is not 0
            tensor.requires_grad_()

    def results(*given):
        found = op(*given)
        return found if case.op == OPS[1] else tuple(part for part in found if part.numel())

    assert torch.autograd.gradcheck(results, given)
    assert torch.autograd.gradgradcheck(results, given)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.op}-{case}")
def test_registration_is_sound(case):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op_of(case.op).default, case.differentiable(), test_utils=checks)


def test_x_and_residual_share_one_gradient_and_a_sum_that_is_not_read_costs_none():
    x, slope, offset, residual = Case(OPS[0], (2, 3, 2, 2), torch.float64, variant="residual").arguments()
    x.requires_grad_(), residual.requires_grad_()
    total, y = ops.affine_relu(x, slope, offset, residual)
    mask = (y > 0) * slope[:, None, None]
    of_x, of_residual = torch.autograd.grad(y.sum(), (x, residual), retain_graph=True)
    assert torch.equal(of_x, mask) and of_x.data_ptr() == of_residual.data_ptr()
    of_x, of_residual = torch.autograd.grad(y.sum() + 2 * total.sum(), (x, residual), retain_graph=True)
    assert torch.equal(of_x, mask + 2) and of_x.data_ptr() == of_residual.data_ptr()
    (of_x,) = torch.autograd.grad(total.sum(), x)
    assert torch.equal(of_x, torch.ones_like(x))
