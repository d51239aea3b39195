"""Doubling and halving by one 4x4 convolution: the specification's numbers and gradients, and filters that follow the weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from purify_engine import ops
from purify_engine.ops import resampling, switches
from purify_engine.reference import layers

# batch, channels, out_channels, height, width: odd and even, one pixel of a side, a row
SIZES = [(2, 5, 7, 4, 6), (1, 3, 2, 7, 5), (3, 4, 4, 8, 3), (1, 2, 3, 2, 2), (2, 3, 4, 3, 9), (0, 2, 2, 4, 4)]
DOUBLED = [*SIZES, (2, 3, 5, 1, 1), (1, 4, 2, 1, 6)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def drawn(batch, channels, out_channels, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(channels)
    shapes = (batch, channels, height, width), (out_channels, channels, 3, 3), (out_channels,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def halved(x, weight, bias):
    """The specification: zeros right and below, then every second pixel."""
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)


def doubled(x, weight, bias):
    return layers.conv3x3(x, weight, bias, upsample=True)


def up(x, weight, bias):
    return ops.conv3x3(x, weight, bias, upsample=True)


WAYS = {"doubled": (up, doubled, "transposed_upsample"), "halved": (ops.downsampled, halved, "padded_downsample")}
CASES = [("doubled", sizes) for sizes in DOUBLED] + [("halved", sizes) for sizes in SIZES]


class Noting(TorchFunctionMode):
    """Notes the size of the filters that PyTorch convolves by."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("conv2d", "conv_transpose2d"):
            self.seen.append(tuple(args[1].shape[2:]))
        return func(*args, **kwargs or {})


@pytest.fixture
def calls():
    with Noting() as noting:
        yield noting.seen


@pytest.mark.parametrize(("way", "sizes"), CASES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_specification_in_float64(way, sizes, layout, biased, calls):
    ours, specification, _ = WAYS[way]
    x, weight, bias = drawn(*sizes)
    x, bias = x.to(memory_format=layout), bias if biased else None
    with switches.anywhere():
        got = ours(x, weight, bias)
    assert calls == [(4, 4)]
    expected = specification(x, weight, bias)
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_what_surrounds_the_convolution_is_added_as_ever(gain, calls):
    x, weight, bias = drawn(2, 4, 6, 3, 5)
    temb, residual = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, 6, 10, dtype=torch.float64)
    with switches.anywhere():
        got = ops.conv3x3(x, weight, bias, temb=temb, residual=residual, gain=gain, upsample=True)
    assert calls == [(4, 4)]
    expected = layers.conv3x3(x, weight, bias, temb=temb, residual=residual, gain=gain, upsample=True)
    assert (got - expected).norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_right_to_the_second_order(way, calls):
    ours = WAYS[way][0]
    x, weight, bias = drawn(2, 2, 3, 3, 4)
    x, bias = x.requires_grad_(), bias.requires_grad_()
    with switches.anywhere():
        assert torch.autograd.gradcheck(lambda x, bias: ours(x, weight, bias), (x, bias))
        assert torch.autograd.gradgradcheck(lambda x, bias: ours(x, weight, bias), (x, bias))
    assert set(calls) == {(4, 4)}


@pytest.mark.parametrize("way", WAYS)
def test_sums_of_taps_are_rounded_once(way):
    ours, specification, _ = WAYS[way]
    x, weight, bias = drawn(2, 32, 8, 6, 6, torch.bfloat16)
    with switches.anywhere():
        got = ours(x, weight, bias).double()
    truth = specification(x.double(), weight.double(), bias.double())
    honest = specification(x, weight, bias).double()
    assert (got - truth).norm() <= 2 * (honest - truth).norm()
    # one tap: x is 1 in one channel of one pixel, and the result shows the filters themselves
    taps = resampling._made(weight, "transposed")
    assert taps.dtype == torch.float32
    wide = weight.float().transpose(0, 1)
    assert torch.equal(taps[..., 1, 3], wide[..., 1, 0] + wide[..., 2, 0])


@pytest.mark.parametrize("way", WAYS)
def test_filters_are_kept_and_made_again_when_the_weight_changes(way, monkeypatch):
    ours, specification, _ = WAYS[way]
    made, make = [], resampling._made
    monkeypatch.setattr(resampling, "_made", lambda weight, kind: made.append(kind) or make(weight, kind))
    x, weight, bias = drawn(1, 3, 4, 4, 4)
    with switches.anywhere():
        for _ in range(2):
            ours(x, weight, bias)
        assert len(made) == 1
        weight.mul_(2)
        assert torch.allclose(ours(x, weight, bias), specification(x, weight, bias), rtol=1e-12)
    assert len(made) == 2


@pytest.mark.parametrize("way", WAYS)
def test_filters_made_in_inference_mode_serve_gradients_later(way):
    ours = WAYS[way][0]
    x, weight, bias = drawn(1, 3, 4, 4, 4)
    with switches.anywhere():
        with torch.inference_mode():
            ours(x, weight, bias)
        (grad,) = torch.autograd.grad(ours(x.requires_grad_(), weight, bias).sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize("way", WAYS)
def test_weights_in_training_and_cpus_and_what_is_switched_off_keep_pytorchs_way(way, calls):
    ours, specification, switch = WAYS[way]
    x, weight, bias = drawn(1, 3, 4, 4, 4)
    ours(x, weight, bias)
    with switches.anywhere():
        with switches.switched(**{switch: False}):
            ours(x, weight, bias)
        (grad,) = torch.autograd.grad(ours(x, weight.requires_grad_(), bias).square().sum(), weight)
        (expected,) = torch.autograd.grad(specification(x, weight, bias).square().sum(), weight)
    assert torch.allclose(grad, expected)
    assert set(calls) == {(3, 3)}


@pytest.mark.parametrize("way", WAYS)
def test_many_weights_at_once_are_each_applied(way):
    ours, specification, _ = WAYS[way]
    x, weight, bias = drawn(1, 3, 4, 4, 4)
    several = torch.stack([weight, 2 * weight])
    with switches.anywhere():
        got = torch.func.vmap(lambda filters: ours(x, filters, bias))(several)
    assert torch.allclose(got, torch.stack([specification(x, each, bias) for each in several]), rtol=1e-12)
