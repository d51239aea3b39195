"""A convolution with its ReLU, and gradients by turned filters: the fused ways in float64 against PyTorch's own operations."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine import ops
from purify_engine.ops import switches
from purify_engine.ops.conv3x3 import turned

# what it is, channels in and out, taps, stride, padding
CONVOLUTIONS = {
    "3x3": (8, 16, 3, (1, 1), (1, 1)),
    "3x3 of few channels": (3, 8, 3, (1, 1), (1, 1)),
    "3x3 of stride 2": (8, 16, 3, (2, 2), (1, 1)),
    "1x1 of stride 2": (8, 16, 1, (2, 2), (0, 0)),
    "5x3": (8, 8, (5, 3), (1, 2), (2, 0)),
}
EVEN_AND_ODD = [(4, 4), (5, 6)]


def problem(name, size=(5, 6), seed=0):
    """x, weight, bias, residual in float64, all distinct from 0 in what the ReLU sees."""
    into, out_of, taps, stride, padding = CONVOLUTIONS[name]
    generator = torch.Generator().manual_seed(seed)
    taps = (taps, taps) if isinstance(taps, int) else taps

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).contiguous()

    x, weight, bias = random(2, into, *size), random(out_of, into, *taps) / 5, random(out_of)
    shape = F.conv2d(x, weight, bias, stride, padding).shape
    return SimpleNamespace(x=x, weight=weight, bias=bias, residual=random(*shape), how={"stride": stride, "padding": padding})


def truth(x, weight, bias, residual, stride, padding):
    y = F.conv2d(x, weight, bias, stride, padding)
    return (y if residual is None else y + residual).clamp(min=0)


class Operations(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", EVEN_AND_ODD, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_it_is_the_convolution_and_the_relu_to_the_second_order(name, bias, residual, size, fused):
    p, found = problem(name, size), []
    for function in (lambda *given: truth(*given, **p.how), lambda *given: ops.conv_relu(*given, **p.how)):
        x, of_residual = p.x.clone().requires_grad_(), p.residual.clone().requires_grad_() if residual else None
        of_bias = p.bias.clone().requires_grad_() if bias else None
        leaves = [leaf for leaf in (x, of_bias, of_residual) if leaf is not None]
        with switches.anywhere(), switches.switched(conv_relu=fused):
            y = function(x, p.weight, of_bias, of_residual)
            first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(part.square().sum() for part in first), leaves)
        found.append([y, *first, *second])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_are_numerically_right(name):
    p = problem(name, (3, 4))
    given = p.x[:1].requires_grad_(), p.bias.requires_grad_(), p.residual[:1].requires_grad_()
    with switches.anywhere():
        function = lambda x, bias, residual: ops.conv_relu(x, p.weight, bias, residual, **p.how)  # noqa: E731
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)


def test_backward_is_one_mask_and_one_convolution_and_the_residual_gets_what_passes_the_mask():
    p = problem("3x3")
    x, residual = p.x.requires_grad_(), p.residual.requires_grad_()
    with switches.anywhere():
        y = ops.conv_relu(x, p.weight, p.bias, residual)
    grad = torch.ones_like(y)
    with Operations() as seen:
        torch.autograd.grad(y, (x, residual), grad)
    assert [name for name in seen.names if name != "detach"] == ["threshold_backward", "convolution"]


def test_a_second_derivative_fills_no_zeros():
    p = problem("3x3")
    x = p.x.requires_grad_()
    with switches.anywhere():
        (first,) = torch.autograd.grad(ops.conv_relu(x, p.weight, p.bias).sin().sum(), x, create_graph=True)
    with Operations() as seen:
        torch.autograd.grad(first.sum(), x)
    assert not [name for name in seen.names if "zero" in name or name in ("full", "fill_")]
    assert seen.names.count("convolution") == 2 and "convolution_backward" not in seen.names


def test_other_precisions_and_devices_run_the_parts():
    p = problem("3x3")
    assert not ops.conv_relu_is_fused(p.x, p.weight, p.bias)
    with switches.anywhere():
        assert ops.conv_relu_is_fused(p.x, p.weight, p.bias, p.residual)
        assert not ops.conv_relu_is_fused(p.x, p.weight.float(), p.bias)
        assert not ops.conv_relu_is_fused(p.x, p.weight, p.bias.float())
        assert not ops.conv_relu_is_fused(p.x, p.weight, p.bias, p.residual.float())
        assert not ops.conv_relu_is_fused(p.x, p.weight.clone().requires_grad_(), p.bias)
        with ops.backend("reference"):
            assert not ops.conv_relu_is_fused(p.x, p.weight, p.bias)
    expected = F.relu(ops.conv3x3(p.x, p.weight, p.bias, residual=p.residual))
    assert torch.equal(ops.conv_relu(p.x, p.weight, p.bias, p.residual), expected)


def test_what_cudnn_refuses_runs_as_parts_and_is_asked_for_once(monkeypatch):
    p, asked = problem("3x3"), []
    module = sys.modules["purify_engine.ops.conv_relu"]

    def refuse(*given):
        asked.append(given)
        raise RuntimeError("FIND was unable to find an engine")

    monkeypatch.setattr(module, "cudnn", refuse)
    monkeypatch.setattr(module, "_has_cudnn", lambda x: True)
    monkeypatch.setattr(module, "_refused", set())
    expected = truth(p.x, p.weight, p.bias, None, (1, 1), (1, 1))
    with switches.anywhere():
        with pytest.warns(UserWarning, match="unable to find an engine"):
            torch.testing.assert_close(ops.conv_relu(p.x, p.weight, p.bias), expected)
        torch.testing.assert_close(ops.conv_relu(p.x, p.weight, p.bias), expected)
        assert len(asked) == 1
        monkeypatch.setattr(module, "cudnn", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        with pytest.raises(torch.OutOfMemoryError):
            ops.conv_relu(p.x[:1], p.weight, p.bias)


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("gain", [1.0, 0.7])
def test_turned_filters_are_the_gradient_of_a_frozen_convolution_to_the_second_order(upsample, gain):
    p, found = problem("3x3", (4, 6)), []
    generator = torch.Generator().manual_seed(3)
    temb = torch.randn(2, 16, dtype=torch.float64, generator=generator)
    residual = torch.randn(2, 16, *(8, 12) if upsample else (4, 6), dtype=torch.float64, generator=generator)
    for on in (False, True):
        leaves = [part.clone().requires_grad_() for part in (p.x, p.bias, temb, residual)]
        x, bias, shift, added = leaves
        ways = {"transposed_upsample": False, "turned_filters": on}
        with switches.anywhere(), switches.switched(**ways), ops.backend("torch"), Operations() as seen:
            y = ops.conv3x3(x, p.weight, bias, temb=shift, residual=added, gain=gain, upsample=upsample)
            first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(part.square().sum() for part in first), leaves)
        assert ("convolution_backward" in seen.names) == (not on)
        found.append([y, *first, *second])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_turned_filters_are_packed_once_and_follow_their_weight():
    weight = torch.randn(8, 16, 3, 3, dtype=torch.float64)
    packed = turned.filters(weight)
    assert packed.shape == (16, 8, 3, 3) and packed.is_contiguous(memory_format=torch.channels_last)
    assert packed[5, 3, 0, 2] == weight[3, 5, 2, 0] and turned.filters(weight) is packed
    weight.mul_(2)
    assert packed[5, 3, 0, 2] * 2 == turned.filters(weight)[5, 3, 0, 2]


def test_turned_filters_are_for_frozen_3x3s_of_whole_matrix_units_in_one_precision():
    x, weight = torch.zeros(1, 8, 4, 4), torch.zeros(16, 8, 3, 3)
    assert not turned.runs(x, weight)
    with switches.anywhere():
        assert turned.runs(x, weight)
        assert not turned.runs(x.double(), weight)
        assert not turned.runs(x, weight.clone().requires_grad_())
        with switches.switched(padded_channels=False):
            for other in ((16, 8, 1, 1), (3, 8, 3, 3), (16, 12, 3, 3)):
                assert not turned.runs(x, torch.zeros(other))
        assert turned.runs(x, torch.zeros(3, 8, 3, 3)) and not turned.runs(x, torch.zeros(16, 12, 3, 3))
        with switches.switched(turned_filters=False):
            assert not turned.runs(x, weight)


def test_two_readers_of_a_relu_have_their_gradients_added_up_to_the_second_order():
    p, found = problem("3x3"), []
    for twice in (False, True):
        x, residual = p.x.clone().requires_grad_(), p.residual.clone().requires_grad_()
        with switches.anywhere(), switches.switched(masked_sum=twice):
            one, other = ops.conv_relu_twice(x, p.weight, p.bias, residual)
            assert (one is other) == (not twice) and torch.equal(one, other) and one.data_ptr() == other.data_ptr()
            both = one.sin() + 2 * other.cos()
            first = torch.autograd.grad(both.sum(), (x, residual), create_graph=True)
            second = torch.autograd.grad(sum(part.square().sum() for part in first), (x, residual), retain_graph=True)
            alone = torch.autograd.grad(other.sum(), x)
        found.append((one, *first, *second, *alone))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_masked_sum_is_proven_before_it_is_taken(monkeypatch):
    module, p, asked = sys.modules["purify_engine.ops.conv_relu"], problem("3x3"), []
    monkeypatch.setattr(switches, "_proofs", {})
    monkeypatch.setattr(module, "_has_triton", lambda y: True)
    parts = lambda one, other, y: torch.ops.aten.threshold_backward(one + other, y, 0)  # noqa: E731
    monkeypatch.setattr(module, "masked_sum", lambda *given: (asked.append(given), parts(*given))[1])
    x, expected = p.x.requires_grad_(), []
    for on in (False, True, True):
        with switches.anywhere(), switches.switched(masked_sum=on):
            one, other = ops.conv_relu_twice(x, p.weight, p.bias)
            expected.append(torch.autograd.grad((one * other).sum(), x)[0])
    assert len(asked) == 2 and list(switches._proofs.values()) == [True]
    assert torch.equal(expected[0], expected[1]) and torch.equal(expected[1], expected[2])
