"""purify::affine_relu and its gradient in Triton, against reference/layers.py."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import layers
from purify_engine.testing.agreement import assert_agrees, strides
from purify_engine.testing.cases import Case, cases
from tests.kernels.triton_runner import DEVICE, Poison, moved, run

OPS = ("affine_relu", "affine_relu_backward")
SINGLE = [case for op in OPS for case in cases(op) if case.dtype == torch.float32]
HALVES = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]  # the interpreter cuts bfloat16 off


@pytest.mark.parametrize("case", SINGLE[::3], ids=lambda case: f"{case.op}-{case}")
def test_matches_the_reference(case):
    assert_agrees(case, run(case), getattr(layers, case.op))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", ["plain", "residual"])
def test_16_bits_of_more_than_one_program_and_odd_channels(op, dtype, layout, variant, monkeypatch):
    from purify_engine.kernels import _outputs

    monkeypatch.setattr(_outputs, "empty", poison := Poison())
    for shape in ((2, 20, 9, 6), (1, 384, 4, 4), (3, 40, 5, 13)):
        case = Case(op, shape, dtype, layout, variant)
        assert_agrees(case, run(case), getattr(layers, op))
    poison.assert_untouched()


def test_what_is_no_number_stays_so():
    x, ones = torch.full((1, 2, 1, 2), torch.nan), torch.ones(2)
    with ops.backend("triton"):
        total, y = ops.affine_relu(*map(moved, (x, ones, ones, x)))
        grad = ops.affine_relu_backward(*map(moved, (torch.ones_like(x), x, ones)))
    assert total.isnan().all() and y.isnan().all() and (grad == 1).all()


@pytest.mark.parametrize("op", OPS)
def test_float64_is_left_to_pytorch(op):
    case = Case(op, (1, 2, 3, 3), torch.float64)
    with ops.backend("triton"), pytest.raises(RuntimeError, match="triton: float64 is PyTorch's"):
        getattr(ops, op)(*case.arguments())


def test_it_is_taken_where_it_is_switched_on(monkeypatch):
    monkeypatch.setitem(ops._registry.ORDER, "cpu", ("triton", "reference"))  # as on a GPU
    arguments = Case(OPS[0], (1, 4, 3, 3), torch.float32, "channels_last", "residual").arguments()
    op = ops.OPS[OPS[0]]
    assert op.resolve(*arguments)[0] == "reference"
    with ops.switches.anywhere():
        assert op.resolve(*arguments)[0] == "triton"
        with ops.switches.switched(affine_relu=False):
            assert op.resolve(*arguments)[0] == "reference"


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_masked_sum_is_pytorchs_chain_to_the_bit(dtype, layout, monkeypatch):
    from purify_engine.kernels import _outputs, affine_relu

    monkeypatch.setattr(_outputs, "empty", poison := Poison())
    for shape in ((2, 20, 9, 6), (1, 1, 1, 1), (0, 2, 3, 3)):
        one, y, _, other = Case(OPS[1], shape, dtype, layout, "residual").arguments()
        other[:1, :1, :1, :1] = torch.nan
        got = affine_relu.masked_sum(*map(moved, (one, other, y)))
        expected = torch.ops.aten.threshold_backward(one + other, y, 0)
        assert strides(got) == strides(expected) and torch.equal(got.cpu().nan_to_num(7), expected.nan_to_num(7))
    poison.assert_untouched()
