"""Images with keys of their own: each is purified as it is alone with its key, by loop and replay, and so is its gradient."""

from __future__ import annotations

import pytest
import torch

from purify_engine.config import ScheduleConfig
from purify_engine.engine.bridges import Tiled
from purify_engine.engine.gradients import differentiable_run
from purify_engine.engine.guide import NoGuide, PixelGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.reference.philox import derive_seed, derived_keys
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey
from tests.engine.test_opening import OpeningCapture
from tests.engine.test_replay import FakeCapture

SCHEDULE = make_schedule(ScheduleConfig())
PLAN = write_plan(SCHEDULE, 150, 4, "ddpm", guidance_scale=0.7)
LEARNED = write_plan(SCHEDULE, 150, 4, "ddpm_learned")
KEYS, IDS = derived_keys(3, torch.tensor([4, 4, 2**40])), torch.tensor([7, 2, 7])
X = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(5)) * 2 - 1
EXECUTORS = {
    "loop": Loop,
    "recording": Replay,  # of CPUs
    "graph": lambda: Replay(FakeCapture()),  # pads to 4 images
    "graph with its opening": lambda: Replay(OpeningCapture()),
    "graph of a whole plan": lambda: Replay(OpeningCapture(), whole_plan=True),
}
GUIDES = {"none": NoGuide(), "pixel": PixelGuide()}


def squares(x_net, plan, step):
    """A noise prediction of products and sums alone, which are rounded alike in any batch; its gradient hangs on the noise."""
    return 0.4 * x_net - 0.3 * x_net * x_net


def squares_and_variance(x_net, plan, step):
    return squares(x_net, plan, step), 0.1 * x_net


def alone(run, process, x):
    """What each image is made of by itself, with its key as the one key."""
    for i in range(len(x)):
        noise = NoiseKey(process.noise.key[i], process.noise.ids[i : i + 1])
        yield run(process._replace(noise=noise), x[i : i + 1])


def there_and_back(executor, process, x):
    x = x.clone().requires_grad_()
    out = differentiable_run(executor, process, x)
    return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("guide", GUIDES)
def test_an_image_is_purified_as_alone_with_its_key(executor, guide):
    process, executor = ReverseProcess(PLAN, squares, GUIDES[guide], NoiseKey(KEYS, IDS)), EXECUTORS[executor]()
    with torch.no_grad():
        expected = torch.cat(list(alone(Loop().run, process, X)))
        for _ in range(3):  # a recording runs, is recorded, and replayed
            assert torch.equal(executor.run(process, X), expected)
        others = process._replace(noise=NoiseKey(KEYS.flip(0), IDS))
        assert torch.equal(executor.run(others, X), torch.cat(list(alone(Loop().run, others, X))))
        one_key = process._replace(noise=NoiseKey(KEYS[0], IDS))
        assert torch.equal(executor.run(one_key, X), Loop().run(one_key, X))
        assert torch.equal(executor.run(process, X), expected)
        if isinstance(executor, Replay):
            assert executor._capture(X.device).refused is None


@pytest.mark.parametrize("executor", ["loop", "recording", "graph"])
@pytest.mark.parametrize("guide", GUIDES)
def test_the_exact_gradient_of_an_image_is_that_of_it_alone(executor, guide):
    process, executor = ReverseProcess(PLAN, squares, GUIDES[guide], NoiseKey(KEYS, IDS)), EXECUTORS[executor]()
    values, grads = zip(*alone(lambda *given: there_and_back(Loop(), *given), process, X), strict=True)
    for _ in range(2):
        value, grad = there_and_back(executor, process, X)
        assert torch.equal(value, torch.cat(values)) and torch.equal(grad, torch.cat(grads))
    other = there_and_back(executor, process._replace(noise=NoiseKey(KEYS[2], IDS)), X)[1]
    assert torch.equal(other[2], grad[2]) and not torch.equal(other[:2], grad[:2])


@pytest.mark.parametrize("executor", ["loop", "recording"])
def test_a_step_of_learned_variance_draws_by_the_keys_too(executor):
    process = ReverseProcess(LEARNED, squares_and_variance, NoGuide(), NoiseKey(KEYS, IDS))
    executor = EXECUTORS[executor]()
    with torch.no_grad():
        expected = torch.cat(list(alone(Loop().run, process, X)))
        assert all(torch.equal(executor.run(process, X), expected) for _ in range(3))


@pytest.mark.parametrize("executor", ["loop", "recording"])
@pytest.mark.parametrize("keys", [KEYS, KEYS[0]], ids=["a key an image", "one key"])
def test_the_gradient_of_the_last_image_alone_is_taken_at_its_own_noise(executor, keys):
    """The noise of a learned variance is in the gradient; the other images take no part in it."""
    process = ReverseProcess(LEARNED, squares_and_variance, NoGuide(), NoiseKey(keys, IDS))
    last = process._replace(noise=NoiseKey(keys[2] if keys.dim() else keys, IDS[2:]))
    _, expected = there_and_back(Loop(), last, X[2:])
    x = X.clone().requires_grad_()
    found = torch.autograd.grad(differentiable_run(EXECUTORS[executor](), process, x)[2].square().sum(), x)[0]
    assert torch.equal(found[2:], expected) and not found[:2].any()


def test_a_graph_of_one_key_is_not_that_of_a_key_an_image():
    """Of one image, where the shapes of all else agree."""
    capture = FakeCapture()
    replay, process = Replay(capture), ReverseProcess(PLAN, squares, NoGuide(), NoiseKey(KEYS[:1], IDS[:1]))
    both = [replay.run(process._replace(noise=NoiseKey(key, IDS[:1])), X[:1]) for key in (KEYS[:1], KEYS[0], KEYS[:1])]
    assert torch.equal(both[0], both[1]) and torch.equal(both[0], both[2])
    assert capture.captures == 2


def test_tiles_derive_a_key_for_each_image():
    x = torch.zeros(3, 1, 8, 12)
    for (_, noise), *singles in zip(
        Tiled(8, 4).parts(x, NoiseKey(KEYS, IDS)),
        *(Tiled(8, 4).parts(x[i : i + 1], NoiseKey(KEYS[i], IDS[i : i + 1])) for i in range(3)),
        strict=True,
    ):
        assert noise.key.tolist() == [int(single.key) for _, single in singles] and noise.ids is IDS


def test_the_pixel_guides_noise_has_a_key_for_each_image():
    assert torch.equal(PixelGuide().derive(NoiseKey(KEYS, IDS)).key, torch.stack([derive_seed(key, 1) for key in KEYS]))
