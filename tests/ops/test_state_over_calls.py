"""One weight over calls that differ: instruction sets in turn, dtypes in turn, directions in turn, threads at once."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F

from purify_engine import ops
from purify_engine.ops.conv3x3 import winograd
from purify_engine.ops.conv3x3.tiling import Tiling
from purify_engine.reference import layers

pytestmark = pytest.mark.skipif(not ops.capability().cpp, reason="the extension is not built")

DRAW = torch.Generator().manual_seed(0)


def floats(*shape):
    return torch.randn(shape, generator=DRAW)


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


def error(got, truth):
    return float((got.detach().double() - truth).norm() / truth.norm())


@pytest.fixture(params=[Tiling(4, 24, True), Tiling(2, 24, True), Tiling(4, 7, False)], ids=str)
def tiled(request, monkeypatch):
    """Every convolution by Winograd's filtering, whatever the table says."""
    monkeypatch.setattr(winograd, "tiling", lambda *problem: request.param)


@pytest.fixture
def instruction_sets():
    """Those of this CPU, to switch between; the one in use comes back."""
    before = ops.instruction_set()
    yield ops.instruction_sets()
    ops.use_instruction_set(before)


def test_a_weight_is_convolved_rightly_by_each_instruction_set_in_turn(tiled, instruction_sets):
    """Panels are as wide as an instruction set's vectors: filters packed for another are read in another order."""
    x, weight = nhwc(floats(2, 24, 8, 8)), floats(40, 24, 3, 3)
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    back = layers.conv3x3_backward(truth, weight.double())
    for name in (*instruction_sets, *reversed(instruction_sets)):
        ops.use_instruction_set(name)
        assert error(ops.conv3x3(x, weight), truth) < 1e-5, name
        assert error(ops.conv3x3_backward(truth.float(), weight), back) < 1e-5, name
        assert error(ops.relu_conv3x3(x, weight), F.conv2d(x.double().relu(), weight.double(), padding=1)) < 1e-5, name


def test_a_weight_is_convolved_rightly_by_each_tiling_in_turn(monkeypatch):
    x, weight = nhwc(floats(2, 24, 8, 8)), floats(40, 24, 3, 3)
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    back = layers.conv3x3_backward(truth, weight.double())
    for tiling in (Tiling(4, 24, True), Tiling(2, 24, True), Tiling(2, 7, False), Tiling(4, 7, False), Tiling(4, 24, True), None):
        monkeypatch.setattr(winograd, "tiling", lambda *problem, tiling=tiling: tiling)
        assert error(ops.conv3x3(x, weight), truth) < 1e-5, tiling
        assert error(ops.conv3x3_backward(truth.float(), weight), back) < 1e-5, tiling


def test_a_layer_is_right_in_each_dtype_in_turn(tiled):
    layer, x = torch.nn.Conv2d(24, 40, 3, padding=1).requires_grad_(False), nhwc(floats(2, 24, 8, 8))
    for dtype in (torch.float32, torch.float64, torch.float32, torch.bfloat16, torch.float32):
        layer.to(dtype)
        truth = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
        found = ops.conv3x3(x.to(dtype), layer.weight, layer.bias)
        assert found.dtype == dtype
        assert error(found, truth) < (2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_a_strided_convolution_is_right_for_each_size_in_turn():
    """oneDNN lays a weight out for one size of image and one batch; another call must not read another's."""
    weight, bias = floats(16, 8, 3, 3), floats(16)
    for batch, side in ((1, 8), (3, 8), (1, 16), (1, 8), (2, 9), (3, 8)):
        for stride, padding in (((2, 2), (1, 1)), ((2, 2), (0, 0)), ((1, 1), (1, 1))):
            x = nhwc(floats(batch, 8, side, side)).requires_grad_()
            y = ops.conv2d(x, weight, bias, stride, padding)
            truth = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
            pull = floats(*y.shape)
            found, expected = (torch.autograd.grad(out, x, pull.to(out.dtype))[0] for out in (y, truth))
            assert error(y, truth) < 1e-5 and error(found, expected.double()) < 1e-5


def at_once(calls):
    """The results of functions called by a thread each, at the same time, three times over."""
    start, found = threading.Barrier(len(calls)), [[] for _ in calls]

    def work(place):
        for _ in range(3):
            start.wait()
            found[place].extend(calls[place]() for _ in range(4))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("agree", ["to the bit", "to rounding"])
def test_python_threads_may_convolve_at_once(tiled, agree):
    """A kernel lets go of Python while it runs: memory that it works in must be its thread's own."""
    problems = [(nhwc(floats(2, 32, 24, 24)), floats(32, 32, 3, 3)), (nhwc(floats(1, 48, 32, 32)), floats(16, 48, 3, 3))] * 2
    calls = [lambda x=x, weight=weight: ops.conv3x3(x, weight) for x, weight in problems]
    alone = [call() for call in calls]
    for results, (x, weight), expected in zip(at_once(calls), problems, alone, strict=True):
        assert len(results) == 12
        if agree == "to the bit":
            assert all(torch.equal(result, expected) for result in results)
        truth = F.conv2d(x.double(), weight.double(), padding=1)
        assert all(error(result, truth) < 1e-5 for result in results)


@pytest.mark.parametrize("agree", ["to the bit", "to rounding"])
def test_python_threads_may_call_every_other_kernel_at_once(agree):
    x, affine = floats(4, 16, 24, 24), (floats(16), floats(16))
    key, step = torch.tensor(3), torch.tensor(1)
    calls = [
        lambda: ops.group_norm_silu(x, *affine, None, None, 4, 1e-5),
        lambda: ops.group_norm_silu(nhwc(x), *affine, None, None, 4, 1e-5),
        lambda: ops.group_norm_silu_backward(x, x, *affine, None, None, 4, 1e-5)[0],
        lambda: ops.philox_normal(key, torch.arange(4), step, 9216, dtype=torch.float32),
    ]
    for results, call in zip(at_once(calls), calls, strict=True):
        expected = call()
        if agree == "to the bit":
            assert all(torch.equal(result, expected) for result in results)
        assert all(error(result, expected.double()) < 1e-6 for result in results)


def test_an_engine_forced_in_one_thread_is_not_forced_in_another():
    seen, entered, left = {}, threading.Event(), threading.Event()

    def other():
        entered.wait()
        seen["meanwhile"] = ops.forced()
        with ops.backend("cpp"):
            seen["own"] = ops.forced()
        left.set()

    thread = threading.Thread(target=other)
    thread.start()
    with ops.backend("reference"):
        entered.set()
        left.wait()
        seen["first"] = ops.forced()
    thread.join()
    assert seen == {"meanwhile": None, "own": "cpp", "first": "reference"} and ops.forced() is None
