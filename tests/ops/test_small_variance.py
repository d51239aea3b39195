"""Norms where norm_eps decides: a variance of its size, and none at all. Outside the root, or left out, it would be far off."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import layers

DRAW = torch.Generator().manual_seed(0)
NORM_EPS = 1e-3
SPREADS = {"as large as norm_eps": NORM_EPS**0.5, "smaller": 0.1 * NORM_EPS**0.5, "none": 0.0}
spreads = pytest.mark.parametrize("spread", SPREADS)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
engines = pytest.mark.parametrize("engine", ["reference", "cpp"])


def images(spread, layout, dtype):
    drawn = torch.randn(2, 8, 5, 6, generator=DRAW, dtype=torch.float64)
    return (0.5 + SPREADS[spread] * drawn).to(dtype).contiguous(memory_format=layout)


def written_out(x, weight, bias, scale, shift, groups):
    """In float64, by sums and a root."""
    grouped = x.double().reshape(len(x), groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(-1, keepdim=True)
    y = ((grouped - mean) / (variance + NORM_EPS) ** 0.5).reshape(x.shape)
    y = y * weight.double()[:, None, None] + bias.double()[:, None, None]
    y = y * (1 + scale.double()[..., None, None]) + shift.double()[..., None, None]
    return y / (1 + torch.exp(-y))


def parameters(dtype):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in ((8,), (8,), (2, 8), (2, 8))]


@spreads
@layouts
@engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_norm_and_its_gradients(spread, layout, engine, dtype):
    x, given = images(spread, layout, dtype), parameters(dtype)
    x.requires_grad_(), [part.requires_grad_() for part in given]
    with ops.backend(engine):
        y = ops.group_norm_silu(x, *given, 2, NORM_EPS)
        truth = written_out(x, *given, 2)
        pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        found = torch.autograd.grad(y, (x, *given), pull.to(dtype))
    expected = torch.autograd.grad(truth, (x, *given), pull)
    rounding = 2e-4 if dtype == torch.float32 else 1e-11  # the mean is up to 150 times the spread, and takes its digits
    for got, true in ((y, truth), *zip(found, expected, strict=True)):
        # a gradient to the weight is a sum of zeros where nothing spreads
        assert (got.double() - true.double()).norm() <= rounding * (true.double().norm() + 1)


@spreads
@layouts
@pytest.mark.parametrize("engine", ["reference", "torch"])  # the latter has the norm by its own kernel
def test_a_norm_before_a_convolution(spread, layout, engine):
    x, (weight, bias, scale, shift) = images(spread, layout, torch.float32), parameters(torch.float32)
    filters = torch.randn(6, 8, 3, 3, generator=DRAW)
    with ops.backend(engine), torch.no_grad():
        found = ops.conv3x3(x, filters, None, ops.Norm(weight, bias, scale, shift, 2, NORM_EPS))
    expected = layers.conv3x3(written_out(x, weight, bias, scale, shift, 2), filters.double())
    assert (found.double() - expected).norm() <= 1e-5 * expected.norm()


@spreads
@pytest.mark.parametrize("gathered", [False, True], ids=["a norm of its own", "in the gather"])
def test_a_norm_before_a_convolution_on_triton(spread, gathered, monkeypatch):
    pytest.importorskip("triton")
    from purify_engine.kernels import _tiles
    from tests.kernels.triton_runner import moved

    tile = _tiles.ConvTile(16, 32, 16, 1, gathered, num_warps=4, num_stages=3)
    monkeypatch.setattr(_tiles, "conv3x3", lambda *problem: tile)
    drawn = torch.randn(2, 8, 4, 4, generator=DRAW, dtype=torch.float64)  # 16 pixels: a tile is of one image
    x = (SPREADS[spread] * drawn).half().contiguous(memory_format=torch.channels_last)
    weight, bias, scale, shift = parameters(torch.float16)
    filters = torch.randn(6, 8, 3, 3, generator=DRAW).half().contiguous(memory_format=torch.channels_last)
    with ops.backend("triton"):
        given = map(moved, (x, filters, None, weight, bias, scale, shift))
        found = torch.ops.purify.conv3x3(*given, num_groups=2, norm_eps=NORM_EPS).cpu()
    expected = layers.conv3x3(written_out(x, weight, bias, scale, shift, 2), filters.double())
    # float16 keeps eleven bits
    assert (found.double() - expected).norm() <= 2e-3 * expected.norm()


@spreads
@layouts
def test_a_norm_and_its_gradients_on_triton(spread, layout):
    pytest.importorskip("triton")
    from tests.kernels.triton_runner import moved

    x, given = moved(images(spread, layout, torch.float32)), [moved(part) for part in parameters(torch.float32)]
    pull = moved(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    leaves = [part.detach().double().cpu().requires_grad_() for part in (x, *given)]
    truth = written_out(*leaves, 2)
    with ops.backend("triton"):
        y = torch.ops.purify.group_norm_silu(x, *given, 2, NORM_EPS)
        found = torch.ops.purify.group_norm_silu_backward(pull, x, *given, 2, NORM_EPS)
    for got, true in ((y, truth), *zip(found, torch.autograd.grad(truth, leaves, pull.double().cpu()), strict=True)):
        assert (got.double().cpu() - true).norm() <= 1e-5 * (true.norm() + 1)
