"""Graphs beside the loop to rounding, where other tests ask for equal bits: a processor that rounds otherwise hides no fault.

One replay throughout each test: what is left of an earlier plan, batch, seed or backward pass would be far more than rounding.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils import _python_dispatch

from purify_engine.engine.cpu_capture import CpuCapture
from purify_engine.engine.gradients import differentiable_run, purify
from purify_engine.engine.loop import Loop
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.types import NoiseKey
from tests.engine.test_cpu_capture import WORK
from tests.engine.test_replay import (
    FakeCapture,
    change_in_place,
    change_the_guide,
    change_the_time_embedding,
    guides,
    images,
    load_other_weights,
    looped,
    networks,
    noise,
    plan,
)

CAPTURES = {"warmed up and padded": FakeCapture, "recorded": CpuCapture}
captures = pytest.mark.parametrize("capture", CAPTURES)
PLANS = [plan(4), plan(4, "ddim", eta=1.0), plan(4, "vp_sde"), plan(3), plan(7, "vp_sde"), plan(4)]


def assert_close(found, expected, rtol=1e-5):
    """To the rounding of float32 networks: of the largest value, which is no luck of a single element."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


def there_and_back(executor, process, x):
    """(x_0, its gradient), of a loss that weighs every pixel otherwise."""
    x = x.clone().requires_grad_()
    out = differentiable_run(executor, process, x)
    return out.detach(), torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), x)[0]


@captures
@pytest.mark.parametrize("whole_plan", [False, True])
@pytest.mark.parametrize("net_dtype", [None, torch.float64], ids=str)
def test_one_replay_over_plans_seeds_and_batches(capture, whole_plan, net_dtype):
    model, network = (part.to(net_dtype or torch.float32) for part in networks())
    guide = guides(network)["adversarial"]
    replay = Replay(CAPTURES[capture](), whole_plan=whole_plan)
    for seed, one in enumerate(PLANS):
        batch, one = 3 + seed % 2, one.to("cpu", net_dtype)
        process = ReverseProcess(one, model, guide, noise(batch, seed))
        assert_close(replay.run(process, images(batch, seed)), looped(process, images(batch, seed)))


@captures
@pytest.mark.parametrize("guide", ["none", "pixel", "adversarial", "Tweedie"])
def test_one_replay_there_and_back_over_plans_and_seeds(capture, guide):
    """Twice by every plan: what is added up on the way back must start from nothing each time."""
    model, network = networks()
    guide = guides(network)[guide]
    replay = Replay(CAPTURES[capture]())
    for seed, one in enumerate((PLANS[0], PLANS[1], PLANS[1], PLANS[3])):
        given = ReverseProcess(one, model, guide, noise(3, seed)), images(3, seed)
        for found, expected in zip(there_and_back(replay, *given), there_and_back(Loop(), *given), strict=True):
            assert_close(found, expected, 1e-4)


@captures
def test_with_and_without_the_guides_path_on_one_replay(capture):
    model, network = networks()
    guide, replay, grads = guides(network)["adversarial"], Replay(CAPTURES[capture]()), {}
    for follow_guide in (True, False, True):
        process = ReverseProcess(plan(), model, guide, noise(2), follow_guide)
        grads[follow_guide], expected = (there_and_back(each, process, images(2))[1] for each in (replay, Loop()))
        assert_close(grads[follow_guide], expected, 1e-4)
    assert (grads[True] - grads[False]).norm() > 1e-3 * grads[True].norm()


@captures
@pytest.mark.parametrize("mode", ["exact", "bpda", "surrogate", "detached_guidance", "blind"])
def test_every_gradient_mode(capture, mode):
    model, network = networks()
    process, results = ReverseProcess(plan(), model, guides(network)["adversarial"], noise(3)), []
    for executor in (Loop(), Replay(CAPTURES[capture]())):
        x = images(3).requires_grad_()
        out = purify(executor, process, x, mode=mode, surrogate=plan(2))
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, 1e-4)


@captures
@pytest.mark.parametrize(
    "change", [change_in_place, load_other_weights, change_the_guide, change_the_time_embedding], ids=lambda f: f.__name__
)
def test_a_changed_weight_is_seen_there_and_back(capture, change):
    model, network = networks()
    replay = Replay(CAPTURES[capture]())
    given = ReverseProcess(plan(), model, guides(network)["adversarial"], noise(2)), images(2)
    before = there_and_back(replay, *given)
    with torch.no_grad():
        change(model.requires_grad_(False), network)
    model.requires_grad_(False)
    for old, found, expected in zip(before, there_and_back(replay, *given), there_and_back(Loop(), *given), strict=True):
        assert_close(found, expected, 1e-4)
        assert (found - old).norm() > 1e-3 * old.norm()


@captures
def test_each_image_has_its_own_noise_and_target_wherever_it_stands(capture):
    """Rows of a batch exchanged are rows of the result exchanged, in graphs of several batch sizes."""
    model, network = networks()
    process, x = ReverseProcess(plan(), model, guides(network)["adversarial"], noise(5)), images(5)
    replay, (key, ids) = Replay(CAPTURES[capture]()), process.noise
    whole = replay.run(process, x)
    for rows in (torch.tensor([4, 1, 3]), torch.tensor([2]), torch.tensor([0, 4])):
        found = replay.run(process._replace(noise=NoiseKey(key, ids[rows])), x[rows])
        assert_close(found, whole[rows])


@pytest.mark.parametrize("name", WORK)
def test_a_recording_computes_its_work_on_other_inputs(name):
    x = torch.rand(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(WORK[name](x))
    replay = CpuCapture()(lambda: out.copy_(WORK[name](x)))
    for seed in range(4):
        x.copy_(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)))
        out.fill_(torch.nan)
        replay()
        assert_close(out, WORK[name](x), 1e-6)
    assert replay.calls is not None


def test_recordings_of_two_threads_take_their_turn():
    """PyTorch notes in one place for all threads whether a dispatch mode is on: overlapping ones would leave it on for good."""
    inside, order = [threading.Event() for _ in range(2)], []
    outs, inputs = [torch.empty(4) for _ in range(2)], [torch.rand(4) for _ in range(2)]

    def work(place):
        order.append(("begin", place))
        inside[place].set()
        if recording.is_set():
            inside[1 - place].wait(0.5)  # where the other were let in, it would be by now
        outs[place].copy_(inputs[place] * (place + 2) + 1)
        order.append(("end", place))

    recording = threading.Event()
    replays = [CpuCapture()(lambda place=place: work(place)) for place in range(2)]
    for replay in replays:
        replay()  # the first call records nothing
    recording.set(), order.clear(), [event.clear() for event in inside]
    threads = [threading.Thread(target=replay) for replay in replays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [what for what, _ in order] == ["begin", "end"] * 2
    assert not _python_dispatch.is_in_torch_dispatch_mode(include_infra_modes=True)
    for place, replay in enumerate(replays):
        inputs[place].uniform_()
        replay()
        assert replay.calls is not None and len(order) == 4
        assert_close(outs[place], inputs[place] * (place + 2) + 1, 1e-6)
