"""purify::attention: the reference behind the socket, its gradients and its registration."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from purify_engine import ops
from purify_engine.ops import switches
from purify_engine.reference import layers
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


def in_qkv(batch=2, heads=2, tokens=6, head_dim=8):
    """Queries, keys and values as a channels_last 1x1 convolution leaves them side by side."""
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return qkv.transpose(1, 3).unbind(2)


def test_the_librarys_attention_is_the_specification_and_stored_as_images_are():
    q, k, v = in_qkv()
    with switches.anywhere(), switches.switched(library_attention=True):
        assert ops.OPS["attention"].resolve(q, k, v)[0] == "torch"
        got = ops.attention(q, k, v)
    torch.testing.assert_close(got, layers.attention(q, k, v), rtol=1e-12, atol=1e-12)
    assert got.transpose(1, 2).is_contiguous()


def test_the_librarys_attention_has_right_gradients_to_the_second_order():
    arguments = Case("attention", (1, 2, 3, 4), torch.float64).differentiable()
    with switches.anywhere(), switches.switched(library_attention=True):
        assert torch.autograd.gradcheck(ops.attention, arguments)
        assert torch.autograd.gradgradcheck(ops.attention, arguments)


@pytest.mark.parametrize("engine", ["triton", "reference"])
def test_the_librarys_attention_runs_where_it_is_switched_on_and_nothing_else_is_asked_for(engine):
    q, k, v = in_qkv()
    op = ops.OPS["attention"]
    with switches.anywhere():
        assert op.resolve(q, k, v)[0] == "reference"
        with switches.switched(library_attention=True):
            assert op.resolve(q, k[:, :, :0], v[:, :, :0])[0] == "reference"
            if engine == "reference" or isinstance(op.engines["triton"], ops.Launcher):
                with ops.backend(engine):
                    assert op.resolve(*(each.float() for each in (q, k, v)))[0] == engine
