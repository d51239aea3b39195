"""A 1x1 convolution as a matrix product: the convolution's numbers, gradients and layout; a skip without `torch.cat`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from purify_engine import ops
from purify_engine.ops import switches

META = torch.device("meta")
SIZES = [(2, 5, 3, 7, 4, 6), (1, 8, 8, 2, 1, 1), (3, 1, 2, 4, 5, 3), (0, 4, 4, 3, 2, 2)]  # batch, channels, of skip, out, size


def drawn(batch, channels, others, out_channels, height, width, layout=torch.channels_last):
    generator = torch.Generator().manual_seed(channels)
    shapes = (batch, channels, height, width), (batch, others, height, width), (out_channels, channels + others, 1, 1)
    x, skip, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    bias = torch.randn(out_channels, generator=generator, dtype=torch.float64)
    return x.to(memory_format=layout), skip.to(memory_format=layout), weight, bias


class Noting(TorchFunctionMode):
    """Notes which of PyTorch's functions are called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in ("conv2d", "linear", "cat"):
            self.seen.append(name)
        return func(*args, **kwargs or {})


@pytest.fixture
def calls():
    with Noting() as noting:
        yield noting.seen


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("recorded", [False, True])
def test_with_a_skip_it_is_the_convolution_of_the_two_together(sizes, biased, recorded, calls):
    x, skip, weight, bias = drawn(*sizes)
    bias = bias if biased else None
    expected = F.conv2d(torch.cat([x, skip], dim=1), weight, bias)
    calls.clear()
    with switches.anywhere():
        got = ops.conv1x1(x.requires_grad_(recorded), weight, bias, skip)
    if len(x):  # which of the layouts an empty batch has is not defined
        assert calls == (["cat", "linear"] if recorded else ["linear"])
        assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.shape == expected.shape and (got - expected).norm() <= 1e-13 * expected.norm()


def test_gradients_are_right_to_the_second_order():
    tensors = [tensor.requires_grad_() for tensor in drawn(2, 2, 1, 3, 2, 3)]

    def convolved(x, skip, weight, bias):
        return ops.conv1x1(x, weight, bias, skip)

    with switches.anywhere():
        assert torch.autograd.gradcheck(convolved, tensors)
        assert torch.autograd.gradgradcheck(convolved, tensors)


def on_meta(layout):
    x, skip, weight, bias = (tensor.to(META) for tensor in drawn(2, 4, 2, 3, 4, 5, layout))
    return x, weight, bias, skip


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("on", [True, False])
def test_off_cpus_it_is_a_product_of_channels_last_images_where_that_is_switched_on(layout, on, calls):
    with torch.no_grad(), switches.anywhere(), switches.switched(linear_1x1=on):
        ops.conv1x1(*on_meta(layout))
    if not on:
        assert calls == ["cat", "conv2d"]
    else:
        assert calls == (["linear"] if layout is torch.channels_last else ["cat", "conv2d"])


def test_elsewhere_and_in_wider_types_it_stays_a_convolution(calls):
    with torch.no_grad():
        ops.conv1x1(*on_meta(torch.channels_last))
    assert calls == ["cat", "conv2d"]


def test_under_autocast_the_two_are_joined(calls):
    x, skip, weight, bias = (tensor.float() for tensor in drawn(2, 4, 2, 3, 4, 5))
    with torch.no_grad(), switches.anywhere(), torch.autocast("cpu", torch.bfloat16):
        assert ops.conv1x1(x, weight, bias, skip).dtype == torch.bfloat16
    assert calls == ["cat", "linear"]
