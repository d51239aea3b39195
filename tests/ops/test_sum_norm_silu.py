"""purify::sum_norm_silu: the sum behind a convolution and the norm that reads it, against reference/sums.py."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.ops import _registry as registry
from purify_engine.reference import sums
from purify_engine.testing.cases import Case, cases
from tests.ops.against_reference import assert_matches_reference

OP = "sum_norm_silu"
VARIANTS = ("plain", "residual-bias-temb-skip-scale-shift-gain", "bias-shared-temb-only", "skip-linear")
SMALL = [Case(OP, (2, 2, 1, 2), torch.float64, variant=variant, num_groups=2) for variant in VARIANTS]


@pytest.mark.parametrize("case", cases(OP), ids=str)
def test_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, ops.sum_norm_silu, sums.sum_norm_silu, "torch")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_and_second_gradients_are_right(case):
    def results(*arguments):
        return tuple(result for result in ops.sum_norm_silu(*arguments) if result.numel())

    assert torch.autograd.gradcheck(results, case.differentiable())
    assert torch.autograd.gradgradcheck(results, case.differentiable())


@pytest.mark.parametrize("case", cases("sum_norm_silu_backward"), ids=str)
def test_gradient_matches_the_reference(case, each_instruction_set):
    assert_matches_reference(case, ops.sum_norm_silu_backward, sums.sum_norm_silu_backward, "torch")


@pytest.mark.parametrize("variant", ["plain", "residual-scale-shift"])
def test_the_gradient_is_differentiable(variant):
    case = Case("sum_norm_silu_backward", (2, 4, 1, 3), torch.float64, variant=variant, num_groups=2)
    assert torch.autograd.gradcheck(ops.sum_norm_silu_backward, case.differentiable())
    assert torch.autograd.gradgradcheck(ops.sum_norm_silu_backward, case.differentiable())
    torch.library.opcheck(torch.ops.purify.sum_norm_silu_backward.default, case.differentiable())


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_its_gradient_to_frozen_parameters_is_that_to_all(case):
    every, frozen = (list(each) for each in (case.differentiable(), case.differentiable()))
    frozen[5:9] = [None if each is None else each.detach() for each in frozen[5:9]]

    def gradients(arguments):
        total, y = ops.sum_norm_silu(*arguments)
        wanted = [each for each in arguments[:5] if each is not None]
        return torch.autograd.grad((total * 0.3).sum() + y.sin().sum(), wanted)

    for one, other in zip(gradients(every), gradients(frozen), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_registration_is_sound(case):
    torch.library.opcheck(torch.ops.purify.sum_norm_silu.default, case.differentiable())


@pytest.mark.parametrize("engine", ["reference", "torch"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_is_what_its_parts_are(engine, layout):
    case = Case(OP, (2, 8, 3, 5), torch.float64, layout, "residual-bias-temb-skip-scale-shift-gain", 4)
    x, residual, bias, temb, skip, *norm, gain, silu, _ = case.arguments()
    with ops.backend(engine):
        total, y = ops.sum_norm_silu(*case.arguments())
    expected = torch.cat([gain * (x + bias[:, None, None] + temb[..., None, None] + residual), skip], dim=1)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(y, ops.group_norm_silu(expected, *norm, silu=silu))
    assert total.stride() == y.stride() == ops.group_norm_silu(expected, *norm).stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ["reference", "torch"])
def test_the_norm_reads_the_sum_as_it_is_rounded(dtype, engine):
    case = Case(OP, (2, 8, 3, 5), dtype, "channels_last", "residual-bias-temb-skip", 4)
    *_, weight, norm_bias, _, _, num_groups, norm_eps, _, _, _ = case.arguments()
    with ops.backend(engine):
        total, y = ops.sum_norm_silu(*case.arguments())
        with registry.parts_of_torch():
            read = ops.group_norm_silu(total, weight, norm_bias, None, None, num_groups, norm_eps)
    assert total.dtype == y.dtype == dtype
    assert torch.equal(y, read)


@pytest.mark.parametrize("engine", ["reference", "torch"])
def test_the_sum_is_in_memory_of_its_own(engine):
    x, *rest = Case(OP, (2, 4, 3, 3), num_groups=2).arguments()
    with ops.backend(engine), torch.no_grad():
        total, _ = ops.sum_norm_silu(x, *rest)
    assert torch.equal(total, x) and total.data_ptr() != x.data_ptr()
