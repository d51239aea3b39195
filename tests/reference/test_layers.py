"""The layers as specified: against PyTorch's own modules, and the written-out gradient against autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from purify_engine.reference.layers import (
    attention,
    conv3x3,
    conv3x3_backward,
    group_norm_silu,
    group_norm_silu_backward,
    relu_conv3x3,
)
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


def test_parameters_may_be_more_precise_than_images_and_get_gradients_of_their_own_dtype():
    """The result is the image's dtype; so are no gradients but the image's own."""
    x, *given = CASES[1].arguments()
    weight, bias, scale, shift, *rest = (part.float() if isinstance(part, torch.Tensor) else part for part in given)
    low = x.to(torch.bfloat16)
    assert group_norm_silu(low, weight, bias, scale, shift, *rest).dtype == torch.bfloat16
    backward = group_norm_silu_backward(low.float(), low, weight, bias.double(), scale, shift.double(), *rest)
    assert [grad.dtype for grad in backward] == [torch.bfloat16, torch.float32, torch.float64, torch.float32, torch.float64]
    filters, temb = torch.ones(2, 6, 3, 3), torch.ones(3, 2)
    around = (weight, bias, scale, shift, temb, torch.ones(3, 2, 4, 5))
    assert conv3x3(low, filters, torch.ones(2), *around, num_groups=2).dtype == torch.bfloat16
    assert conv3x3_backward(torch.ones(3, 2, 4, 5, dtype=torch.bfloat16), filters).dtype == torch.bfloat16
    assert relu_conv3x3(low, filters, torch.ones(2), weight, bias).dtype == torch.bfloat16


def test_what_is_not_given_has_an_empty_gradient():
    arguments = CASES[0].arguments()
    grads = group_norm_silu_backward(torch.ones_like(arguments[0]), *arguments)
    assert [grad.shape for grad in grads] == [(3, 6, 4, 5), (6,), (6,), (0,), (0,)]
    assert all(grad.dtype == torch.float64 for grad in grads)


def test_by_default_a_norm_has_one_group_and_a_silu():
    x, weight, bias, *_ = CASES[0].arguments()
    filters = torch.randn(2, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = 1e-3 * x  # where 1e-5 counts
    normed = F.silu(F.group_norm(small, 1, weight, bias, 1e-5))
    torch.testing.assert_close(conv3x3(small, filters, None, weight, bias), F.conv2d(normed, filters, padding=1))
    explicit = (x, weight, bias, None, None, 2, 1e-5, True)
    torch.testing.assert_close(group_norm_silu(*explicit[:-1]), group_norm_silu(*explicit))
    defaulted, expected = (group_norm_silu_backward(torch.ones_like(x), *given) for given in (explicit[:-1], explicit))
    for grad, like in zip(defaulted, expected, strict=True):
        torch.testing.assert_close(grad, like)
