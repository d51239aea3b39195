"""Convolutions by packed weights: PyTorch's numbers and gradients, weights that follow the parameter, who is left alone."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from purify_engine import ops
from purify_engine.ops.conv2d import _MKLDNN

# (batch, channels, out_channels, pixels, kernel, stride, padding)
SHAPES = [(1, 16, 32, 17, 3, 2, 0), (2, 5, 7, 16, 3, 2, 1), (3, 8, 4, 9, 1, 2, 0), (1, 3, 8, 8, 5, 1, 2), (2, 32, 32, 8, 3, 1, 1)]


def arguments(batch, channels, out_channels, pixels, kernel, stride, padding, layout=torch.channels_last):
    generator = torch.Generator().manual_seed(batch + channels)
    x = torch.randn(batch, channels, pixels, pixels, generator=generator).to(memory_format=layout)
    weight = torch.randn(out_channels, channels, kernel, kernel, generator=generator) / (channels * kernel**2) ** 0.5
    return x, weight, torch.randn(out_channels, generator=generator), (stride, stride), (padding, padding)


def near(got, expected):
    return (got - expected).norm() <= 1e-6 * expected.norm()


@pytest.fixture
def packings(monkeypatch):
    """Counts how often weights are packed."""
    counted, mkldnn = [], _MKLDNN

    class Counting:
        def __getattr__(self, name):
            found = getattr(mkldnn, name)
            if not name.startswith("_reorder"):
                return found
            return lambda *given: (counted.append(name), found(*given))[1]

    monkeypatch.setattr(sys.modules["purify_engine.ops.conv2d"], "_MKLDNN", Counting())
    return counted


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_pytorchs_convolution_in_its_layout(shape, packings):
    x, weight, bias, *how = arguments(*shape)
    for given in (bias, None):
        expected, got = F.conv2d(x, weight, given, *how), ops.conv2d(x, weight, given, *how)
        assert near(got, expected) and got.is_contiguous(memory_format=torch.channels_last)
    assert packings == ["_reorder_convolution_weight"]


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_pytorchs_to_the_second_order(shape, packings):
    x, weight, bias, *how = arguments(*shape)
    found = []
    for conv in (F.conv2d, ops.conv2d):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(conv(leaf, weight, bias, *how).pow(3).sum(), leaf, create_graph=True)
        found.append((grad, torch.autograd.grad(grad.pow(2).sum(), leaf)[0]))
    assert sorted(packings) == ["_reorder_convolution_transpose_weight", "_reorder_convolution_weight"]
    assert all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))
               for theirs, ours in zip(*found, strict=True))  # fmt: skip


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    x, weight, bias, *how = arguments(*SHAPES[1])
    y = ops.conv2d(x.requires_grad_(), weight, bias, *how)
    weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_changed_weight_or_size_is_packed_again(packings):
    x, weight, bias, *how = arguments(*SHAPES[1])
    conv = nn.Conv2d(5, 7, 3, 2, 1).requires_grad_(False)
    for change in (lambda: None, lambda: conv.weight.mul_(2), lambda: conv.load_state_dict({"weight": weight, "bias": bias})):
        change()
        for _ in range(2):
            assert near(ops.conv2d(x, conv.weight, conv.bias, *how), F.conv2d(x, conv.weight, conv.bias, *how))
    larger = torch.cat([x, x]).to(memory_format=torch.channels_last)
    assert near(ops.conv2d(larger, conv.weight, conv.bias, *how), F.conv2d(larger, conv.weight, conv.bias, *how))
    assert len(packings) == 4


def test_the_gradients_weight_is_packed_again_for_another_size_or_when_it_changed(packings):
    weight = torch.randn(7, 5, 3, 3)
    for change, pixels in ((lambda: None, 16), (lambda: weight.mul_(2), 16), (lambda: None, 15), (lambda: None, 15)):
        change()
        x = torch.randn(2, 5, pixels, pixels).to(memory_format=torch.channels_last).requires_grad_()
        expected, got = (torch.autograd.grad(conv(x, weight, None, (2, 2), (1, 1)).pow(2).sum(), x)[0]
                         for conv in (F.conv2d, ops.conv2d))  # fmt: skip
        assert near(got, expected) and got.is_contiguous(memory_format=torch.channels_last)
    assert packings.count("_reorder_convolution_transpose_weight") == 3


def test_a_gradient_in_another_layout_takes_pytorchs_way(packings):
    x, weight, bias, *how = arguments(*SHAPES[1])
    x.requires_grad_()
    expected, got = (torch.autograd.grad(conv(x, weight, bias, *how), x, torch.ones(2, 7, 8, 8))[0]
                     for conv in (F.conv2d, ops.conv2d))  # fmt: skip
    assert near(got, expected)
    assert packings == ["_reorder_convolution_weight"]


def test_other_layouts_keep_theirs(packings):
    x, weight, bias, *how = arguments(*SHAPES[1], torch.contiguous_format)
    assert torch.equal(ops.conv2d(x, weight, bias, *how), expected := F.conv2d(x, weight, bias, *how))
    assert ops.conv2d(x, weight, bias, *how).stride() == expected.stride()
    assert not packings


def test_what_trains_or_is_not_float32_takes_pytorchs_way(packings):
    x, weight, bias, *how = arguments(*SHAPES[0])
    for leaf in (weight, bias):
        leaf.requires_grad_()
        (grad,) = torch.autograd.grad(ops.conv2d(x, weight, bias, *how).square().sum(), leaf)
        assert torch.equal(grad, torch.autograd.grad(F.conv2d(x, weight, bias, *how).square().sum(), leaf)[0])
        leaf.requires_grad_(False)
    wide = [tensor.double() for tensor in (x, weight, bias)]
    assert torch.equal(ops.conv2d(*wide, *how), F.conv2d(*wide, *how))
    with torch.inference_mode():
        assert near(ops.conv2d(x.clone(), weight.clone(), None, *how), F.conv2d(x, weight, None, *how))
    assert ops.conv2d(x[:0], weight, bias, *how).shape == (0, 32, 8, 8)
    assert not packings


def test_who_looks_on_sees_pytorchs_convolution(packings):
    x, weight, bias, *how = arguments(*SHAPES[0])
    with ops.backend("reference"):
        assert torch.equal(ops.conv2d(x, weight, bias, *how), F.conv2d(x, weight, bias, *how))
    with FlopCounterMode(display=False) as counter:
        ops.conv2d(x, weight, bias, *how)
    assert counter.get_total_flops() == 2 * 9 * 16 * 32 * 8 * 8
    compiled = torch.compile(ops.conv2d, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, weight, bias, *how), F.conv2d(x, weight, bias, *how))
    with FakeTensorMode() as mode:
        assert ops.conv2d(mode.from_tensor(x), mode.from_tensor(weight), None, *how).shape == (1, 32, 8, 8)
    assert torch.func.vmap(lambda one: ops.conv2d(one, weight, bias, *how))(x[None]).shape == (1, 1, 32, 8, 8)
    assert not packings


def test_without_onednn_it_is_pytorchs(monkeypatch, packings):
    x, weight, bias, *how = arguments(*SHAPES[0])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert torch.equal(ops.conv2d(x, weight, bias, *how), F.conv2d(x, weight, bias, *how))
    assert not packings
