"""Recordings on the CPU: replayed they compute what the work computes, bit for bit, in memory that is used again."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F

from purify_engine import ops
from purify_engine.config import ClassifierConfig
from purify_engine.engine.capture import CaptureError
from purify_engine.engine.cpu_capture import CpuCapture, _Memory
from purify_engine.engine.gradients import differentiable_run
from purify_engine.engine.loop import Loop
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.models.classifiers import Classifier
from purify_engine.models.unet import UNet
from purify_engine.ops.conv3x3 import winograd
from purify_engine.ops.conv3x3.tiling import Tiling
from tests.engine.test_replay import UNET, guides, images, looped, networks, noise, plan, purifier, randomised, unguided


def recorded(function, *given):
    """Holds a recording of `function` to `function` itself on other inputs; gives the recording."""
    out = torch.empty_like(function(*given))
    replay = CpuCapture()(lambda: store(out, function(*given)))
    for _ in range(2):
        replay()
        assert torch.equal(out, function(*given))
    assert replay.calls is not None
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        for tensor in given:
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
        expected = function(*given).clone()
        out.fill_(torch.nan)
        replay()
        assert torch.equal(out, expected)
    return replay


def store(out, result):
    out.copy_(result)


def in_place(x):
    y = x.clone()
    y[:, 1:].mul_(2).add_(x[:, :-1])
    return y.relu_()


WORK = {
    "views": lambda x: x.transpose(2, 3).flatten(1).unflatten(1, (2, -1)).permute(2, 0, 1)[1:].narrow(1, 1, 2) + 1,
    "in place": in_place,
    "several results": lambda x: torch.cat([*x.sort(dim=1)[:1], *x.chunk(2, dim=1), x.max(dim=1, keepdim=True).values], dim=1),
    "a chain": lambda x: F.avg_pool2d(F.pad(x.softmax(1) @ x.transpose(2, 3), (1, 1, 1, 1)), 2).mean(0),
    "layouts": lambda x: x.contiguous(memory_format=torch.channels_last) * x.to(torch.float64).to(torch.float32),
    "made on the way": lambda x: x + torch.zeros_like(x).add_(1) + torch.arange(6.0) + x.new_full((6,), 3),
    "convolution": lambda x: F.conv2d(x, torch.ones(3, 4, 3, 3), stride=2, padding=1),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "nothing but its input": lambda x: x,
    "our own op": lambda x: ops.group_norm_silu(x, torch.ones(4), torch.zeros(4), None, None, 2, 1e-5),
    "integers": lambda x: x.flatten(1).argmax(1, keepdim=True).expand(-1, 4).float(),
}


@pytest.mark.parametrize("name", WORK)
def test_a_replay_computes_what_the_work_computes(name):
    recorded(WORK[name], torch.rand(3, 4, 6, 6))


@pytest.mark.parametrize("architecture", ["resnet", "wide_resnet", "preact_resnet", "imagenet_resnet"])
def test_a_guide_of_relus_is_recorded_with_its_gradient(architecture, monkeypatch):
    monkeypatch.setattr(winograd, "tiling", lambda *problem: Tiling(4, 24, True))
    config = ClassifierConfig(architecture=architecture, depth=16 if architecture == "wide_resnet" else 10, width=2)
    network = randomised(Classifier(config), 3).eval().requires_grad_(False)

    def pull(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(network.frozen()(leaf).square().sum(), leaf)[0]

    replay = recorded(pull, torch.rand(2, 3, 16, 16))
    names = [getattr(call.func, "__name__", str(call.func)) for call in replay.calls]
    assert "conv3x3_winograd" in names


def test_a_guide_that_pools_is_recorded_to_the_second_order():
    config = ClassifierConfig(architecture="imagenet_resnet", depth=10, width=2, activation="silu")
    network = randomised(Classifier(config), 3).eval().requires_grad_(False)

    def pull(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(network.frozen()(leaf).square().sum(), leaf, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), leaf)[0]

    recorded(pull, torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_recorded_like_anything_else(order):
    weight = torch.rand(5, 4, 3, 3)

    def gradient(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = F.silu(F.conv2d(leaf, weight)).square().sum() + leaf.pow(3).sum()
            (grad,) = torch.autograd.grad(y, leaf, create_graph=order == 2)
            return grad if order == 1 else torch.autograd.grad(grad.square().sum(), leaf)[0]

    recorded(gradient, torch.rand(2, 4, 6, 6))


def test_memory_is_used_again_as_soon_as_nothing_refers_to_it():
    def chain(x, kept=None):
        held = []
        for _ in range(20):
            x = x * 1.5
            held.append(x) if kept else None
        return x

    size = 4 * 1000
    short, long = (sum(block.size for block in recorded(work, torch.rand(1000)).memory.blocks.values())
                   for work in (chain, lambda x: chain(x, kept=True)))  # fmt: skip
    assert short <= 3 * size + 1024 and long >= 20 * size


def test_what_was_freed_before_a_view_of_it_is_not_used_again():
    def work(x):
        view = (x + 1)[:, 2:]
        return (x * 3).sum() + (x - 5).sum() + view.square()

    recorded(work, torch.rand(4, 6))


@pytest.mark.parametrize("work", [lambda x: x * float(x.sum()), lambda x: x[x > 0.5].sum() + x], ids=["number", "size"])
def test_what_depends_on_the_numbers_goes_on_running_and_says_why(work):
    capture, x, out = CpuCapture(), torch.rand(5), torch.empty(5)
    replay = capture(lambda: store(out, work(x)))
    for _ in range(4):
        x.uniform_()
        replay()
        assert torch.equal(out, work(x))
    assert replay.calls is None
    assert capture.refused.endswith("depends on what its tensors hold")


def test_a_purifier_whose_networks_cannot_be_recorded_loops_and_says_why(monkeypatch):
    one, loop, x = purifier(), purifier(execution="loop"), images(2).abs()
    for each in (one, loop):
        forward = each.denoiser.unet.conv_in.forward
        monkeypatch.setattr(each.denoiser.unet.conv_in, "forward", lambda x, f=forward: f(x) if float(x.sum()) < 1e9 else x)
    assert torch.equal(one(x, draw=0), loop(x, draw=0))
    assert "depends on what its tensors hold" in one.execution_reason
    with pytest.raises(CaptureError, match="could not be recorded"):
        one._purification().guided.replay.refused, one.execution = None, "graph"
        one(x, draw=0)


def test_another_thread_is_not_recorded():
    x, own = torch.rand(2, 4, 4, 4), torch.zeros(())
    affine = torch.ones(4), torch.zeros(4)

    def norm():
        ops.group_norm_silu(x, *affine, None, None, 2, 1e-5)

    def work():
        aside = threading.Thread(target=norm)
        aside.start()
        aside.join()
        own.add_(1)

    replay = CpuCapture()(work)
    replay(), replay()
    assert len(replay.calls) == 1


def test_a_recording_keeps_what_it_reads_and_lets_go_of_it():
    out, x, weight = torch.empty(6, 6), torch.rand(6, 6), torch.rand(6, 6)
    expected, held = x @ weight, [weight]
    replay = CpuCapture()(lambda: store(out, x @ held[0]))
    replay(), replay()
    held.clear()
    del weight
    torch.rand(1000, 6, 6)
    replay()
    assert torch.equal(out, expected)


def test_a_dropped_graph_gives_its_memory_back_at_once():
    replay = Replay()
    replay.run(unguided(), images(2))
    ((_, graph),) = replay._graphs.items()
    memory = weakref.ref(graph.replay.memory)
    gc.disable()
    try:
        del graph
        replay._graphs.clear()
        assert memory() is None
    finally:
        gc.enable()


def test_a_constant_that_is_changed_in_place_starts_anew():
    recorded(lambda x: torch.tensor([1.0, 2.0]).add_(x), torch.rand(2))


def test_whatever_stops_a_recorder_leaves_the_work_running():
    capture, x, out = CpuCapture(), torch.rand(3, 3), torch.empty(3, 3)
    replay = capture(lambda: store(out, x.to_sparse().to_dense() * 2))
    for _ in range(3):
        x.uniform_()
        replay()
        assert torch.equal(out, x * 2)
    assert "could not be recorded" in capture.refused and replay.calls is None and not replay.memory.blocks


def test_backward_under_autocast_takes_the_graphs_of_its_forward():
    model, network = networks()
    x, process = images(2).requires_grad_(), ReverseProcess(plan(), model, guides(network)["adversarial"], noise(2))
    out = differentiable_run(Replay(), process, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (grad,) = torch.autograd.grad(out.square().sum(), x)
    again = differentiable_run(Loop(), process, x)
    assert torch.equal(grad, torch.autograd.grad(again.square().sum(), x)[0])


@pytest.mark.parametrize("guide", ["none", "pixel", "adversarial", "Tweedie"])
@pytest.mark.parametrize("engine", ["fastest", "reference"])
def test_recordings_equal_the_loop_bit_for_bit_there_and_back(guide, engine):
    model, network = networks()
    guide = guides(network)[guide]
    replay = Replay()
    with ops.backend("reference") if engine == "reference" else contextlib.nullcontext():
        for seed, one in enumerate((plan(4), plan(4, "ddim", eta=1.0), plan(3), plan(7, "vp_sde"))):
            process = ReverseProcess(one, model, guide, noise(3, seed))
            assert torch.equal(replay.run(process, images(3, seed)), looped(process, images(3, seed)))
        found, process = [], ReverseProcess(plan(), model, guide, noise(3))
        for executor in (Loop(), replay):
            x = images(3).requires_grad_()
            out = differentiable_run(executor, process, x)
            found.append((out, *torch.autograd.grad(out.square().sum(), x)))
        assert all(torch.equal(loop, graph) for loop, graph in zip(*found, strict=True))


def test_another_number_of_threads_or_engine_is_recorded_anew():
    replay, process = Replay(), unguided()
    replay.run(process, images(2))
    with ops.backend("reference"):
        replay.run(process, images(2))
    assert len(replay._graphs) == 2
    with ops.through_dispatcher():
        replay.run(process, images(2))
    assert len(replay._graphs) == 3
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        replay.run(process, images(2))
    finally:
        torch.set_num_threads(before)
    assert len(replay._graphs) == 4


def test_few_recordings_are_kept_the_last_ones_used():
    replay, process = Replay(), unguided()
    for batch in (1, 2, 3, 4, 1, 5):
        replay.run(process._replace(noise=noise(batch)), images(batch))
    assert [key[1][0] for key in replay._graphs] == [3, 4, 1, 5]


def test_a_large_unet_keeps_little_memory(monkeypatch):
    results, like = [], _Memory.like
    monkeypatch.setattr(_Memory, "like", lambda self, tensor: (results.append(4 * tensor.numel()), like(self, tensor))[1])
    network = randomised(UNet(UNET), 0)
    x, out, t = images(8), torch.empty(8, 1, 8, 8), torch.full((8,), 20.0)
    replay = CpuCapture()(lambda: store(out, network(x, t)))
    replay(), replay()
    held = sum(block.size for block in replay.memory.blocks.values())
    assert held < sum(results) / 3


def test_a_purifier_takes_recordings_by_default_and_gives_the_loops_images():
    graphs, loop = purifier(), purifier(execution="loop")
    x = images(3).abs()
    for draw in range(3):
        assert torch.equal(graphs(x, draw=draw), loop(x, draw=draw))
    assert len(graphs._purification().guided.replay._graphs) == 1 and not loop._purification().guided.replay._graphs
