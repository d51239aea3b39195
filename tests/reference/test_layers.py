"""The layers as specified: against PyTorch's own modules, and the written-out gradient against autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from purify_engine.reference.layers import attention, group_norm_silu, group_norm_silu_backward
from purify_engine.testing.cases import Case

VARIANTS = ("plain", "scale-shift", "scale", "shift-linear")
CASES = [Case("group_norm_silu", (3, 6, 4, 5), torch.float64, variant=variant, num_groups=2) for variant in VARIANTS]


def test_is_group_norm_then_scale_and_shift_then_silu():
    x, weight, bias, scale, shift, *_ = CASES[1].arguments()
    normed = F.group_norm(x, 2, weight, bias, 1e-5)
    expected = F.silu(normed * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    assert torch.equal(group_norm_silu(x, weight, bias, scale, shift, 2, 1e-5), expected)


def test_is_the_formula_written_out():
    x, weight, bias, *_ = CASES[0].arguments()
    groups = x.reshape(3, 2, -1)
    normed = ((groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()).view_as(x)
    affine = normed * weight[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(group_norm_silu(x, weight, bias, None, None, 2, 1e-5), affine / (1 + torch.exp(-affine)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_written_out_gradient_is_autograds(case):
    arguments = case.differentiable()
    floats = [value for value in arguments if isinstance(value, torch.Tensor)]
    y = group_norm_silu(*arguments)
    grad_out = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    found = [grad for grad in group_norm_silu_backward(grad_out, *arguments) if grad.numel()]
    for grad, expected in zip(found, torch.autograd.grad(y, floats, grad_out), strict=True):
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_written_out_gradient_is_differentiable(case):
    *floats, num_groups, norm_eps, silu = replace(case, shape=(2, 4, 1, 3)).differentiable()
    grad_out = torch.randn(2, 4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradient(*tensors):
        return group_norm_silu_backward(*tensors, num_groups, norm_eps, silu)

    assert torch.autograd.gradcheck(gradient, (grad_out, *floats))


def test_channels_last_stays_channels_last():
    x, *rest = Case("group_norm_silu", (2, 6, 4, 5), layout="channels_last", num_groups=2).arguments()
    y = group_norm_silu(x, *rest)
    grad_x, *_ = group_norm_silu_backward(torch.ones_like(y), x, *rest)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert grad_x.is_contiguous(memory_format=torch.channels_last)


def test_attention_of_one_token_is_its_value():
    q, k, v = (torch.randn(2, 1, 1, 4, dtype=torch.float64) for _ in range(3))
    assert torch.equal(attention(q, k, v), v)


def test_attention_survives_large_scores():
    q = 1e4 * torch.eye(4, dtype=torch.float64)[None, None]
    torch.testing.assert_close(attention(q, q, q), q)
