"""Convolutions and attention as specified: against PyTorch's own modules, and each written-out gradient against autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from purify_engine.reference.layers import (
    attention,
    attention_backward,
    behind_relu,
    conv3x3,
    conv3x3_backward,
    in_layout_of,
    is_channels_last,
    on_line,
    relu_conv3x3,
    relu_conv3x3_backward,
)

DRAW = torch.Generator().manual_seed(0)


def floats(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=DRAW)


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


X, WEIGHT, BIAS = floats(2, 4, 5, 6), floats(3, 4, 3, 3), floats(3)
NORM_WEIGHT, NORM_BIAS, SCALE, SHIFT = floats(4), floats(4), floats(2, 4), floats(2, 4)


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["an embedding an image", "one embedding"])
def test_everything_around_a_convolution_is_where_the_formula_has_it(upsample, shared):
    """gain (residual + conv(up(silu(norm(x)))) + bias + temb), by modules of PyTorch's."""
    zoom = 2 if upsample else 1
    temb, residual = floats(1 if shared else 2, 3), floats(2, 3, 5 * zoom, 6 * zoom)
    norm, conv = torch.nn.GroupNorm(2, 4, eps=0.1).double(), torch.nn.Conv2d(4, 3, 3, padding=1).double()
    with torch.no_grad():
        given = NORM_WEIGHT, NORM_BIAS, WEIGHT, BIAS
        for parameter, value in zip((*norm.parameters(), *conv.parameters()), given, strict=True):
            parameter.copy_(value)
        h = F.silu(norm(X) * (1 + SCALE[:, :, None, None]) + SHIFT[:, :, None, None])
        h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if upsample else h
        expected = 0.5 * (residual + conv(h) + temb[:, :, None, None])
    around = (NORM_WEIGHT, NORM_BIAS, SCALE, SHIFT, temb, residual)
    found = conv3x3(X, WEIGHT, BIAS, *around, num_groups=2, norm_eps=0.1, gain=0.5, upsample=upsample)
    torch.testing.assert_close(found, expected)


def test_nothing_is_around_a_bare_convolution():
    torch.testing.assert_close(conv3x3(X, WEIGHT), F.conv2d(X, WEIGHT, padding=1))


@pytest.mark.parametrize("upsample", [False, True])
def test_the_gradient_of_a_convolution_is_autograds(upsample):
    x = X.clone().requires_grad_()
    y = conv3x3(x, WEIGHT, upsample=upsample)
    grad_out = floats(*y.shape)
    (expected,) = torch.autograd.grad(y, x, grad_out)
    torch.testing.assert_close(conv3x3_backward(grad_out, WEIGHT, upsample), expected)


LINES = {"no line": (None, None), "line": (floats(4), floats(4))}


@pytest.mark.parametrize("line", LINES)
def test_a_convolution_behind_a_relu(line):
    slope, offset = LINES[line]
    residual = floats(2, 3, 5, 6)
    lined = X if slope is None else slope[:, None, None] * X + offset[:, None, None]
    expected = residual + F.conv2d(F.relu(lined), WEIGHT, BIAS, padding=1)
    torch.testing.assert_close(relu_conv3x3(X, WEIGHT, BIAS, slope, offset, residual), expected)


@pytest.mark.parametrize("line", LINES)
def test_its_gradient_is_autograds(line):
    slope, offset = LINES[line]
    x = X.clone().requires_grad_()
    y = F.conv2d(F.relu(x if slope is None else slope[:, None, None] * x + offset[:, None, None]), WEIGHT, padding=1)
    grad_out = floats(*y.shape)
    (expected,) = torch.autograd.grad(y, x, grad_out)
    torch.testing.assert_close(relu_conv3x3_backward(grad_out, X, WEIGHT, slope, offset), expected)


@pytest.mark.parametrize(("slope", "offset"), [(None, None), (2.0, -1.0), (-4.0, 2.0)], ids=str)
def test_at_exactly_zero_a_relu_passes_no_gradient(slope, offset):
    """As F.relu has it. Zeros are common: behind a ReLU, at padding, in a black image."""
    zero = 0.0 if slope is None else -offset / slope
    x = torch.tensor([zero, zero - 1, zero + 1, zero]).view(1, 1, 2, 2).double().requires_grad_()
    line = (None, None) if slope is None else tuple(torch.full((1,), value).double() for value in (slope, offset))
    assert (on_line(x.detach(), *line) == 0).sum() == 2
    grad = floats(1, 1, 2, 2)
    (expected,) = torch.autograd.grad(F.relu(on_line(x, *line)), x, grad)
    torch.testing.assert_close(behind_relu(grad, x.detach(), *line), expected)
    assert (expected == 0).sum() == 3
    filters = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    filters[0, 0, 1, 1] = 1  # a convolution that changes nothing
    torch.testing.assert_close(relu_conv3x3_backward(grad, x.detach(), filters, *line), expected)


def test_attention_is_pytorchs_and_is_stored_by_tokens():
    q, k, v = floats(2, 3, 5, 4), floats(2, 3, 7, 4), floats(2, 3, 7, 4)
    found = attention(q, k, v)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v))
    assert found.transpose(1, 2).is_contiguous()


def test_the_gradient_of_attention_is_autograds():
    q, k, v = (floats(2, 3, tokens, 4).requires_grad_() for tokens in (5, 7, 7))
    y, grad_out = attention(q, k, v), floats(2, 3, 5, 4)
    for found, expected in zip(attention_backward(grad_out, q, k, v), torch.autograd.grad(y, (q, k, v), grad_out), strict=True):
        torch.testing.assert_close(found, expected)


def test_layouts_follow_the_image():
    assert is_channels_last(nhwc(X)) and not is_channels_last(X)
    assert not is_channels_last(nhwc(X[:, :1]))  # one channel is both, and so contiguous
    assert is_channels_last(in_layout_of(nhwc(X), X.clone())) and not is_channels_last(in_layout_of(X, nhwc(X)))
    assert is_channels_last(relu_conv3x3_backward(floats(2, 3, 5, 6), nhwc(X), WEIGHT))
    assert not is_channels_last(relu_conv3x3_backward(nhwc(floats(2, 3, 5, 6)), X, WEIGHT))
    assert relu_conv3x3_backward(floats(2, 3, 6, 5), X.transpose(2, 3), WEIGHT).is_contiguous()  # neither: then as it comes
