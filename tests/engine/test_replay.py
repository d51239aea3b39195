"""The replay without a GPU: a capture that replays by running again shows its buffers, buckets and plan switches."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from purify_engine import ClassifierConfig, GuidanceConfig, GuidedPurifier, PurifierConfig, UNetConfig
from purify_engine.config import ScheduleConfig
from purify_engine.engine import capture as capturing
from purify_engine.engine import cpu_capture
from purify_engine.engine.capture import WARM_UP, Branches, CaptureError, bucket_of
from purify_engine.engine.gradients import differentiable_run, purify
from purify_engine.engine.guide import AdversarialGuide, NoGuide, PixelGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.purification import Purification
from purify_engine.engine.replay import Replay
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.unet import UNet
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey

NO_GUIDE = NoGuide()
SCHEDULE = make_schedule(ScheduleConfig())
UNET = UNetConfig(
    image_size=8, in_channels=1, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4
)
GUIDE = ClassifierConfig(
    architecture="wide_resnet", depth=10, width=1, in_channels=1, activation="silu", mean=(0.3,), std=(0.4,)
)


@torch.no_grad()
def looped(process, x):
    return Loop().run(process, x)


class FakeCapture:
    """Warms up as CUDA graphs do, and replays by running the work again. Counts both."""

    most_graphs = refused = None
    fails_at_once = True
    records_opening = False
    bucket = staticmethod(bucket_of)

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, work):
        self.captures += 1
        for _ in range(WARM_UP):
            work()

        def replay():
            self.replays += 1
            with torch.no_grad():
                work()

        return replay


def randomised(module, seed):
    """Random weights everywhere, the zero-initialised and the statistics too."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.dim():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + (0.2 if tensor.dim() == 1 else -0.2))
    return module.eval().requires_grad_(False)


def networks():
    return randomised(Denoiser(UNet(UNET)), 0), randomised(Classifier(GUIDE), 1)


def plan(num_steps=4, sampler="ddpm", **options):
    return write_plan(SCHEDULE, 60, num_steps, sampler, guidance_scale=0.7, **options)


def images(batch, seed=3):
    return torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(batch, seed=11):
    return NoiseKey(torch.tensor(seed), torch.arange(batch) * 7 + 1)


def guides(network):
    return {
        "none": NO_GUIDE,
        "pixel": PixelGuide(),
        "adversarial": AdversarialGuide(network, GuidanceConfig(scale=1.0)),
        "Tweedie": AdversarialGuide(network, GuidanceConfig(scale=1.0, look_at="x0", normalised=True)),
    }


def unguided():
    """Four steps on two images."""
    return ReverseProcess(plan(), networks()[0], NO_GUIDE, noise(2))


@pytest.mark.parametrize("guide", ["none", "pixel", "adversarial", "Tweedie"])
@pytest.mark.parametrize("whole_plan", [False, True])
@pytest.mark.parametrize("net_dtype", [None, torch.float64])
def test_graph_equals_loop_bit_for_bit_over_seeds_and_plans(guide, whole_plan, net_dtype):
    model, network = (part.to(net_dtype or torch.float32) for part in networks())
    guide, capture = guides(network)[guide], FakeCapture()
    replay = Replay(capture, whole_plan=whole_plan)
    plans = [plan(4), plan(4, "ddim", eta=1.0), plan(3), plan(7, "vp_sde"), plan(4)]
    for seed, one in enumerate(plans):
        process = ReverseProcess(one.to("cpu", net_dtype), model, guide, noise(4, seed))
        assert torch.equal(replay.run(process, images(4, seed)), looped(process, images(4, seed)))
    # room for 4, then for 8; a whole plan is captured by its length
    assert capture.captures == (3 if whole_plan else 2)
    assert capture.replays == (5 if whole_plan else sum(map(len, plans)))


@pytest.mark.parametrize(("batch", "bucket"), [(1, 1), (2, 2), (3, 4), (33, 64), (64, 64), (65, 128), (130, 192)])
def test_batches_are_padded_to_buckets(batch, bucket):
    assert bucket_of(batch) == bucket


def test_a_padded_batch_gets_what_it_gets_at_the_bucket_size():
    model, network = networks()
    guide, capture = guides(network)["adversarial"], FakeCapture()
    replay = Replay(capture)
    for batch in (3, 4, 1, 3):
        x, key = images(batch), noise(batch)
        filled = bucket_of(batch) - batch
        padded = torch.cat([x, x[:1].expand(filled, -1, -1, -1)])
        ids = torch.cat([key.ids, key.ids[:1].expand(filled)])
        expected = looped(ReverseProcess(plan(), model, guide, NoiseKey(key.key, ids)), padded)[:batch]
        got = replay.run(ReverseProcess(plan(), model, guide, key), x)
        assert torch.equal(got, expected)
        assert got.shape == x.shape
    assert capture.captures == 2  # for 4 and for 1


def test_results_do_not_change_when_the_graph_runs_again():
    replay, process = Replay(FakeCapture()), unguided()
    first = replay.run(process, images(2))
    kept = first.clone()
    replay.run(process._replace(noise=noise(2, seed=5)), images(2, seed=9))
    assert torch.equal(first, kept)


def change_in_place(model, network):
    model.unet.conv_out.weight.mul_(1.5)


def load_other_weights(model, network):
    model.load_state_dict(randomised(Denoiser(UNet(UNET)), 8).state_dict(), assign=True)


def change_the_guide(model, network):
    network.fc.weight.mul_(-2.0)


def change_the_time_embedding(model, network):
    next(model.unet.time_embedding.parameters()).mul_(2.0)


@pytest.mark.parametrize(
    "change", [change_in_place, load_other_weights, change_the_guide, change_the_time_embedding], ids=lambda f: f.__name__
)
def test_a_changed_weight_is_seen_and_recorded_anew(change):
    model, network = networks()
    process, capture = ReverseProcess(plan(), model, guides(network)["adversarial"], noise(2)), FakeCapture()
    replay = Replay(capture)
    before = replay.run(process, images(2))
    change(model, network)
    after = replay.run(process, images(2))
    assert not torch.equal(after, before)
    assert capture.captures == 2
    assert torch.equal(after, looped(process, images(2)))


class Prepared(torch.nn.Module):
    """A model that notes which timesteps it was prepared for: a recorded graph asks no network for its table again."""

    def __init__(self, model):
        super().__init__()
        self.model, self.times = model, []

    def forward(self, x_net, plan, step):
        return self.model(x_net, plan, step)

    def prepare(self, plan):
        self.times.append(plan.times.tolist())
        self.model.prepare(plan)


def test_the_model_is_prepared_for_a_plan_before_each_replay():
    model = Prepared(networks()[0])
    replay = Replay(FakeCapture())
    for one in (plan(4), plan(4, "vp_sde"), plan(3)):
        replay.run(ReverseProcess(one, model, NO_GUIDE, noise(2)), images(2))
        assert model.times[-1][: len(one)] == one.times.tolist()


def test_a_plan_is_loaded_once_however_often_it_runs():
    model = Prepared(networks()[0])
    replay, process = Replay(FakeCapture()), ReverseProcess(plan(4), model, NO_GUIDE, noise(2))
    first = replay.run(process, images(2))
    loaded = len(model.times)
    assert torch.equal(replay.run(process, images(2)), first)
    assert len(model.times) == loaded


def test_what_autocast_would_cast_is_not_captured():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(CaptureError, match="autocast is on"):
        Replay(FakeCapture()).run(unguided(), images(2))


@pytest.mark.parametrize("guide", ["none", "pixel", "adversarial", "Tweedie"])
@pytest.mark.parametrize("follow_guide", [True, False])
def test_gradient_by_graphs_equals_the_gradient_by_the_loop(guide, follow_guide):
    model, network = networks()
    guide, capture = guides(network)[guide], FakeCapture()
    replay = Replay(capture)
    for seed, one in enumerate((plan(4), plan(3, "ddim", eta=0.5))):
        weight, process = images(2, seed=20 + seed), ReverseProcess(one, model, guide, noise(2, seed), follow_guide)
        grads = []
        for executor in (Loop(), replay):
            x = images(2, seed).requires_grad_()
            out = differentiable_run(executor, process, x)
            grads.append((out, *torch.autograd.grad((out * weight).sum(), x)))
        assert all(torch.equal(loop, graph) for loop, graph in zip(*grads, strict=True))
    assert capture.captures == 2  # one step there, one back


def test_gradient_of_a_padded_batch_ignores_its_padding():
    model, network = networks()
    process = ReverseProcess(plan(), model, guides(network)["adversarial"], noise(3))
    grads = []
    for executor in (Loop(), Replay(FakeCapture())):
        x = images(3).requires_grad_()
        out = differentiable_run(executor, process, x)
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    # three images and four go through other convolution kernels
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4 * grads[0].abs().max().item())


@pytest.mark.parametrize("mode", ["bpda", "surrogate", "detached_guidance", "blind"])
def test_every_gradient_mode_takes_graphs(mode):
    model, network = networks()
    process = ReverseProcess(plan(), model, guides(network)["adversarial"], noise(2))
    grads = []
    for executor in (Loop(), Replay(FakeCapture())):
        x = images(2).requires_grad_()
        out = purify(executor, process, x, mode=mode, surrogate=plan(2))
        grads.append((out, *torch.autograd.grad(out.square().sum(), x)))
    assert all(torch.equal(loop, graph) for loop, graph in zip(*grads, strict=True))


def test_branches_run_both_and_give_both():
    assert Branches(torch.device("cpu"))(lambda: 1, lambda: 2) == (1, 2)


def purifier(**options):
    model, network = networks()
    config = PurifierConfig(t_star=30, num_steps=3, guidance=GuidanceConfig(scale=1.0))
    return GuidedPurifier(model, network, config, **options)


def test_a_purifier_says_how_it_runs_and_why():
    assert purifier().execution_reason is None
    assert "execution=graph" in repr(purifier())
    assert purifier(execution="loop").execution_reason == "as asked for"
    assert purifier().to("meta").execution_reason == "nothing is recorded on meta, where the networks are"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert purifier().execution_reason.startswith("autocast is on")
    with FlopCounterMode(display=False):
        assert purifier().execution_reason.startswith("a mode, a tracer or a profiler is active")


def test_large_images_are_purified_step_by_step_on_a_cpu_unless_graphs_are_asked_for(monkeypatch):
    """A recording keeps the memory of a whole step, of which networks for large images have most."""
    assert 3 * 64 * 64 <= cpu_capture.MOST_VALUES < 3 * 256 * 256
    x, large, asked = torch.rand(1, 1, 8, 8), purifier(), purifier(execution="graph")
    monkeypatch.setattr("purify_engine.engine.purification.MOST_VALUES", 8 * 8 - 1)
    assert large.execution_reason.startswith("steps of such large images take seconds")
    assert torch.equal(large(x, draw=0), asked(x, draw=0))
    assert (large._purification().guided.replay._calls, asked._purification().guided.replay._calls) == (0, 1)
    assert purifier().to("meta").execution_reason.startswith("nothing is recorded on meta")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="execution must be 'loop' or 'auto' on meta, where nothing is recorded, got 'graph'"):
        Replay().run(unguided(), images(2).to("meta"))
    with pytest.raises(ValueError, match="execution must be one of"):
        purifier(execution="fast")


@pytest.fixture
def pretend(monkeypatch):
    """A purifier with a capture that pretends."""
    capture = FakeCapture()
    monkeypatch.setattr(Replay, "_capture", lambda self, device: capture)
    monkeypatch.setattr(Purification, "execution_reason", property(lambda self: self.guided.replay.refused))
    return capture


def test_a_purifier_replays_graphs_and_gives_the_same_images(pretend):
    graphs, loop = purifier(), purifier(execution="loop")
    loop._purification().guided.replay.refused = "for comparison"
    x = images(4).add(1).div(2)
    assert torch.equal(graphs(x, draw=1), loop(x, draw=1))
    assert pretend.replays == 3
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outs = [one(leaf, draw=1) for one, leaf in zip((graphs, loop), leaves, strict=True)]
    grads = [torch.autograd.grad(out.square().sum(), leaf)[0] for out, leaf in zip(outs, leaves, strict=True)]
    assert torch.equal(*grads)
    assert pretend.replays == 9  # three more steps, and three back
    seen = []
    graphs(x, callback_on_step_end=lambda *step: seen.append(step))
    assert len(seen) == 3 and pretend.replays == 12


def told(model, x, then=lambda x_t: None):
    """What a callback is given, and the result; `then` is what else it does."""
    seen = []

    def on_step_end(step, t, x_t):
        seen.append((step, t, x_t.clone()))
        then(x_t)

    return seen, model(x, draw=1, callback_on_step_end=on_step_end)


@pytest.mark.parametrize("batch", [3, 4])
def test_a_callback_sees_the_same_steps_of_a_replay_as_of_the_loop(batch, pretend):
    x = images(batch).add(1).div(2)
    padded = torch.cat([x, x[:1]])[:4]
    graphs, loop = purifier(), purifier()
    loop._purification().guided.replay.refused = "for comparison"
    (seen, out), (expected, whole) = told(graphs, x), told(loop, padded)
    assert pretend.replays == 3 and torch.equal(out, graphs(x, draw=1))
    assert [(step, t) for step, t, _ in seen] == [(step, t) for step, t, _ in expected] and len(seen) == 3
    if batch == 4:  # else the loop's fourth image has an id of its own, and no other noise
        assert torch.equal(out, whole)
    assert all(torch.equal(x_t, other[:batch]) for (_, _, x_t), (_, _, other) in zip(seen, expected, strict=True))


def test_a_callback_may_call_the_purifier_and_change_what_it_is_given(pretend):
    model, x = purifier(), images(4).add(1).div(2)
    expected, out = told(model, x)
    seen, again = told(model, x, lambda x_t: (x_t.zero_(), model(images(4, seed=8).abs(), draw=7)))
    assert torch.equal(again, out)
    assert all(torch.equal(x_t, other) for (_, _, x_t), (_, _, other) in zip(seen, expected, strict=True))
    assert pretend.replays > 6


def test_a_callback_is_told_by_the_loop_where_a_recording_may_fail_later(pretend):
    pretend.fails_at_once = False
    seen, _ = told(purifier(), images(4).add(1).div(2))
    assert len(seen) == 3 and pretend.replays == 0


def test_a_purifier_sees_that_its_guide_was_replaced(pretend):
    one, other = purifier(), purifier()
    x = images(2).abs()
    one(x, draw=0)
    one.guide = other.guide = randomised(Classifier(GUIDE), 5)
    other._purification().guided.replay.refused = "for comparison"
    assert torch.equal(one(x, draw=0), other(x, draw=0))


def test_a_failed_capture_falls_back_with_its_reason(monkeypatch, pretend):
    class Full(FakeCapture):
        def __call__(self, work):
            raise CaptureError("the step could not be captured as a CUDA graph: out of memory")

    monkeypatch.setattr(Replay, "_capture", lambda self, device: Full())
    one = purifier()
    assert torch.equal(one(images(2).abs(), draw=0), purifier(execution="auto")(images(2).abs(), draw=0))
    assert one.execution_reason == "the step could not be captured as a CUDA graph: out of memory"
    with pytest.raises(CaptureError):
        purifier(execution="graph")(images(2).abs())


def test_graphs_are_left_out_of_copies_and_pickles(pretend):
    one = purifier()
    one(images(2).abs(), draw=0)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert not other._purification().guided.replay._graphs
        assert torch.equal(other(images(2).abs(), draw=0), one(images(2).abs(), draw=0))


def test_what_was_refused_of_one_network_is_not_held_against_another():
    class Reading(torch.nn.Module):
        def forward(self, x_net, plan, step):
            return x_net * float(x_net.mean())

    replay, process = Replay(), unguided()
    for _ in range(2):
        with pytest.raises(CaptureError, match="depends on what its tensors hold"):
            replay.run(process._replace(model=Reading()), images(2))
    assert torch.equal(replay.run(process, images(2)), looped(process, images(2)))


def test_an_error_while_recording_names_the_graph(monkeypatch):
    class Recorder(capturing.CudaCapture):
        def __init__(self):
            self.device, self.stream, self.pool = torch.device("cuda"), None, None

        def _warm_up(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    with pytest.raises(CaptureError, match="could not be captured as a CUDA graph: operation not permitted"):
        Recorder()(lambda: None)
