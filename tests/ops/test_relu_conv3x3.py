"""purify::relu_conv3x3 and its gradient: what a CPU runs against reference/layers.py, by every tiling; gradients; refusals."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine import ops
from purify_engine.ops.conv3x3 import winograd
from purify_engine.ops.conv3x3.tiling import Tiling
from purify_engine.reference import layers
from purify_engine.testing.agreement import strides
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.shapes import RELU_VARIANTS
from tests.ops.against_reference import assert_matches_reference, chosen

OPS = ("relu_conv3x3", "relu_conv3x3_backward")
SMALL = [Case("relu_conv3x3", (2, 4, 3, 2), torch.float64, variant=variant) for variant in RELU_VARIANTS]
FLOAT32 = [case for op in OPS for case in cases(op) if case.dtype == torch.float32]


@pytest.mark.parametrize("case", FLOAT32, ids=lambda case: f"{case.op}-{case}")
def test_matches_the_reference(case):
    assert_matches_reference(case, getattr(ops, case.op), getattr(layers, case.op), chosen(case))


@pytest.mark.parametrize("tiling", [Tiling(4, 24, True), Tiling(4, 1, False), Tiling(2, 7, False), Tiling(2, 24, True)], ids=str)
def test_every_tiling_is_the_convolution_behind_or_before_the_relu(tiling, each_instruction_set, monkeypatch):
    monkeypatch.setattr(winograd, "tiling", lambda *problem: tiling)
    for case in [case for case in FLOAT32 if 0 not in case.shape]:
        with ops.backend("cpp"):
            got = getattr(torch.ops.purify, case.op)(*case.arguments())
        honest, truth = (getattr(layers, case.op)(*case.arguments(dtype)) for dtype in (None, torch.float64))
        assert strides(got) == strides(honest), case
        assert (got - truth).norm() <= 1e-5 * truth.norm(), case


def test_it_is_what_it_says():
    x, weight, bias, slope, offset, residual = Case(
        "relu_conv3x3", (2, 3, 5, 4), torch.float64, variant="line-bias-residual"
    ).arguments()
    line = slope[:, None, None] * x + offset[:, None, None]
    truth = residual + F.conv2d(line.clamp(min=0), weight, bias, padding=1)
    assert (ops.relu_conv3x3(x, weight, bias, slope, offset, residual) - truth).abs().max() < 1e-14


def test_what_pads_an_image_is_zero_though_a_line_lies_above_it(each_instruction_set, monkeypatch):
    monkeypatch.setattr(winograd, "tiling", lambda *problem: Tiling(4, 24, True))
    weight, offset = torch.ones(16, 16, 3, 3), torch.full((16,), 5.0)
    got = ops.relu_conv3x3(torch.zeros(1, 16, 6, 6), weight, None, torch.zeros(16), offset)
    assert torch.allclose(got, F.conv2d(torch.full((1, 16, 6, 6), 5.0), weight, padding=1), rtol=1e-5)


def test_what_is_no_number_stays_so(each_instruction_set, monkeypatch):
    monkeypatch.setattr(winograd, "tiling", lambda *problem: Tiling(4, 24, True))
    x = torch.zeros(2, 16, 8, 8)
    x[1] = torch.nan
    weight, ones = torch.randn(16, 16, 3, 3), torch.ones(16)
    for found in (ops.relu_conv3x3(x, weight), ops.relu_conv3x3_backward(x, torch.ones(2, 16, 8, 8), weight, ones, ones)):
        assert found[1].isnan().all() and not found[0].any()
    let_through = ops.relu_conv3x3_backward(torch.ones(2, 16, 8, 8), x, weight)  # as PyTorch's ReLU does
    assert let_through[1].isfinite().all() and let_through[1].any() and not let_through[0].any()


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("op", [ops.relu_conv3x3, torch.ops.purify.relu_conv3x3], ids=["as it is called", "the op itself"])
def test_first_and_second_gradients_are_right(case, op):
    assert torch.autograd.gradcheck(op, case.differentiable())
    assert torch.autograd.gradgradcheck(op, case.differentiable())


@pytest.mark.parametrize("variant", RELU_VARIANTS)
def test_with_frozen_filters_gradients_are_the_references_to_the_second_order(variant, each_instruction_set, monkeypatch):
    monkeypatch.setattr(winograd, "tiling", lambda *problem: Tiling(4, 24, True))
    case, found = Case("relu_conv3x3", (2, 16, 6, 7), variant=variant), []
    for op, dtype in ((layers.relu_conv3x3, torch.float64), (ops.relu_conv3x3, torch.float32)):
        x, weight, bias, slope, offset, residual = case.arguments(dtype)
        leaves = [tensor.requires_grad_() for tensor in (x, bias, residual) if tensor is not None]
        first = torch.autograd.grad(op(x, weight, bias, slope, offset, residual).sin().sum(), leaves, create_graph=True)
        found.append([*first, *torch.autograd.grad(first[0].square().sum(), leaves)])
    for truth, got in zip(*found, strict=True):
        assert (got - truth).norm() <= 1e-5 * truth.norm()


def test_other_engines_run_its_parts(monkeypatch):
    case, seen = Case("relu_conv3x3", (2, 16, 6, 7), variant="line-bias-residual"), []
    module = sys.modules["purify_engine.ops.conv3x3.relu"]
    conv3x3 = module.conv3x3
    monkeypatch.setattr(module, "conv3x3", lambda x, *a, **around: (seen.append(float(x.min())), conv3x3(x, *a, **around))[1])
    with ops.backend("torch"):
        assert torch.allclose(ops.relu_conv3x3(*case.arguments()), layers.relu_conv3x3(*case.arguments()), atol=1e-5)
    assert seen == [0.0]
    with ops.backend("reference"):
        assert torch.equal(ops.relu_conv3x3(*case.arguments()), layers.relu_conv3x3(*case.arguments()))
    assert seen == [0.0]
    with ops.backend("cuda"), pytest.raises(RuntimeError, match="no cuda"):
        ops.relu_conv3x3(*case.arguments())


@pytest.mark.parametrize("names", ["x", "offset", "x offset", "grad_out offset", "slope offset x", "weight"])
def test_the_gradient_of_the_gradient_is_there_for_every_tensor_by_itself(names):
    case = Case("relu_conv3x3_backward", (2, 4, 3, 2), torch.float64, variant="line")
    found = []
    for op, nothing in ((ops.relu_conv3x3_backward, False), (layers.relu_conv3x3_backward, True)):
        given = dict(zip(("grad_out", "x", "weight", "slope", "offset"), case.arguments(), strict=True))
        leaves = [given[name].requires_grad_() for name in names.split()]
        result = op(*given.values()).sin().sum()
        if nothing:  # the reference may not depend on a tensor at all, where the op has zeros
            result = result + sum(0 * leaf.sum() for leaf in leaves)
        found.append(torch.autograd.grad(result, leaves))
    assert all(torch.allclose(ours, truth) for ours, truth in zip(*found, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_registration_is_sound(op):
    case = Case(op, (2, 4, 3, 3), torch.float64, variant="line-bias-residual")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.purify, op).default, case.differentiable(), test_utils=checks)


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        (OPS[0], {1: torch.ones(8, 4, 1, 1)}, r"weight must be float \[K, 4, 3, 3\], got 'float32 \[8, 4, 1, 1\]'"),
        (OPS[0], {3: torch.ones(4)}, "offset must be given with slope, got None"),
        (OPS[0], {3: torch.ones(8), 4: torch.ones(4)}, r"slope must be float \[4\], got 'float32 \[8\]'"),
        (OPS[0], {5: torch.ones(2, 8, 2, 2)}, r"residual must be float \[2, 8, 3, 3\]"),
        (OPS[1], {1: torch.ones(2, 8, 3, 3)}, r"x must be float \[2, 4, 3, 3\]"),
        (OPS[1], {4: torch.ones(4)}, r"offset must be given with slope, got 'float32 \[4\]'"),
    ],
)
def test_impossible_arguments_are_refused(op, changes, message):
    arguments: list[Tensor | None] = list(Case(op, (2, 4, 3, 3)).arguments())
    for place, value in changes.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=message):
        getattr(ops, op)(*arguments)
