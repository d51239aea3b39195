"""One purifier over several dtypes, settings, seeds, batches and threads: each answer is the one a fresh purifier gives."""

from __future__ import annotations

import copy
import dataclasses
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
def test_a_result_is_no_buffer_that_a_later_call_fills(execution):
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
    made(kind="none", scale=0.0).double()(images().double(), ids=ids, callback_on_step_end=lambda step, t, x_t: steps.append(x_t))
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
