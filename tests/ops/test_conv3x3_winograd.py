"""Winograd's filtering on CPUs: every tiling against float64, packed filters that follow theirs, gradients by turned filters."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine import ops
from purify_engine.ops import _extension
from purify_engine.ops.conv3x3 import tiling, winograd
from purify_engine.ops.conv3x3.tiling import Tiling
from purify_engine.reference import layers
from purify_engine.testing.agreement import strides
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.yardstick import assert_as_good_as_direct

pytestmark = pytest.mark.usefixtures("each_instruction_set")

TILINGS = [Tiling(results, block, keep) for results in (2, 4) for block, keep in ((1, False), (7, True), (24, False), (24, True))]
# Channels around what vectors and panels hold; images of one pixel, of less than a tile, of a tile and a bit.
CHANNELS = ((1, 1), (3, 16), (16, 3), (8, 48), (20, 33), (64, 64), (130, 70), (300, 40))
SIZES = ((1, 1, 1), (3, 2, 5), (1, 4, 4), (2, 8, 8), (1, 9, 17))


@pytest.fixture(params=TILINGS, ids=str)
def tiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tiling:
    """Every problem by one tiling, whatever the table says."""
    monkeypatch.setattr(winograd, "tiling", lambda *problem: request.param)
    return request.param


def convolved(x: Tensor, weight: Tensor, **around: Any) -> Tensor:
    with ops.backend("cpp"):
        return torch.ops.purify.conv3x3(x, weight, **around)


def problem(sizes: tuple[int, int, int], channels: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias: of unit variance, as is the result."""
    (batch, height, width), (into, out_of) = sizes, channels
    draw = torch.Generator().manual_seed(hash((sizes, channels)) % 2**31)
    x = torch.randn(batch, into, height, width, generator=draw).to(memory_format=torch.channels_last)
    return x, torch.randn(out_of, into, 3, 3, generator=draw) / (9 * into) ** 0.5, torch.randn(out_of, generator=draw)


def error(got: Tensor, truth: Tensor) -> float:
    """Relative, of the whole result."""
    return float((got - truth).norm() / truth.norm())


@pytest.mark.parametrize(("sizes", "channels"), list(product(SIZES, CHANNELS)), ids=str)
def test_is_convolution(sizes, channels, tiled):
    x, weight, bias = problem(sizes, channels)
    truth = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert error(convolved(x, weight, bias=bias), truth) <= 1e-5


@pytest.mark.parametrize(
    ("sizes", "channels", "results"),
    [
        (sizes, channels, results)
        for sizes, channels in product(SIZES, CHANNELS)
        for results in tiling.admitted(*sizes, *channels)
    ],
    ids=str,
)
@pytest.mark.parametrize("keep", [False, True])
def test_where_it_may_be_chosen_it_is_nearly_as_good_as_direct_convolution(sizes, channels, results, keep, monkeypatch):
    monkeypatch.setattr(winograd, "tiling", lambda *problem: Tiling(results, 24, keep))
    x, weight, bias = problem(sizes, channels)
    truth = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert_as_good_as_direct(convolved(x, weight, bias=bias), F.conv2d(x, weight, bias, padding=1), truth)


@pytest.mark.parametrize("op", ["conv3x3", "conv3x3_backward"])
def test_takes_everything_around_a_convolution(op, tiled):
    for case in [case for case in cases(op) if case.dtype == torch.float32 and 0 not in case.shape]:
        with ops.backend("cpp"):
            got = getattr(torch.ops.purify, op)(*case.arguments(), **case.keywords)
        honest, truth = (getattr(layers, op)(*case.arguments(dtype), **case.keywords) for dtype in (None, torch.float64))
        assert strides(got) == strides(honest), case
        assert error(got, truth) <= 1e-5, case


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [(1, 4, 4), (1, 16, 16), (5, 8, 8)], ids=str)
def test_threads_do_not_change_a_bit(sizes, threads, tiled):
    x, weight, bias = problem(sizes, (40, 200))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = convolved(x, weight, bias=bias)
        torch.set_num_threads(threads)
        assert torch.equal(convolved(x, weight, bias=bias), alone)
    finally:
        torch.set_num_threads(before)


def test_the_batch_does_not_change_an_image(tiled):
    x, weight, bias = problem((5, 9, 7), (24, 40))
    together = convolved(x, weight, bias=bias)
    apart = torch.cat([convolved(image.unsqueeze(0), weight, bias=bias) for image in x])
    assert torch.equal(together, apart)


def test_a_poisoned_image_never_touches_its_batch(tiled):
    x, weight, bias = problem((3, 8, 8), (16, 32))
    clean = convolved(x, weight, bias=bias)
    x[1] = torch.nan
    got = convolved(x, weight, bias=bias)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("upsample", [False, True])
def test_gradients_are_those_of_direct_convolution(upsample, tiled):
    x, weight, bias = problem((2, 6, 5), (16, 20))
    temb = torch.randn(1, 20)
    residual = torch.randn(2, 20, *(size * (2 if upsample else 1) for size in x.shape[2:]))
    inputs = [tensor.requires_grad_() for tensor in (x, bias, temb, residual)]

    def gradients(convolution: Any, cast: torch.dtype) -> list[Tensor]:
        """First and second ones, by a pull that depends on the first."""
        x, bias, temb, residual = (tensor.to(cast) for tensor in inputs)
        y = convolution(x, weight.to(cast), bias, temb=temb, residual=residual, gain=0.5, upsample=upsample)
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        return [*first, *torch.autograd.grad(first[0].square().sum(), inputs)]

    truths, honest = gradients(layers.conv3x3, torch.float64), gradients(layers.conv3x3, torch.float32)
    for got, like, truth in zip(gradients(ops.conv3x3, torch.float32), honest, truths, strict=True):
        assert (got - truth).norm() <= 4 * (like - truth).norm() + 1e-6 * truth.norm()


def changed_in_place(weight: torch.nn.Parameter) -> None:
    weight.mul_(-2)


def loaded(weight: torch.nn.Parameter) -> None:
    torch.nn.ParameterDict({"weight": weight}).load_state_dict({"weight": torch.ones_like(weight)})


def repointed(weight: torch.nn.Parameter) -> None:
    weight.data = torch.full_like(weight, 3.0)


@pytest.mark.parametrize("change", [changed_in_place, loaded, repointed])
def test_packed_filters_follow_their_parameter(change, tiled):
    x, weight, _ = problem((2, 8, 8), (16, 32))
    parameter = torch.nn.Parameter(weight, requires_grad=False)
    convolved(x, parameter), torch.ops.purify.conv3x3_backward(convolved(x, parameter), parameter)
    with torch.no_grad():
        change(parameter)
    truth = F.conv2d(x.double(), parameter.double(), padding=1)
    assert (convolved(x, parameter) - truth).norm() <= 1e-5 * truth.norm()
    back = layers.conv3x3_backward(truth, parameter.double())
    assert (torch.ops.purify.conv3x3_backward(truth.float(), parameter) - back).norm() <= 1e-5 * back.norm()


def test_a_step_of_training_is_seen():
    x, weight, _ = problem((2, 16, 16), (16, 32))
    layer = torch.nn.Conv2d(16, 32, 3, padding=1, bias=False).requires_grad_(False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    ops.conv3x3(x, layer.weight)
    layer.requires_grad_(True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    ops.conv3x3(x, layer.weight).square().sum().backward()
    optimizer.step()
    layer.requires_grad_(False)
    truth = F.conv2d(x.double(), layer.weight.double(), padding=1)
    assert (ops.conv3x3(x, layer.weight) - truth).norm() <= 1e-5 * truth.norm()


def test_what_trains_is_never_packed(monkeypatch):
    x, weight, _ = problem((2, 16, 16), (16, 32))
    monkeypatch.setattr(winograd, "packed", lambda *_: pytest.fail("packed a parameter that trains"))
    parameter = torch.nn.Parameter(weight)
    expected = F.conv2d(x, weight, padding=1)
    assert torch.equal(ops.conv3x3(x, parameter), expected)
    with torch.no_grad():
        assert torch.equal(ops.conv3x3(x, parameter), expected)


def test_copies_and_pickles_leave_the_packed_filters_behind(tiled):
    x, weight, _ = problem((1, 8, 8), (16, 16))
    layer = torch.nn.Conv2d(16, 16, 3).requires_grad_(False)
    convolved(x, layer.weight)
    size = len(pickle.dumps(layer))
    assert size < 2 * layer.weight.numel() * 4
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.zero_()
    assert not convolved(x, twin.weight).any()
    assert convolved(x, layer.weight).any()


def test_packed_filters_die_with_their_parameter(tiled):
    x, weight, _ = problem((1, 8, 8), (16, 16))
    gc.collect()  # what other tests left is not counted
    before = len(winograd._packed_weights)
    parameter = torch.nn.Parameter(weight.clone(), requires_grad=False)
    convolved(x, parameter)
    assert len(winograd._packed_weights) == before + 1
    del parameter
    gc.collect()
    assert len(winograd._packed_weights) == before


def test_float64_and_low_precision_take_the_plain_path():
    x, weight, bias = problem((2, 16, 16), (16, 32))
    for dtype in (torch.float64, torch.bfloat16):
        given = x.to(dtype), weight.to(dtype), bias.to(dtype)
        assert torch.equal(ops.conv3x3(*given), layers.conv3x3(*given))


def test_the_reference_still_gives_the_plain_one():
    x, weight, bias = problem((2, 16, 16), (16, 32))
    with ops.backend("reference"):
        assert torch.equal(ops.conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1))


ONE_POOL = """
import torch
from purify_engine import ops

def threads():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Threads"))

torch.set_num_threads(2)
x, weight = torch.randn(4, 64, 16, 16).to(memory_format=torch.channels_last), torch.randn(64, 64, 3, 3)
torch.randn(512, 512) @ torch.randn(512, 512), torch.nn.functional.conv2d(x, weight, padding=1), torch.exp(torch.randn(10**6))
before = threads()
for _ in range(3):
    ops.conv3x3(x, weight)
print(threads() - before)
"""


def test_starts_no_threads_beside_those_of_pytorch():
    """A host's pool is ours: OpenMP of another copy, or a pool of our own, would fight it for the cores."""
    run = subprocess.run([sys.executable, "-c", ONE_POOL], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0"


def test_registration_is_sound():
    case = Case("conv3x3_backward", (2, 4, 3, 3), variant="up")
    arguments = [value.requires_grad_() if isinstance(value, Tensor) else value for value in case.arguments()]
    torch.library.opcheck(torch.ops.purify.conv3x3_backward.default, tuple(arguments))
    assert _extension.extension is not None
