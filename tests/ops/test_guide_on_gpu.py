"""The guide on a real GPU: cuDNN's ReLU epilogue on poisoned memory and at every shape, gradients by turned filters, captures."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine import ops
from purify_engine.config import ClassifierConfig, GuidanceConfig, ScheduleConfig
from purify_engine.engine.guide import AdversarialGuide, PixelGuide
from purify_engine.engine.plan import write_plan
from purify_engine.models.classifiers import Classifier
from purify_engine.ops import switches
from purify_engine.ops.conv3x3 import turned
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

CONV_RELU = sys.modules["purify_engine.ops.conv_relu"]
DTYPE = torch.bfloat16
# channels in and out, side, taps, stride: of ResNet-18 and WRN-28-10 on CIFAR-10, and what is odd
RESNET = [
    (3, 64, 32, 3, 1),
    *((c, c, 32 * 64 // c, 3, 1) for c in (64, 128, 256, 512)),
    *((c, 2 * c, 32 * 64 // c, 3, 2) for c in (64, 128, 256)),
]
WRN = [(16, 160, 32, 3, 1), (160, 160, 32, 3, 1), (320, 320, 16, 3, 1), (640, 640, 8, 3, 1), (160, 320, 32, 3, 2)]
ODD = [(64, 64, 7, 3, 1), (8, 24, 5, 3, 1), (16, 16, 8, 3, 1)]
SHAPES = [*RESNET, *WRN, *ODD]


def problem(shape: tuple[int, ...], batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, tuple[int, int]]]:
    """x, weight, bias, residual on the GPU, in 16 bits and channels_last, and the convolution's stride and padding."""
    into, out_of, side, taps, stride = shape
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*sizes: int) -> Tensor:
        found = torch.randn(sizes, device="cuda", generator=generator).to(DTYPE)
        return found.contiguous(memory_format=torch.channels_last) if len(sizes) == 4 else found

    how = {"stride": (stride, stride), "padding": (taps // 2, taps // 2)}
    x, weight, bias = random(batch, into, side, side), random(out_of, into, taps, taps) / (into * taps) ** 0.5, random(out_of)
    return x, weight, bias, random(*F.conv2d(x, weight, bias, **how).shape), how


def parts(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, how: dict[str, tuple[int, int]]) -> Tensor:
    y = F.conv2d(x, weight, bias, **how)
    return F.relu(y if residual is None else residual + y)


def assert_no_worse(got: Tensor, honest: Tensor, truth: Tensor) -> None:
    """Twice as wrong as PyTorch in the same precision, plus one rounding; the result as a whole."""
    scale = truth.norm()
    assert got.isfinite().all()
    assert (got.double() - truth).norm() <= 2 * (honest.double() - truth).norm() + torch.finfo(DTYPE).eps * scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 64])
def test_a_fused_relu_is_right_on_poisoned_memory_with_and_without_a_residual(shape, batch):
    x, weight, bias, residual, how = problem(shape, batch)
    for added in (None, residual):
        truth = parts(*(None if part is None else part.double() for part in (x, weight, bias, added)), how)
        honest = parts(x, weight, bias, added, how)
        for _ in range(3):  # the first call chooses an algorithm on memory of its own
            poison = [torch.full_like(honest, torch.nan) for _ in range(4)]
            addresses = {part.data_ptr() for part in poison}
            del poison
            got = CONV_RELU.cudnn(x, weight, bias, added, **how)
        assert got.data_ptr() in addresses, "the result lies elsewhere, so nothing was shown"
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert_no_worse(got, honest, truth)


def milliseconds(work, calls=30):
    for _ in range(3):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # the queue fills meanwhile, so that launches cost nothing
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


@pytest.mark.parametrize("shape", [*RESNET, *WRN, ODD[0]], ids=str)
@pytest.mark.parametrize("batch", [1, 64])
def test_a_fused_relu_is_no_slower_than_its_parts(shape, batch, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    x, weight, bias, residual, how = problem(shape, batch)
    for added in (None, residual):
        fused = milliseconds(lambda added=added: CONV_RELU.cudnn(x, weight, bias, added, **how))
        apart = milliseconds(lambda added=added: parts(x, weight, bias, added, how))
        print(f"conv_relu {shape} B={batch} residual={added is not None}: {fused:.4f} ms, its parts {apart:.4f} ms")
        assert fused <= 1.15 * apart + 0.003


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[4] == 1 and shape[0] % 8 == 0], ids=str)
@pytest.mark.parametrize("batch", [1, 64])
def test_turned_filters_are_the_gradient_and_no_slower(shape, batch, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    x, weight, _, grad, _ = problem(shape, batch)
    other = turned.filters(weight)
    got, honest = turned.convolved(grad, other, weight), F.conv_transpose2d(grad, weight, padding=1)
    assert_no_worse(got, honest, F.conv_transpose2d(grad.double(), weight.double(), padding=1))
    ours = milliseconds(lambda: turned.convolved(grad, other, weight))
    theirs = milliseconds(lambda: F.conv_transpose2d(grad, weight, padding=1))
    print(f"turned_filters {shape} B={batch}: {ours:.4f} ms, cuDNN's gradient {theirs:.4f} ms")
    assert ours <= 1.15 * theirs + 0.003


GUIDES = {
    "resnet18": ClassifierConfig(architecture="resnet", depth=18, width=64),
    "wrn-28-10": ClassifierConfig(architecture="wide_resnet", depth=28, width=10),
}
PLAN = write_plan(make_schedule(ScheduleConfig()), 150, 5, guidance_scale=1.0)


def pull(guide: AdversarialGuide, x: Tensor, target: tuple[Tensor, ...], plan, noise: NoiseKey) -> Tensor:
    return guide.grad(x, None, target, plan, plan.steps[2], noise)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guides_pull_is_no_worse_and_a_graph_of_it_has_the_same_bits(name):
    with torch.random.fork_rng(devices=["cuda"]):
        torch.manual_seed(0)
        network = Classifier(GUIDES[name]).cuda().eval().requires_grad_(False)
    images = torch.rand(8, 3, 32, 32, device="cuda", generator=torch.Generator("cuda").manual_seed(1)) * 2 - 1
    plan, noise = PLAN.to("cuda"), NoiseKey(torch.tensor(1, device="cuda"), torch.arange(8, device="cuda"))
    found = {}
    for way, dtype in {"truth": torch.float64, "parts": DTYPE, "fused": DTYPE}.items():
        guide = AdversarialGuide(network.to(dtype), GuidanceConfig(scale=1.0))
        off = dict.fromkeys(switches.SWITCHES, False) if way == "parts" else {}
        x = images.to(dtype, memory_format=torch.channels_last)
        with switches.switched(**off):
            found[way] = pull(guide, x, guide.target(images.flip(0)), plan, noise)
    # bf16 rounds a whole network: where a ReLU opens is rounded too, so three times as wrong is allowed, as a whole
    wrong = {way: (found[way].double() - found["truth"]).norm() / found["truth"].norm() for way in ("parts", "fused")}
    print(f"{name}: parts {wrong['parts']:.3e}, fused {wrong['fused']:.3e} from float64")
    assert wrong["fused"] <= 3 * wrong["parts"]

    x, target = images.to(DTYPE, memory_format=torch.channels_last), guide.target(images.flip(0))
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                expected = pull(guide, x, target, plan, noise)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = pull(guide, x, target, plan, noise)
        replayed.fill_(torch.nan)
        graph.replay()
    assert torch.equal(replayed, expected)


def test_a_pixel_guides_step_can_be_captured():
    x = torch.rand(4, 3, 32, 32, device="cuda")
    plan, noise = PLAN.to("cuda"), NoiseKey(torch.tensor(5, device="cuda"), torch.arange(4, device="cuda"))
    guide = PixelGuide()
    for one in (noise, guide.derive(noise)):
        expected = guide.grad(x.to(DTYPE), None, (x,), plan, plan.steps[1], one)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = guide.grad(x.to(DTYPE), None, (x,), plan, plan.steps[1], one)
        graph.replay()
        assert torch.equal(replayed, expected) and expected.dtype == torch.float32


def test_double_backward_is_that_of_the_parts():
    x, weight, bias, residual, how = problem((64, 64, 8, 3, 1), 2)
    found = {}
    for way, dtype in {"truth": torch.float64, "parts": DTYPE, "fused": DTYPE}.items():
        leaf, added = (part.to(dtype).detach().requires_grad_() for part in (x, residual))
        with switches.switched(conv_relu=way == "fused", turned_filters=way == "fused"):
            y = ops.conv_relu(leaf, weight.to(dtype), bias.to(dtype), added, **how)
            (first,) = torch.autograd.grad(y.square().sum() / 64, leaf, create_graph=True)
            found[way] = [first, *torch.autograd.grad(first.square().sum() / 64, (leaf, added))]
    for got, honest, truth in zip(found["fused"], found["parts"], found["truth"], strict=True):
        assert_no_worse(got, honest, truth)
