"""What guides: targets, pulls and where they look, against networks and autograd written out; float64 throughout."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from purify_engine import ops
from purify_engine.config import GuidanceConfig, ScheduleConfig
from purify_engine.engine.guide import AdversarialGuide, NoGuide, PixelGuide, input_gradient
from purify_engine.engine.plan import write_plan
from purify_engine.ops import switches
from purify_engine.reference import guidance
from purify_engine.reference.philox import derive_seed
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey
from tests.engine.test_gradients import network

PLAN = write_plan(make_schedule(ScheduleConfig()), 150, 5, guidance_scale=1.0)
STEP = torch.tensor(2)
NOISE = NoiseKey(torch.tensor(11), torch.tensor([4, 2**35]))
NETWORK = network()
INPUT, X_T, EPS = (
    torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
)
SIGNAL, SIGMA = PLAN.marginals[2]


def guide(**options):
    straight_through = options.pop("straight_through", False)
    return AdversarialGuide(NETWORK, GuidanceConfig(scale=1.0, **options), straight_through=straight_through)


def features_and_logits(x):
    """Of [-1, 1] images, by the network as it is: its batch norms are not folded away."""
    return NETWORK.features_and_logits((x + 1) / 2)


def test_no_guide_has_no_target_and_no_pull():
    assert NoGuide().target(INPUT) == () and NoGuide().grad(X_T, None, (), PLAN, STEP, NOISE) is None


def test_the_pixel_guide_pulls_to_the_input_noised_by_a_stream_of_its_own():
    """At the marginal of the step, by the normals of the derived seed, step and id; not by those that the walk draws."""
    z = ops.philox_normal(derive_seed(NOISE.key, 1), NOISE.ids, STEP, 64, dtype=torch.float64).view_as(X_T)
    expected = -2 * (X_T - (SIGNAL * INPUT + SIGMA * z))
    assert len(PixelGuide().target(INPUT)) == 1
    found = PixelGuide().grad(X_T, None, PixelGuide().target(INPUT), PLAN, STEP, NOISE)
    torch.testing.assert_close(found, expected)


def test_the_target_is_read_off_the_input():
    features, logits = features_and_logits(INPUT)
    found_features, label = guide(pseudo_label="soft").target(INPUT)
    torch.testing.assert_close(found_features, features)
    torch.testing.assert_close(label, logits.softmax(dim=1))
    _, hard = guide().target(INPUT)
    assert torch.equal(hard, torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).double())


def test_the_target_is_in_the_networks_dtype_whatever_the_images():
    assert all(part.dtype == torch.float64 for part in guide().target(INPUT.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("look_at", ["xt", "x0"])
def test_the_pull_is_computed_in_the_networks_dtype_whatever_the_images(look_at, dtype):
    """And comes back in that of the images, as their gradient does."""
    asked, x_t, eps = guide(look_at=look_at), X_T.to(dtype), EPS.to(dtype)
    found = asked.grad(x_t, eps, target := asked.target(INPUT), PLAN, STEP, NOISE)
    if look_at == "xt":
        expected = asked.grad(x_t.double(), None, target, PLAN, STEP, NOISE)
        assert torch.equal(found, expected.to(dtype))
    assert found.dtype == dtype and found.isfinite().all()


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_straight_through_label_has_the_hard_ones_value_and_the_soft_ones_gradient(straight_through):
    x = INPUT.clone().requires_grad_()
    _, label = guide(straight_through=straight_through).target(x)
    torch.testing.assert_close(label, guide().target(INPUT)[1])
    assert label.requires_grad == straight_through
    if straight_through:
        weights = torch.randn(label.shape, dtype=label.dtype, generator=torch.Generator().manual_seed(5))
        (found,) = torch.autograd.grad((weights * label).sum(), x)
        soft = guide(pseudo_label="soft").target(x)[1]
        torch.testing.assert_close(found, torch.autograd.grad((weights * soft).sum(), x)[0])


OPTIONS = {
    "label and latent": {},
    "weighted": {"label_weight": 0.5, "latent_weight": 3.0},
    "latent alone": {"pseudo_label": "none"},
    "soft label": {"pseudo_label": "soft", "latent_weight": 0.0},
    "label alone": {"latent_weight": 0.0},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("look_at", ["xt", "x0"])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_pull_is_the_gradient_of_the_objective_written_out(name, look_at, normalised):
    options = OPTIONS[name]
    one = guide(**options, look_at=look_at, normalised=normalised, norm_eps=1e-3)
    wanted, label = one.target(INPUT)
    x = X_T.clone().requires_grad_()
    features, logits = features_and_logits(x if look_at == "xt" else (x - SIGMA * EPS) / SIGNAL)
    value = -options.get("latent_weight", 1.0) * (features - wanted).square().sum()
    if options.get("pseudo_label") != "none":
        value = value + options.get("label_weight", 1.0) * (label * logits.log_softmax(1)).sum()
    (expected,) = torch.autograd.grad(value, x)
    if normalised:
        length = (expected.flatten(1).square().sum(1) + 1e-3**2).sqrt()
        expected = expected * (8 / (SIGMA * length)).view(-1, 1, 1, 1)
    found = one.grad(X_T, EPS, (wanted, label), PLAN, STEP, NOISE)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert one.reads_eps == (look_at == "x0")


def test_images_of_a_batch_are_pulled_one_by_one():
    one, target = guide(normalised=True), guide().target(INPUT)
    together = one.grad(X_T, None, target, PLAN, STEP, NOISE)
    for image in range(2):
        own = tuple(part[image : image + 1] for part in target)
        alone = one.grad(X_T[image : image + 1], None, own, PLAN, STEP, NOISE)
        torch.testing.assert_close(together[image : image + 1], alone, rtol=1e-9, atol=1e-12)


def test_the_gradient_at_an_image_is_recorded_where_autograd_records_and_nowhere_else():
    def cubes(x):
        return x.pow(3).sum()

    leaf = X_T.clone().requires_grad_()
    recorded = input_gradient(cubes, leaf)
    torch.testing.assert_close(recorded, 3 * X_T**2)
    torch.testing.assert_close(torch.autograd.grad(recorded.sum(), leaf)[0], 6 * X_T)
    with torch.no_grad():
        assert not input_gradient(cubes, leaf).requires_grad
    assert leaf.grad is None


def test_what_lies_behind_an_image_is_not_differentiated_twice():
    """The pull is taken at the image itself; how that came about matters to the outer derivative alone."""
    leaf = X_T.clone().requires_grad_()
    pull = input_gradient(lambda x: x.pow(2).sum(), 3 * leaf)
    torch.testing.assert_close(pull, 6 * X_T)
    torch.testing.assert_close(torch.autograd.grad(pull.sum(), leaf)[0], torch.full_like(X_T, 6.0))


def test_what_an_objective_closes_over_is_a_constant_of_the_pull():
    """Even the image itself: the pull is taken where the objective is told to look."""
    leaf = X_T.clone().requires_grad_()
    torch.testing.assert_close(input_gradient(lambda x: (x * leaf).sum(), leaf), X_T)


@pytest.mark.parametrize("net_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pixel_target_keeps_its_own_precision_under_networks_of_any(net_dtype, dtype):
    x_net, target = X_T.to(net_dtype), PixelGuide().target(INPUT.to(dtype))
    found = PixelGuide().grad(x_net, None, target, PLAN, STEP, NOISE)
    truth = PixelGuide().grad(x_net.double(), None, (target[0].double(),), PLAN, STEP, NOISE)
    assert target[0].dtype == dtype and found.dtype == dtype
    assert (found - truth).abs().max() <= 8 * torch.finfo(dtype).eps * truth.abs().max()


def test_the_pixel_seed_derived_beforehand_is_the_one_that_a_step_derives():
    derived = PixelGuide().derive(NOISE)
    assert torch.equal(derived.key, derive_seed(NOISE.key, 1)) and derived.ids is NOISE.ids
    pulls = [PixelGuide().grad(X_T, None, (INPUT,), PLAN, STEP, noise) for noise in (NOISE, derived)]
    assert torch.equal(*pulls)
    with switches.switched(pixel_key=False):
        assert PixelGuide().derive(NOISE) is None
    beforehand = PixelGuide().derive(NoiseKey(torch.tensor(12), NOISE.ids))
    assert not torch.equal(PixelGuide().grad(X_T, None, (INPUT,), PLAN, STEP, beforehand), pulls[0])


class Born(TorchDispatchMode):
    """Notes what brings a number of the host to a device, as no capture allows, and counts all operations."""

    def __init__(self):
        super().__init__()
        self.hosts, self.count = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.hosts.append(function)
        self.count += 1
        return result


class Asked(TorchFunctionMode):
    """Notes what makes a tensor of a number of the host, which no operation shows."""

    def __init__(self):
        super().__init__()
        self.born = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.from_numpy):
            self.born.append(function)
        return function(*args, **(kwargs or {}))


def test_a_pixel_step_brings_nothing_from_the_host_and_derives_no_seed():
    plan, key, ids, images = PLAN.to("meta"), NOISE.key.to("meta"), NOISE.ids.to("meta"), X_T.to("meta")
    counts = []
    for noise in (NoiseKey(key, ids), PixelGuide().derive(NoiseKey(key, ids))):
        with Born() as born, Asked() as asked:
            PixelGuide().grad(images, None, (images,), plan, plan.steps[2], noise)
        assert not born.hosts and not asked.born
        counts.append(born.count)
    with Born() as born, Asked() as asked:
        derive_seed(key, 2**33)
    assert not born.hosts and not asked.born and born.count == counts[0] - counts[1] > 100


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("look_at", ["xt", "x0"])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_pull_with_its_ends_written_out_is_the_same_to_the_second_order(name, look_at, normalised):
    """To the image, to the features and, along what a label can change by, to the label: its probabilities add up to 1."""
    one = guide(**OPTIONS[name], look_at=look_at, normalised=normalised, norm_eps=1e-3)
    of_label = torch.randn(2, NETWORK.config.num_classes, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found = []
    for fused in (False, True):
        x, features, logits = (part.clone().requires_grad_() for part in (X_T, one.target(INPUT)[0], of_label))
        target = features, logits.softmax(1)
        with switches.anywhere() if fused else nullcontext():
            pull = one.grad(x, EPS, target, PLAN, STEP, NOISE)
            with torch.no_grad():
                plain = one.grad(x, EPS, target, PLAN, STEP, NOISE)
        seconds = torch.autograd.grad(pull.sin().sum(), (x, features, logits), allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(plain, pull, rtol=1e-12, atol=1e-14)
        assert not plain.requires_grad
        found.append((pull, *seconds))
    for truth, got in zip(*found, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-12)


def test_a_certain_label_leaves_its_pull_in_16_bits():
    """1 - p of a p that rounds to 1 in 16 bits: what the gradient of log p is made of."""
    logits = torch.tensor([[9.0, 0.0, 0.0]])
    label, apart = torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1, 3)
    truth = guidance.objective_gradient(apart, logits, apart, label, torch.eye(3), (1.0, 1.0))
    low = [part.bfloat16() for part in (apart, logits, apart, label, torch.eye(3))]
    got = guidance.objective_gradient(*low, (1.0, 1.0))
    assert truth[0, 0] > 1e-4
    torch.testing.assert_close(got.float(), truth, rtol=2**-7, atol=0)
