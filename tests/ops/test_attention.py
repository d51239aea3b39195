"""purify::attention: the reference behind the socket, its gradients and its registration."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from purify_engine import ops
from purify_engine.testing.cases import Case, cases


@pytest.mark.parametrize("case", cases("attention"), ids=str)
def test_is_the_attention_of_pytorch(case):
    q, k, v = case.arguments()
    truth = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    # three matrix-sized reductions of at most 16 terms each
    torch.testing.assert_close(ops.attention(q, k, v).double(), truth, rtol=0, atol=16 * torch.finfo(case.dtype).eps)


def test_first_and_second_gradients_are_right():
    arguments = Case("attention", (1, 2, 3, 4), torch.float64).differentiable()
    assert torch.autograd.gradcheck(ops.attention, arguments)
    assert torch.autograd.gradgradcheck(ops.attention, arguments)


@pytest.mark.parametrize("case", cases("attention_backward"), ids=str)
def test_gradient_is_that_of_pytorch(case):
    grad_out, q, k, v = (tensor.double() for tensor in case.arguments())
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    truth = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), leaves, grad_out)
    for got, true in zip(ops.attention_backward(*case.arguments()), truth, strict=True):
        # sums of products of sums, each of at most 16 terms
        torch.testing.assert_close(got.double(), true, rtol=0, atol=64 * torch.finfo(case.dtype).eps)


def test_registration_is_sound():
    torch.library.opcheck(torch.ops.purify.attention.default, Case("attention", (1, 2, 3, 4)).differentiable())


def test_autocast_does_not_lower_its_precision():
    arguments = Case("attention", (2, 2, 16, 8)).differentiable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.attention(*arguments)
        grads = torch.autograd.grad(inside.sum(), arguments)
    outside = ops.attention(*arguments)
    assert torch.equal(inside, outside)
    assert all(map(torch.equal, grads, torch.autograd.grad(outside.sum(), arguments)))
