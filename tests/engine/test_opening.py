"""What comes before the first step as a graph: the guide's target, the guide's seed and the noised images."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine.engine.capture import CaptureError, bucket_of
from purify_engine.engine.gradients import differentiable_run
from purify_engine.engine.loop import Loop
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.ops import switches
from purify_engine.types import NoiseKey
from tests.engine.test_replay import (
    FakeCapture,
    change_in_place,
    change_the_guide,
    guides,
    images,
    looped,
    networks,
    noise,
    plan,
)


class OpeningCapture(FakeCapture):
    """What comes before the first step is captured, too."""

    records_opening = True


class Operations(TorchDispatchMode):
    """Notes what PyTorch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def looped_at_the_bucket(process, x):
    batch = len(x)
    fill = [0] * (bucket_of(batch) - batch)
    rows = torch.tensor([*range(batch), *fill])
    return looped(process._replace(noise=NoiseKey(process.noise.key, process.noise.ids[rows])), x[rows])[:batch]


def opened(guide, **options):
    """(the process of a plan, batch and seed, a replay that captures openings, its capture), of one model and one guide."""
    model, network = networks()
    capture, by_name = OpeningCapture(), guides(network)[guide]
    return lambda plan, batch, seed: ReverseProcess(plan, model, by_name, noise(batch, seed)), Replay(capture, **options), capture


@pytest.mark.parametrize("guide", ["none", "pixel", "adversarial", "Tweedie"])
@pytest.mark.parametrize("whole_plan", [False, True])
def test_an_opening_by_a_graph_equals_the_loop_over_plans_seeds_and_ids(guide, whole_plan):
    process, replay, capture = opened(guide, whole_plan=whole_plan)
    plans = [plan(4), plan(4, "ddim", eta=1.0), plan(3), plan(4, "vp_sde"), plan(4)]
    for seed, one in enumerate(plans):
        given, x = process(one, 4, seed), images(4, seed)
        assert torch.equal(replay.run(given, x), looped(given, x))
        other_ids = given._replace(noise=NoiseKey(given.noise.key, given.noise.ids + 100 + seed))
        assert torch.equal(replay.run(other_ids, x), looped(other_ids, x))
    assert capture.captures == (4 if whole_plan else 2)  # steps, and what comes before them; a whole plan by its length
    assert capture.replays == 2 * (len(plans) + (len(plans) if whole_plan else sum(map(len, plans))))


def test_the_opening_of_a_padded_batch_equals_the_padded_loop():
    process, replay, capture = opened("adversarial")
    for seed, batch in enumerate((3, 1, 4, 3)):
        x, given = images(batch, seed), process(plan(), batch, seed)
        assert torch.equal(replay.run(given, x), looped_at_the_bucket(given, x))
    assert capture.captures == 4  # two for batches of 4, two for one image


@pytest.mark.parametrize("guide", ["pixel", "adversarial"])
def test_a_replayed_opening_asks_neither_guide_nor_seed_again(guide, monkeypatch):
    """What a GPU's host launches in a warm call, beside the graphs: the copies into what they read, and out of it."""
    process, replay, _ = opened(guide)
    warm = process(plan(), 2, 0), images(2, 0)
    replay.run(*warm)
    for graph in replay._graphs.values():
        monkeypatch.setattr(graph, "replay", lambda: None)
        silent = {layout: (x, lambda: None) for layout, (x, _) in graph._openings.items()}
        monkeypatch.setattr(graph, "_openings", silent)
    other = process(warm[0].plan, 2, 1), images(2, 1)
    with Operations() as launched:
        replay.run(*other)
    # Into what the graphs read: seed, ids, images. Out of it: the result.
    assert launched.names == ["copy_", "copy_", "copy_", "slice", "clone"]


def test_images_in_another_layout_have_an_opening_of_their_own():
    process, replay, capture = opened("adversarial")
    given, x = process(plan(), 4, 0), torch.rand(4, 1, 8, 8) * 2 - 1
    for one in (x, x.transpose(2, 3).contiguous().transpose(2, 3), x):
        assert torch.equal(replay.run(given, one), looped(given, one))
    assert capture.captures == 3


@pytest.mark.parametrize("change", [change_in_place, change_the_guide], ids=lambda f: f.__name__)
def test_an_opening_sees_a_changed_weight(change):
    process, replay, capture = opened("adversarial")
    given = process(plan(), 2, 0)
    before = replay.run(given, images(2))
    change(given.model, given.guide.network)
    after = replay.run(given, images(2))
    assert not torch.equal(after, before) and torch.equal(after, looped(given, images(2)))
    assert capture.captures == 4


def test_a_target_that_cannot_be_captured_is_read_step_by_step():
    class Refusing(OpeningCapture):
        def __call__(self, work):
            if work.func.__name__ == "_start":
                raise CaptureError("it reads its target back to the host")
            return super().__call__(work)

    process, _, _ = opened("pixel")
    capture = Refusing()
    replay = Replay(capture)
    for seed, one in enumerate((plan(4), plan(3), plan(4, "vp_sde"))):
        given = process(one, 3, seed)
        assert torch.equal(replay.run(given, images(3, seed)), looped_at_the_bucket(given, images(3, seed)))
    assert capture.captures == 1 and capture.replays == 11


def test_callbacks_and_gradients_share_a_graph_with_openings():
    process, replay, capture = opened("pixel")
    given, x, seen, expected = process(plan(), 2, 0), images(2), [], []
    first = replay.run(given, x)
    told_result = replay.run(given, x, lambda step, t, x_t: seen.append((step, t, x_t)))
    with torch.no_grad():
        Loop().run(given, x, lambda step, t, x_t: expected.append((step, t, x_t)))
    assert torch.equal(told_result, first)
    assert all(one[:2] == other[:2] and torch.equal(one[2], other[2]) for one, other in zip(seen, expected, strict=True))
    other = process(plan(), 2, 5)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outs = [differentiable_run(executor, other, leaf) for executor, leaf in zip((replay, Loop()), leaves, strict=True)]
    grads = [torch.autograd.grad(out.square().sum(), leaf)[0] for out, leaf in zip(outs, leaves, strict=True)]
    assert torch.equal(*outs) and torch.equal(*grads)
    assert torch.equal(replay.run(given, x), first)
    assert capture.captures == 3  # a step, its opening, a step back


def test_openings_are_left_to_the_host_where_that_is_switched_off():
    process, replay, capture = opened("adversarial")
    given = process(plan(), 2, 0)
    with switches.switched(captured_opening=False):
        off = replay.run(given, images(2))
    assert capture.captures == 1
    assert torch.equal(replay.run(given, images(2)), off) and capture.captures == 3


@pytest.mark.parametrize(("steps", "batch", "captures", "replays"), [(4, 2, 2, 2), (17, 2, 2, 18), (4, 300, 2, 5)])
def test_short_plans_of_small_batches_are_one_graph_where_that_is_switched_on(steps, batch, captures, replays):
    process, replay, capture = opened("none")
    given, x = process(plan(steps), batch, 0), images(batch)
    with switches.switched(whole_plan=True):
        assert torch.equal(replay.run(given, x), looped_at_the_bucket(given, x))
    assert (capture.captures, capture.replays) == (captures, replays)
