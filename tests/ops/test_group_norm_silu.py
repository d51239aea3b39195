"""purify::group_norm_silu and its gradient: the C++ extension against reference/layers.py."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from purify_engine import ops
from purify_engine.ops import _extension
from purify_engine.reference import layers
from purify_engine.testing.cases import Case, cases
from tests.ops.against_reference import assert_matches_reference

VARIANTS = ("plain", "scale-shift", "shift-linear", "scale")
SMALL = [Case("group_norm_silu", (2, 4, 1, 3), torch.float64, variant=variant, num_groups=2) for variant in VARIANTS]


@pytest.mark.parametrize("case", cases("group_norm_silu"), ids=str)
def test_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, ops.group_norm_silu, layers.group_norm_silu)


@pytest.mark.parametrize("case", cases("group_norm_silu_backward"), ids=str)
def test_gradient_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, ops.group_norm_silu_backward, layers.group_norm_silu_backward)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_and_second_gradients_are_right(case):
    assert torch.autograd.gradcheck(ops.group_norm_silu, case.differentiable())
    assert torch.autograd.gradgradcheck(ops.group_norm_silu, case.differentiable())


@pytest.mark.parametrize("case", SMALL[1:2], ids=str)
@pytest.mark.parametrize("op", [torch.ops.purify.group_norm_silu, torch.ops.purify.group_norm_silu_backward], ids=str)
def test_registration_is_sound(case, op):
    arguments = case.differentiable()
    if op is torch.ops.purify.group_norm_silu_backward:
        arguments = (torch.randn_like(arguments[0]), *arguments)
    torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ["cpp", "reference"])
def test_low_precision_comes_back_as_it_went_in(dtype, engine):
    x, weight, bias, *rest = Case("group_norm_silu", (2, 8, 5, 5), num_groups=2).arguments()
    with ops.backend(engine):
        y = ops.group_norm_silu(x.to(dtype), weight, bias, *rest)
    truth = layers.group_norm_silu(x.to(dtype).double(), weight.double(), bias.double(), *rest)
    assert y.dtype == dtype
    # a few roundings of the low precision: the reference rounds between its steps
    assert (y - truth).abs().max() < 4 * torch.finfo(dtype).eps * truth.abs().max()


def test_a_large_mean_does_not_cancel(each_instruction_set):
    x, *rest = Case("group_norm_silu", (2, 8, 16, 16), num_groups=2).arguments()
    shifted = x + 4096  # exact enough: the spread keeps 12 bits
    truth = layers.group_norm_silu(shifted.double(), *(v.double() if isinstance(v, torch.Tensor) else v for v in rest))
    assert (ops.group_norm_silu(shifted, *rest) - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("far", [128.0, 2.0**14, 2.0**100, float("inf")])
def test_silu_is_its_limits_far_out(far, each_instruction_set):
    x, one = torch.zeros(1, 1, 1, 1), torch.ones(1)
    assert ops.group_norm_silu(x, one, far * one, None, None, 1, 1e-5).item() == far
    if far < float("inf"):
        assert abs(ops.group_norm_silu(x, one, -far * one, None, None, 1, 1e-5).item()) < 1e-30


def test_a_poisoned_image_never_touches_its_batch(each_instruction_set):
    x, *rest = Case("group_norm_silu", (3, 8, 5, 5), num_groups=2).arguments()
    clean = ops.group_norm_silu(x, *rest)
    x[1, 0, 0, 0] = torch.nan
    y = ops.group_norm_silu(x, *rest)
    assert y[1, :4].isnan().all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


def test_composes_with_checkpointing():
    plain, recomputed = SMALL[1].differentiable(), SMALL[1].differentiable()
    grads = torch.autograd.grad(ops.group_norm_silu(*plain).square().sum(), plain[:5])
    again = torch.autograd.grad(checkpoint(ops.group_norm_silu, *recomputed, use_reentrant=False).square().sum(), recomputed[:5])
    assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))


# Channels that fill vectors of any width and leave some over; groups that end within one.
HALF = Case("group_norm_silu_backward", (3, 37, 5, 7), layout="channels_last", variant="scale-shift", num_groups=1)


@pytest.mark.parametrize("silu", [True, False])
def test_bfloat16_rounds_once_what_is_computed_in_float(silu, each_instruction_set):
    grad_out, x, *norm = HALF.arguments()[:-1]
    grad_out, x = grad_out.bfloat16(), x.bfloat16()
    wide = [value.double() if isinstance(value, torch.Tensor) else value for value in (grad_out, x, *norm)]
    y, truth = ops.group_norm_silu(x, *norm, silu), layers.group_norm_silu(*wide[1:], silu)
    grads = ops.group_norm_silu_backward(grad_out, x, *norm, silu)
    true_grads = layers.group_norm_silu_backward(*wide, silu)
    for got, true in ((y, truth), (grads[0], true_grads[0])):
        assert got.dtype == torch.bfloat16 and got.is_contiguous(memory_format=torch.channels_last)
        # half a step of eight bits, and the roundings of float32 before it
        assert ((got.double() - true).abs() <= 2**-8 * true.abs() + 1e-5 * true.abs().max()).all()
    for got, true in zip(grads[1:], true_grads[1:], strict=True):
        assert got.dtype == torch.float32 and (got.double() - true).norm() <= 1e-5 * true.norm()


def test_rounding_to_bfloat16_is_pytorchs(each_instruction_set):
    """With a weight of 0 and without SiLU a norm is its bias."""
    ties = torch.arange(0x3F80_0000, 0x3F80_0000 + 2**18, 2**14, dtype=torch.int32).view(torch.float32)
    edges = torch.tensor([0.0, 1e-45, 1e-39, 3.38953139e38, 3.4028234e38, float("inf"), float("nan")])
    values = torch.cat([ties, edges, -ties, -edges])
    x = torch.ones(1, len(values), 2, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    y = ops.group_norm_silu(x, torch.zeros_like(values), values, None, None, 1, 1e-5, False)
    assert torch.equal(y[0, :, 1, 2].nan_to_num(7, 8, 9), values.bfloat16().nan_to_num(7, 8, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_images_are_read_and_written_where_they_are(dtype):
    grad_out, x, *norm = HALF.arguments()
    grad_out, x = (image.to(dtype) for image in (grad_out, x))
    seen = []
    with _extension.observe_launches(lambda kernel, arguments: seen.append((kernel.__name__, _extension.addressed(arguments)))):
        y = ops.group_norm_silu(x, *norm)
        grad_x, *_ = ops.group_norm_silu_backward(grad_out, x, *norm)
    (forward, written), (backward, given) = seen
    assert (forward, backward) == tuple(f"group_norm_silu_nhwc{way}_{str(dtype)[6:]}" for way in ("", "_backward"))
    assert (written[0], written[1][0]) == (y.data_ptr(), x.data_ptr())
    assert (given[0], given[5], given[6][0]) == (grad_x.data_ptr(), grad_out.data_ptr(), x.data_ptr())


def test_a_gradient_in_channels_last_is_the_same_by_any_number_of_threads():
    arguments, before, found = HALF.arguments(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(ops.group_norm_silu_backward(*arguments))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))
