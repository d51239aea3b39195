"""One purifier over several dtypes, settings, seeds, batches and threads: each answer is the one a fresh purifier gives."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading

import pytest
import torch

from purify_engine import ops
from purify_engine.config import PurifierConfig
from purify_engine.purifier import GuidedPurifier
from purify_engine.reference.philox import derive_seed
from tests.test_purifier import images, purifier

EXECUTIONS = pytest.mark.parametrize("execution", ["loop", "graph"])
KINDS = pytest.mark.parametrize("kind", ["adversarial", "pixel", "none"])
MODES = ["exact", "straight_through", "detached_guidance", "surrogate", "bpda", "blind"]


def made(execution="auto", **options):
    """A purifier with fixed noise; equal networks every time."""
    model = purifier(noise="fixed", **{name: options.pop(name) for name in ("scale", "kind") if name in options})
    config = dataclasses.replace(model.config, **options)
    return GuidedPurifier(model.denoiser, model.guide, config, execution=execution)


def assert_close(found, expected, rtol=1e-5):
    """To the rounding of float32 networks: of the largest value, which is no luck of a single element."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


def apart(found, expected, by=1e-3):
    """Really different, not by rounding."""
    return (found - expected).abs().max() > by


def gradient(model, x, **call):
    x = x.clone().requires_grad_()
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    (grad,) = torch.autograd.grad((weights * model(x, **call)).sum(), x)
    return grad


# One purifier, many dtypes


@EXECUTIONS
@KINDS
def test_one_purifier_in_several_dtypes_in_turn_is_as_fresh_ones(execution, kind):
    """Networks moved between calls, and images of another dtype than the networks: no plan or graph may outlive its dtype."""
    used = made(execution, kind=kind)
    turns = [(torch.float32, torch.float32), (torch.float32, torch.float64), (torch.bfloat16, torch.float32),
             (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64), (torch.float64, torch.float32)]  # fmt: skip
    for networks, dtype in turns:
        used.load_state_dict(made(kind=kind).state_dict())  # what bfloat16 rounded away comes back
        used.to(networks).load_state_dict(made(kind=kind).to(networks).state_dict())
        x = images().to(dtype)
        expected = made("loop", kind=kind).to(networks)(x)
        found = used(x)
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= (2e-2 if torch.bfloat16 in (networks, dtype) else 1e-5)


@EXECUTIONS
def test_gradients_of_one_purifier_in_several_dtypes_in_turn_are_as_of_fresh_ones(execution):
    used = made(execution)
    for networks in (torch.float32, torch.float64, torch.float32):
        used.to(networks)
        expected = gradient(made("loop").to(networks), images())
        assert_close(gradient(used, images()), expected, 1e-4)


def test_float64_images_are_purified_in_float64():
    """Through networks of the same dtype; the answer in float32 differs in its last digits and nowhere else."""
    double, single = made().double()(images().double()), made()(images())
    assert double.dtype == torch.float64
    difference = (double - single.double()).abs().max()
    assert 1e-9 < difference < 1e-5


# One purifier, many settings


def test_one_purifier_with_several_plans_of_equal_length_is_as_fresh_ones():
    """The tables of a graph are of one length; it must notice that they are another plan's."""
    used, outs = made("graph"), []
    settings = [{"sampler": "ddpm"}, {"sampler": "vp_sde"}, {"sampler": "ddim", "eta": 0.5}, {"t_star": 300}, {"sampler": "ddpm"}]
    for setting in settings:
        used.config = dataclasses.replace(made().config, **setting)
        fresh = made("loop", **setting)
        outs.append(used(images()))
        assert_close(outs[-1], fresh(images()))
        assert_close(gradient(used, images(2)), gradient(fresh, images(2)), 1e-4)
    assert all(apart(one, other) for one, other in zip(outs, outs[1:], strict=False))


@EXECUTIONS
def test_a_changed_number_of_steps_is_seen(execution):
    used = made(execution)
    for steps in (3, 1, 7, 3, 12):
        used.config = dataclasses.replace(used.config, num_steps=steps)
        assert_close(used(images()), made("loop", num_steps=steps)(images()))


@EXECUTIONS
def test_a_changed_guidance_is_seen(execution):
    used = made(execution)
    for change in ({"scale": 1.0}, {"normalised": True}, {"look_at": "x0"}, {"kind": "pixel"}, {"latent_weight": 0.0}):
        used.config = dataclasses.replace(used.config, guidance=dataclasses.replace(used.config.guidance, **change))
        fresh = GuidedPurifier(made().denoiser, made().guide, used.config, execution="loop")
        assert_close(used(images()), fresh(images()))


@EXECUTIONS
@pytest.mark.parametrize("part", ["denoiser", "guide"])
def test_weights_changed_between_calls_change_the_images_and_the_gradients(execution, part):
    used = made(execution)
    for _ in range(2):
        before = used(images(2)), gradient(used, images(2))
        with torch.no_grad():
            for parameter in getattr(used, part).parameters():
                parameter.mul_(1.3)
        fresh = GuidedPurifier(copy.deepcopy(used.denoiser), copy.deepcopy(used.guide), used.config, execution="loop")
        after = used(images(2)), gradient(used, images(2))
        assert_close(after[0], fresh(images(2)))
        assert_close(after[1], gradient(fresh, images(2)), 1e-4)
        assert all(apart(new, old, 1e-5) for new, old in zip(after, before, strict=True))


# Graphs and loop, to rounding: beside the tests that ask for equal bits


@pytest.mark.parametrize(("kind", "mode"), [*[("adversarial", mode) for mode in MODES], ("pixel", "exact"), ("none", "exact")])
def test_graphs_give_the_loops_images_and_gradients_to_rounding(kind, mode):
    graphs, loop = (made(execution, kind=kind, gradient=mode) for execution in ("graph", "loop"))
    for batch, ids in ((3, None), (2, torch.tensor([9, 2**40])), (3, torch.arange(3) + 3), (3, None)):
        x = images(batch, seed=batch)
        assert_close(graphs(x, ids=ids), loop(x, ids=ids))
        assert_close(gradient(graphs, x, ids=ids), gradient(loop, x, ids=ids), 1e-4)
    assert graphs.execution_reason is None


def test_every_backward_pass_of_one_purifier_starts_from_nothing():
    """What a graph adds up on its way back, the guide's target's gradient for one, is of this walk alone."""
    used, first, second = made("graph", scale=3.0), images(), images(seed=7)
    expected = [gradient(made("loop", scale=3.0), x) for x in (first, second, first)]
    for x, grad in zip((first, second, first), expected, strict=True):
        assert_close(gradient(used, x), grad, 1e-4)


def test_forward_passes_between_a_forward_and_its_backward_pass_change_nothing():
    used, x = made("graph", scale=3.0), images().requires_grad_()
    expected = gradient(made("loop", scale=3.0), images())
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)
    out = used(x)
    kept = out.detach().clone()
    used(images(seed=4)), gradient(used, images(seed=5)), used(images(3))
    assert torch.equal(out, kept)
    assert_close(torch.autograd.grad((weights * out).sum(), x)[0], expected, 1e-4)


@EXECUTIONS
def test_one_forward_pass_can_be_walked_back_twice(execution):
    used, x = made(execution, scale=3.0), images().requires_grad_()
    out = used(x)
    (once,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    (twice,) = torch.autograd.grad(2 * out.sum(), x)
    assert_close(twice, 2 * once)


# Seeds


def test_each_draw_has_the_seed_of_its_stream():
    """Draw k of a purifier is the fixed noise of the seed derived at 2**32 + k."""
    model, x = made(), images()
    for draw in (0, 1, 77, 2**32 - 1):
        other = made().reseed(int(derive_seed(torch.tensor(0), 2**32 + draw)))
        assert_close(model(x, draw=draw), other(x))
    with pytest.raises(ValueError, match=r"draw must be in \[0, 4294967296\), got 4294967296"):
        model(x, draw=2**32)


def test_fresh_noise_takes_one_draw_after_another():
    model, x = purifier(), images()
    for draw in range(3):
        assert_close(model(x), made()(x, draw=draw))
    model(x, ids=torch.arange(5)), model(x, draw=9)  # which say their noise, and leave the count alone
    assert_close(model(x), made()(x, draw=3))
    assert_close(model.reseed(0)(x), made()(x, draw=0))


def test_a_seed_is_the_same_in_the_configuration_and_by_reseeding():
    x, big = images(), 2**62 + 5
    for seed in (1, big):
        expected = made("loop", seed=seed)(x)
        model = made().reseed(seed)
        assert model.config.seed == seed and int(model.seed) == seed
        assert_close(model(x), expected)
        assert apart(expected, made()(x))


def test_images_without_ids_are_counted_from_zero_and_ids_may_be_of_any_integer_dtype():
    model, x = made(), images()
    assert_close(model(x), model(x, ids=torch.arange(5)))
    assert_close(model(x, ids=torch.arange(5, dtype=torch.int32)), model(x))
    assert apart(model(x, ids=torch.arange(5) + 1), model(x))
    assert_close(model(x, ids=torch.arange(5), draw=4), model(x, draw=4))
    assert apart(model(x, draw=4), model(x))


def test_ids_and_draws_choose_different_noise_for_an_image():
    model = made(kind="none")
    x = images(1).expand(6, -1, -1, -1)
    outs = [model(x, ids=torch.tensor([0, 1, 2**32, 2**33, 2**33 + 1, 2**62])), model(x, draw=0), model(x, draw=1)]
    assert torch.unique(torch.cat(outs).flatten(1), dim=0).shape[0] == 18


@EXECUTIONS
def test_two_cycles_are_one_after_another_each_with_its_own_key(execution):
    """The second cycle is the purifier of the seed derived at 2**33 + 1; in between nothing is cut off, as nothing is here."""
    x = (0.4 + 0.2 * images()).double()
    once, twice, thrice = (made(execution, t_star=10, num_steps=2, cycles=cycles).double() for cycles in (1, 2, 3))
    between = once(x)
    assert between.min() > 0.01 and between.max() < 0.99
    reseeded = [once.configured(seed=int(derive_seed(torch.tensor(0), 2**33 + cycle))) for cycle in (1, 2)]
    expected = reseeded[0](between)
    assert_close(twice(x), expected, 1e-12)
    assert apart(once(between), expected)  # by the noise alone
    assert expected.min() > 0.01 and expected.max() < 0.99
    assert_close(thrice(x), reseeded[1](expected), 1e-12)
    drawn = twice.configured(seed=int(derive_seed(torch.tensor(0), 2**32 + 5)))  # a draw's cycles are those of its own seed
    assert_close(twice(x, draw=5), drawn(x), 1e-12)
    (grad,) = torch.autograd.grad(twice(leaf := x.clone().requires_grad_()).square().sum(), leaf)
    (by_hand,) = torch.autograd.grad(reseeded[0](once(leaf)).square().sum(), leaf)
    assert_close(grad, by_hand, 1e-10)


def test_what_leaves_the_range_between_cycles_is_not_cut_off():
    """Images that end in white: [0, 1] is asked for at the end, and a cut in between would lose what the next cycle reads."""
    model = made(scale=0.0, cycles=2)
    x = torch.ones(2, 1, 8, 8)
    cut = made(scale=0.0).configured(seed=int(derive_seed(torch.tensor(0), 2**33 + 1)))(made(scale=0.0)(x))
    assert apart(model(x), cut)


# Threads


@EXECUTIONS
def test_threads_that_share_a_purifier_get_the_images_and_gradients_of_their_own_calls(execution):
    shared, batches = made(execution), [images(2, seed=seed) for seed in range(4)]
    expected = [(made("loop")(x), gradient(made("loop"), x)) for x in batches]
    found, start = [[] for _ in batches], threading.Barrier(len(batches))

    def calls(place):
        start.wait()
        for _ in range(2):
            found[place].append((shared(batches[place]), gradient(shared, batches[place])))

    threads = [threading.Thread(target=calls, args=(place,)) for place in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, (image, grad) in zip(found, expected, strict=True):
        assert len(answers) == 2
        for got, got_grad in answers:
            assert_close(got, image)
            assert_close(got_grad, grad, 1e-4)


# What a call leaves behind, and what it does not


@EXECUTIONS
def test_a_result_is_nobodys_buffer(execution):
    model, x = made(execution), images()
    given = x.clone()
    first = model(x)
    kept = first.clone()
    model(images(seed=3))
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(model(x), kept)
    assert torch.equal(x, given)


def test_blind_gradients_and_values_are_the_images_own():
    model, x = made(gradient="blind"), images()
    assert torch.allclose(model(x.clone().requires_grad_()), x)
    assert_close(gradient(model, x), torch.linspace(-1, 1, x.numel()).view_as(x))
    assert_close(model(x), made()(x))  # without a gradient to take, it purifies


def test_the_gradient_reaches_through_the_scaling_of_images():
    """bpda: the identity's gradient where nothing is cut off, so 1, not the 2 of x -> 2 x - 1 alone."""
    model, x = made(gradient="bpda", t_star=10), 0.4 + 0.2 * images()
    assert model(x).min() > 0 and model(x).max() < 1
    assert_close(gradient(model, x), torch.linspace(-1, 1, x.numel()).view_as(x))


def test_a_sibling_keeps_networks_and_execution_and_changes_what_is_asked():
    model = made("loop")
    sibling = model.configured(t_star=30, gradient="bpda")
    assert sibling.denoiser is model.denoiser and sibling.guide is model.guide and sibling.execution == "loop"
    assert sibling.config == dataclasses.replace(model.config, t_star=30, gradient="bpda")
    assert model.config == made().config


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_surrogate_has_as_many_steps_as_it_was_told_and_as_there_are(steps):
    short = {"t_star": 5, "num_steps": 3, "execution": "loop"}
    surrogate, path = made(**short, gradient="surrogate", surrogate_steps=steps), made(**{**short, "num_steps": min(steps, 5)})
    x = 0.4 + 0.2 * images()
    assert all(model(x).min() > 0 and model(x).max() < 1 for model in (surrogate, path))  # nothing is cut off
    assert_close(surrogate(x), made(**short)(x))
    assert_close(gradient(surrogate, x), gradient(path, x), 1e-4)


def test_rounding_around_the_range_is_let_in_and_what_is_further_out_is_not():
    model, x = made(), images()
    model(x.clamp(0, 1).mul(1.00008)), model(x - 0.00008 * (1 - x))
    for off in (x * 0 + 1.0002, x * 0 - 0.0002):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
            model(off)


@pytest.mark.parametrize("networks", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_question_is_answered_in_every_dtype(networks, dtype):
    model, single = made().to(networks), made()
    x = images().to(dtype)
    assert model.calibrate(x, ratio=0.2) == pytest.approx(single.calibrate(images(), ratio=0.2), rel=0.1)
    assert model.memory_report()["step_per_image"] > 64 * model.seed.new_empty((), dtype=networks).element_size()
    assert gradient(model, x).dtype == dtype


def test_calibration_is_the_ratio_over_the_quantile_of_the_pull():
    """With a guide of pixels: r = s ||2 (x_t - x'_t)|| sigma / sqrt(n) over an unguided walk, written out."""
    model = made(kind="pixel", scale=0.0).double()
    x, plan = 2 * images().double() - 1, model.plan(torch.float64)
    ids, ratios = torch.arange(5), []
    first, _ = ops.q_sample(x, plan.start, plan.forward_step, model.seed, ids)
    steps = [first]  # what each step reads
    made(kind="none", scale=0.0).double()(images().double(), callback_on_step_end=lambda step, t, x_t: steps.append(x_t))
    for place, x_t in enumerate(steps[:-1]):
        noised, _ = ops.q_sample(x, plan.marginals[place], torch.tensor(place), derive_seed(model.seed, 1), ids)
        ratios.append((2 * (x_t - noised)).flatten(1).norm(dim=1) * plan.marginals[place, 1] / 8)
    for quantile in (0.5, 0.9):
        expected = 0.3 / float(torch.cat(ratios).quantile(quantile))
        assert model.calibrate(images().double(), ratio=0.3, quantile=quantile) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\), got 1"):
        model.calibrate(images().double(), ratio=0.3, quantile=1)


def test_the_memory_report_counts_parameters_by_their_width():
    assert made().double().memory_report()["parameters"] == 2 * made().memory_report()["parameters"]
    assert made().configured(num_steps=6).memory_report()["trajectory_per_image"] == 6 * 64 * 4


def test_the_plan_is_the_configurations_own():
    config = PurifierConfig(t_star=50, num_steps=5, sampler="ddim", eta=0.5)
    model = GuidedPurifier(made().denoiser, None, config)
    assert len(model.plan()) == 5 and model.plan().sampler == "ddim"
    assert len(model.plan(num_steps=2)) == 2 and model.plan(num_steps=2).times[0] == 49
    assert model.plan() is model.plan() and model.plan(torch.float64) is not model.plan()
    assert model.plan().net_dtype is None and model.plan(torch.float64).net_dtype == torch.float32


# Beside the tests of tests/test_purifier.py that ask for equal bits


@KINDS
def test_every_call_mode_gives_the_same_images_to_rounding(kind):
    model, x = made(kind=kind), images()
    with torch.no_grad():
        expected = model(x)
    with torch.inference_mode():
        inferred = model(x)
    outs = [model(x), inferred.clone(), model(x.clone().requires_grad_()).detach(), made("loop", kind=kind)(x)]
    seen = []
    outs.append(model(x, callback_on_step_end=lambda *step: seen.append(step)))
    for out in outs:
        assert_close(out, expected)
    assert len(seen) == 3


@pytest.mark.parametrize("kind", ["adversarial", "pixel"])
def test_scale_zero_is_unguided_to_rounding(kind):
    assert_close(made(scale=0.0, kind=kind)(images()), made(kind="none")(images()))
    assert apart(made(scale=1.0, kind=kind)(images()), made(kind="none")(images()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_copies_pickles_and_saved_purifiers_give_the_same_images_to_rounding(tmp_path, dtype):
    model, x = made().to(dtype), images().to(dtype)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other(x), expected)
    model.save_pretrained(tmp_path / "mine")
    loaded = GuidedPurifier.from_pretrained(tmp_path / "mine").to(dtype)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert_close(loaded(x), expected)


def test_noise_follows_the_id_through_batches_to_rounding():
    model, x, ids = made(), images(7), torch.tensor([3, 2**40, 0, 8, 2**62, 1, 5])
    whole = model(x, ids=ids)
    for size in (1, 3):
        found = [model(part, ids=part_ids) for part, part_ids in zip(x.split(size), ids.split(size), strict=True)]
        assert_close(torch.cat(found), whole)
