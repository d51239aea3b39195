"""purify::conv3x3: what a CPU runs against reference/layers.py, its gradients, its registration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.reference import layers
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.shapes import CONV_VARIANTS
from tests.ops.against_reference import as_called, assert_matches_reference, chosen

SMALL = [Case("conv3x3", (2, 4, 2, 3), torch.float64, variant=variant, num_groups=2) for variant in CONV_VARIANTS]


@pytest.mark.parametrize("case", [case for case in cases("conv3x3") if case.dtype == torch.float32], ids=str)
def test_matches_the_reference(case):
    assert_matches_reference(case, as_called, layers.conv3x3, chosen(case))


@pytest.mark.parametrize("case", [case for case in cases("conv3x3_backward") if case.dtype == torch.float32], ids=str)
def test_gradient_matches_the_reference(case):
    assert_matches_reference(case, ops.conv3x3_backward, layers.conv3x3_backward, chosen(case))


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("op", [as_called, torch.ops.purify.conv3x3], ids=["where autograd records", "the op itself"])
def test_first_and_second_gradients_are_right(case, op):
    assert torch.autograd.gradcheck(op, case.differentiable())
    assert torch.autograd.gradgradcheck(op, case.differentiable())


@pytest.mark.parametrize("case", [SMALL[0], SMALL[3]], ids=str)
def test_registration_is_sound(case):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.purify.conv3x3.default, case.differentiable(), test_utils=checks)


def test_what_surrounds_the_convolution_comes_in_the_papers_order():
    x, weight, *_ = Case("conv3x3", (2, 4, 3, 3), torch.float64, variant="plain").arguments()
    temb, residual = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, 6, 6, dtype=torch.float64)
    got = ops.conv3x3(x, weight, None, temb=temb, residual=residual, gain=0.5, upsample=True)
    pixels = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    truth = 0.5 * (residual + torch.nn.functional.conv2d(pixels, weight, padding=1) + temb[:, :, None, None])
    assert (got - truth).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: torch.ones(8, 4, 1, 1)}, r"weight must be float \[K, 4, 3, 3\], got 'float32 \[8, 4, 1, 1\]'"),
        ({2: torch.ones(4)}, r"bias must be float \[8\]"),
        ({3: torch.ones(4)}, "norm_bias must be given with norm_weight"),
        ({7: torch.ones(3, 8)}, r"temb must be float \[2, 8\]"),
        ({8: torch.ones(2, 8, 2, 2)}, r"residual must be float \[2, 8, 3, 3\]"),
    ],
)
def test_impossible_arguments_are_refused(changes, message):
    arguments: list[Tensor | None] = list(Case("conv3x3", (2, 4, 3, 3)).arguments()[:9])
    for place, value in changes.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=message):
        as_called(*arguments)
