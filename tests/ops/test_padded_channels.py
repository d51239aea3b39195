"""3x3 convolutions behind channels of zeros: the specification's numbers, gradients and layouts, and who runs so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine import ops
from purify_engine.ops import switches
from purify_engine.ops.conv3x3 import padded, turned
from purify_engine.reference import layers

# channels, out_channels: from images, to images, also with their variance, both, one channel, no multiple of 8 on the other side
WIDTHS = [(3, 16), (16, 3), (8, 6), (3, 3), (1, 8), (8, 1), (3, 12), (12, 3)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def drawn(channels, out_channels, height=5, width=4, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(channels)
    shapes = (batch, channels, height, width), (out_channels, channels, 3, 3), (out_channels,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


class Noting(TorchFunctionMode):
    """Notes the shapes of the filters that PyTorch convolves by."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "conv2d":
            self.seen.append(tuple(args[1].shape[:2]))
        return func(*args, **kwargs or {})


class NotingAll(TorchDispatchMode):
    """The same of what runs in backward passes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution:
            self.seen.append(tuple(args[1].shape[:2]))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_specification_in_float64(widths, layout, biased):
    x, weight, bias = drawn(*widths)
    x, bias = x.to(memory_format=layout), bias if biased else None
    with switches.anywhere(), Noting() as noting:
        got = ops.conv3x3(x, weight, bias)
    assert [[size % 8 for size in shape] for shape in noting.seen] == [[0, 0]]
    expected = layers.conv3x3(x, weight, bias)
    assert got.shape == expected.shape and got.stride() == expected.stride()
    assert (got - expected).norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("batch", [0, 1])
def test_no_images_and_one_of_one_pixel(batch):
    x, weight, bias = drawn(3, 8, 1, 1, batch)
    with switches.anywhere():
        torch.testing.assert_close(ops.conv3x3(x, weight, bias), layers.conv3x3(x, weight, bias))


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("upsample", [True, False])
def test_what_surrounds_the_convolution_is_added_as_ever(upsample, recorded):
    x, weight, bias = drawn(16, 3)
    size = (10, 8) if upsample else (5, 4)
    temb, residual = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, *size, dtype=torch.float64)
    around = {"temb": temb, "residual": residual, "gain": 0.5, "upsample": upsample}
    with switches.anywhere(), switches.switched(transposed_upsample=False):
        got = ops.conv3x3(x.requires_grad_(recorded), weight, bias, **around)
    torch.testing.assert_close(got, layers.conv3x3(x, weight, bias, **around), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("widths", [(3, 8), (8, 3), (3, 2)], ids=str)
def test_gradients_are_right_to_the_second_order_and_padded_too(widths, turns):
    x, weight, bias = drawn(*widths, 3, 2)
    x, bias = x.requires_grad_(), bias.requires_grad_()
    with switches.anywhere(), switches.switched(turned_filters=turns):
        with NotingAll() as noting:
            torch.autograd.grad(ops.conv3x3(x, weight, bias).sum(), x)
        assert torch.autograd.gradcheck(lambda x, bias: ops.conv3x3(x, weight, bias), (x, bias))
        assert torch.autograd.gradgradcheck(lambda x, bias: ops.conv3x3(x, weight, bias), (x, bias))
    assert noting.seen == ([(8, 8), (8, 8)] if turns else [(8, 8)])


def test_a_guides_first_convolution_and_its_gradient_are_padded():
    x, weight, bias = drawn(3, 16)
    x.requires_grad_()
    found = []
    for on in (True, False):
        with switches.anywhere(), switches.switched(padded_channels=on), NotingAll() as noting:
            y = ops.conv_relu(x, weight, bias)
            (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append([y, first, second])
        if on:
            assert noting.seen == [(16, 8), (8, 16), (16, 8), (8, 16)]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_a_backward_pass_does_as_the_forward_pass_was_told():
    """It runs in a thread of its own on GPUs, where no switch is set."""
    x, weight, bias = drawn(3, 8)
    x.requires_grad_()
    with switches.anywhere():
        y, rectified = ops.conv3x3(x, weight, bias), ops.conv_relu(x, weight, bias)
    with NotingAll() as noting:
        torch.autograd.grad(y.sum() + rectified.sum(), x)
    assert noting.seen == [(8, 8), (8, 8)]


def test_what_to_images_reads_is_stored_as_images_are():
    x, weight, bias = drawn(16, 3)
    x = x.to(memory_format=torch.channels_last)
    with switches.anywhere():
        assert ops.conv3x3(x, weight, bias).is_contiguous(memory_format=torch.channels_last)


def test_the_error_in_16_bits_is_that_of_pytorch():
    for widths in ((3, 32), (32, 3)):
        x, weight, bias = drawn(*widths, 8, 8, dtype=torch.bfloat16)
        with switches.anywhere():
            got = ops.conv3x3(x, weight, bias).double()
        truth, honest = layers.conv3x3(x.double(), weight.double(), bias.double()), layers.conv3x3(x, weight, bias).double()
        assert (got - truth).norm() <= 2 * (honest - truth).norm()


def test_filters_are_padded_once_and_follow_their_weight(monkeypatch):
    made, make = [], padded._padded
    monkeypatch.setattr(padded, "_padded", lambda *given: made.append(1) or make(*given))
    x, weight, bias = drawn(3, 8)
    with switches.anywhere():
        for _ in range(2):
            ops.conv3x3(x, weight, bias)
        assert len(made) == 1
        weight.mul_(2)
        torch.testing.assert_close(ops.conv3x3(x, weight, bias), layers.conv3x3(x, weight, bias))
    assert len(made) == 2


def test_filters_padded_in_inference_mode_serve_gradients_later():
    x, weight, bias = drawn(8, 3)
    with switches.anywhere():
        with torch.inference_mode():
            ops.conv3x3(x, weight, bias)
        (grad,) = torch.autograd.grad(ops.conv3x3(x.requires_grad_(), weight, bias).sum(), x)
    assert grad.isfinite().all()


def test_it_is_for_frozen_3x3s_of_few_channels_in_one_precision():
    x, weight = torch.zeros(1, 3, 4, 4), torch.zeros(8, 3, 3, 3)
    assert not padded.runs(x, weight)
    with switches.anywhere():
        assert padded.runs(x, weight) and padded.runs(x, torch.zeros(8, 3, 3, 3)) and turned.runs(x, weight)
        assert not padded.runs(x.double(), weight)
        assert not padded.runs(x, weight.clone().requires_grad_())
        for other in ((8, 3, 1, 1), (8, 8, 3, 3), (12, 12, 3, 3), (8, 3, 7, 7), (0, 3, 3, 3)):
            assert not padded.runs(x, torch.zeros(other))
        with switches.switched(padded_channels=False):
            assert not padded.runs(x, weight) and not turned.runs(x, weight)


def test_weights_in_training_get_their_gradient():
    x, weight, bias = drawn(3, 8)
    with switches.anywhere():
        (grad,) = torch.autograd.grad(ops.conv3x3(x, weight.requires_grad_(), bias).square().sum(), weight)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).square().sum(), weight)
    torch.testing.assert_close(grad, expected)


def test_many_weights_at_once_are_each_applied():
    x, weight, bias = drawn(3, 8)
    several = torch.stack([weight, 2 * weight])
    with switches.anywhere():
        got = torch.func.vmap(lambda filters: ops.conv3x3(x, filters, bias))(several)
    torch.testing.assert_close(got, torch.stack([layers.conv3x3(x, each, bias) for each in several]))
