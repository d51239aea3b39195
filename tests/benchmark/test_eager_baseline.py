"""The opponents purify as our loop does, given the same noise, without an op of ours: so their time is that of the same work."""

from __future__ import annotations

import pytest
import torch

from purify_engine.benchmark.eager_baseline import BASELINES, EagerPurifier, NaiveLoop, cudnn_free_to_choose
from purify_engine.benchmark.networks import TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.config import PurifierConfig
from purify_engine.reference.philox import philox_normal
from tests.benchmark.test_plain_unet import OpsOfOurs

BATCH = 3
GUIDANCE = {
    "label and latent": {},
    "soft label": {"pseudo_label": "soft"},
    "latent": {"pseudo_label": "none"},
    "x0": {"look_at": "x0"},
    "normalised": {"normalised": True, "scale": 0.3},
    "none": {"kind": "none"},
    "no scale": {"scale": 0.0},
}


@pytest.fixture(scope="module")
def purifier():
    return random_purifier(TOY_NETWORKS["toy-adm"], TOY_GUIDE, PurifierConfig(t_star=100, num_steps=3)).double()


@pytest.fixture
def images():
    return torch.rand(BATCH, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def philox(like, step):
    """The noise of our loop, for seed 0 and ids 0, 1, 2."""
    ids, counter = torch.arange(len(like)), torch.tensor(step)
    return philox_normal(torch.tensor(0), ids, counter, like[0].numel(), dtype=like.dtype).view_as(like)


def guided(purifier, **changes):
    settings = {**vars(purifier.config.guidance), **changes}
    return purifier.configured(guidance=type(purifier.config.guidance)(**settings))


@pytest.mark.parametrize("opponent", [EagerPurifier, NaiveLoop])
@pytest.mark.parametrize("changes", GUIDANCE.values(), ids=GUIDANCE.keys())
def test_they_equal_our_loop_given_the_same_noise(opponent, changes, purifier, images):
    ours = guided(purifier, **changes)
    expected = ours(images, ids=torch.arange(BATCH))
    got = opponent(ours, torch.float64)(images, philox)
    assert (got - expected).norm() < 1e-12 * expected.norm()


def test_the_guidance_of_these_tests_matters(purifier, images):
    """Else a wrong guide would pass them."""
    unguided = guided(purifier, kind="none")(images, ids=torch.arange(BATCH))
    for name in ("label and latent", "soft label", "latent", "x0", "normalised"):
        pulled = guided(purifier, **GUIDANCE[name])(images, ids=torch.arange(BATCH))
        assert (pulled - unguided).norm() > 1e-4 * unguided.norm(), name


def test_guidance_by_pixels_pulls_to_the_noised_input(purifier, images):
    by_pixels = EagerPurifier(guided(purifier, kind="pixel", scale=3.0), torch.float64)
    x = 2 * images - 1
    row = by_pixels.row(1, x)
    pull = by_pixels.pull(x, x, (x,), row, lambda like, step: torch.ones_like(like), 1)
    assert torch.allclose(pull, -2 * (x - (row.signal * x + row.sigma)), rtol=1e-14)
    assert by_pixels(images).isfinite().all()


@pytest.mark.parametrize("changes", [{"clip_x0": "consistent"}, {"sampler": "ddpm_learned"}], ids=str)
def test_what_is_more_than_a_row_is_refused_by_name(changes):
    purifier = random_purifier(TOY_NETWORKS["toy-adm"], TOY_GUIDE).configured(**changes)
    with pytest.raises(ValueError, match=f"^{next(iter(changes))} must be .*baseline"):
        EagerPurifier(purifier)


def test_cycles_of_different_depth_are_refused(purifier):
    gradual = purifier.configured(cycles=2, cycle_t_stars=(50, 100))
    with pytest.raises(ValueError, match=r"^cycle_t_stars must be None: the baseline walks one plan in every cycle, got"):
        EagerPurifier(gradual, torch.float64)


def test_cycles_are_repeated(purifier, images):
    twice = EagerPurifier(purifier.configured(cycles=2), torch.float64)
    once = EagerPurifier(purifier, torch.float64)
    walked = once.walk(once.walk(2 * images - 1, philox), philox)
    assert torch.allclose(twice(images, philox), ((walked + 1) / 2).clamp(0, 1), rtol=1e-14)


@pytest.mark.parametrize("name", BASELINES)
def test_none_runs_an_op_of_ours(name, purifier, images):
    opponent = BASELINES[name](purifier.configured())
    with OpsOfOurs() as ours:
        opponent(images.float())
    assert not ours.seen


def test_only_the_naive_one_leaves_parameters_unfrozen(purifier):
    unfrozen = {name: any(p.requires_grad for p in make(purifier).parameters()) for name, make in BASELINES.items()}
    assert unfrozen == {"eager fp32": False, "eager bf16 channels_last": False, "naive loop": True}
    assert not any(parameter.requires_grad for parameter in purifier.parameters())  # they have copies of their own


def test_precisions_are_what_their_names_say(purifier, images):
    truth = purifier(images, ids=torch.arange(BATCH))
    made = {name: make(purifier) for name, make in BASELINES.items()}
    errors = {name: float((one(images.float(), philox) - truth).norm() / truth.norm()) for name, one in made.items()}
    assert errors["eager fp32"] < 1e-5 and errors["naive loop"] < 1e-5
    assert 1e-4 < errors["eager bf16 channels_last"] < 3e-2  # one rounding of bfloat16 is 4e-3
    weights = [module.weight for module in convolutions(made["eager bf16 channels_last"])]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1 and m.kernel_size == (3, 3)]


def test_another_plan_leaves_the_first_as_it_was(purifier, images):
    opponent = EagerPurifier(purifier, torch.float64)
    before = opponent(images, philox)
    shorter = opponent.on_plan(purifier.plan(torch.float64, 2))
    assert (shorter.num_steps, opponent.num_steps) == (2, 3)
    assert not torch.equal(shorter(images, philox), before) and torch.equal(opponent(images, philox), before)


def test_cudnns_flags_are_given_back(monkeypatch):
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    with pytest.raises(KeyError), cudnn_free_to_choose():
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic
        raise KeyError
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before
