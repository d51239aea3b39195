"""purify::guided_step: the C++ extension against reference/process.py, its gradient, its registration."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from purify_engine import ops
from purify_engine.reference import process
from purify_engine.testing import magnitudes
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.yardstick import assert_within_yardstick
from tests.ops.against_reference import assert_matches_reference

SMALL = Case("guided_step", (2, 1, 2, 3), torch.float64)
UNGUIDED = Case("guided_step", (2, 2, 1, 3), torch.float64, variant="unguided")
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("case", cases("guided_step"), ids=str)
def test_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, torch.ops.purify.guided_step, process.guided_step)


def test_of_steps_of_one_element_each_is_right_whatever_the_luck_of_pytorch(each_instruction_set):
    count, generator = 3000, torch.Generator().manual_seed(0)
    floats = torch.randn(3, count, 1, 1, 1, generator=generator)
    rows = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    step, key, ids = torch.tensor(0), torch.tensor(5), torch.arange(count)
    with ops.backend("cpp"):
        got, _ = ops.guided_step(*floats, rows, step, key, ids)
    honest, truth = (process.guided_step(*images, rows, step, key, ids)[0] for images in (floats, floats.double()))
    unlucky = (got - truth).abs() > 2 * (honest - truth).abs() + torch.finfo(torch.float32).eps * truth.abs()
    assert unlucky.sum() > 5  # some 25 are beyond a rounding of the result: it is their terms that count
    for i in range(count):
        size, _ = magnitudes.guided_step(*(images[i : i + 1] for images in floats), rows, step, key, ids[i : i + 1])
        assert_within_yardstick(got[i : i + 1], honest[i : i + 1], truth[i : i + 1], size)


@pytest.mark.parametrize("case", [SMALL, UNGUIDED], ids=str)
@pytest.mark.parametrize("net_dtype", [None, torch.float64], ids=str)
def test_first_and_second_gradients_are_right_from_both_outputs(case, net_dtype):
    def step(*arguments):
        return ops.guided_step(*arguments, net_dtype=net_dtype)

    assert torch.autograd.gradcheck(step, case.differentiable())
    assert torch.autograd.gradgradcheck(step, case.differentiable())


@pytest.mark.parametrize(
    ("case", "net_dtype"),
    [
        (SMALL, None),
        (UNGUIDED, torch.float32),
        (Case("guided_step", (2, 3, 2, 2)), torch.bfloat16),
        (Case("guided_step", (2, 1, 2, 2)), torch.float32),  # channels_last and contiguous at once
        (Case("guided_step", (0, 3, 2, 2)), torch.float32),
    ],
    ids=str,
)
def test_registration_is_sound(case, net_dtype):
    checks = QUICK if net_dtype else (*QUICK, "test_aot_dispatch_dynamic")  # the last takes seconds
    op, keywords = torch.ops.purify.guided_step.default, {"net_dtype": net_dtype}
    torch.library.opcheck(op, case.differentiable(), keywords, test_utils=checks)


def test_the_gradient_draws_no_noise(monkeypatch):
    results, _ = ops.guided_step(*(arguments := SMALL.differentiable()))
    monkeypatch.setattr(process, "philox_normal", None)
    with ops.backend("reference"):
        (grad,) = torch.autograd.grad(results.sum(), arguments[0])
    rows, step = arguments[3:5]
    assert torch.equal(grad, rows[step, 0].expand_as(grad))


def test_an_image_gets_the_same_step_in_any_batch_and_layout():
    x_t, eps, grad, rows, _, key, ids = Case("guided_step", (37, 3, 9, 7)).arguments()
    step = torch.tensor(1)
    whole, _ = ops.guided_step(x_t, eps, grad, rows, step, key, ids)
    for size in (1, 5, 37):
        x_last = x_t.contiguous(memory_format=torch.channels_last)
        batches = zip(*(tensor.split(size) for tensor in (x_last, eps, grad, ids)), strict=True)
        parts = [ops.guided_step(*images, rows, step, key, their)[0] for *images, their in batches]
        assert torch.equal(torch.cat(parts), whole)


def test_the_thread_count_does_not_change_a_bit():
    arguments = Case("guided_step", (16, 3, 32, 33)).arguments()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, _ = ops.guided_step(*arguments)
        torch.set_num_threads(3)
        together, _ = ops.guided_step(*arguments)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


def test_without_a_network_dtype_the_networks_read_the_result_itself():
    x_next, x_net = ops.guided_step(*SMALL.arguments())
    assert x_net is x_next


def test_the_networks_copy_shares_no_memory_with_the_result():
    one_channel = Case("guided_step", (2, 1, 4, 4)).arguments()
    for engine in ("cpp", "reference"):
        with ops.backend(engine):
            x_next, x_net = ops.guided_step(*one_channel, net_dtype=torch.float32)
        assert x_next.data_ptr() != x_net.data_ptr()


def test_composes_with_checkpointing():
    def step(*arguments):
        return ops.guided_step(*arguments)[0]

    plain, recomputed = SMALL.differentiable(), SMALL.differentiable()
    grads = torch.autograd.grad(step(*plain).square().sum(), plain[:3])
    again = torch.autograd.grad(checkpoint(step, *recomputed, use_reentrant=False).square().sum(), recomputed[:3])
    assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))


def test_autocast_changes_nothing():
    arguments = Case("guided_step", (2, 3, 4, 4)).arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = ops.guided_step(*arguments)
    assert torch.equal(inside, ops.guided_step(*arguments)[0])


@pytest.mark.parametrize("engine", ["cpp", "reference"])
def test_a_step_beyond_the_plan_is_an_error(engine):
    x_t, eps, grad, rows, _, key, ids = SMALL.arguments()
    with ops.backend(engine), pytest.raises(IndexError):
        ops.guided_step(x_t, eps, grad, rows, torch.tensor(4), key, ids)
