"""purify::residual_sum in Triton: PyTorch's operations one after the other, to the bit, in one pass."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import sums
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import Case, cases
from tests.kernels.triton_runner import DEVICE, moved, run

OP = "residual_sum"
SINGLE = [case for case in cases(OP) if case.dtype == torch.float32]
HALVES = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]  # the interpreter cuts bfloat16 off


@pytest.mark.parametrize("case", SINGLE[::3], ids=str)
def test_matches_the_reference(case):
    assert_agrees(case, run(case), sums.residual_sum)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", ["plain", "bias", "residual-bias", "residual-bias-gain"])
def test_is_pytorchs_chain_to_the_bit(dtype, layout, variant):
    for shape in ((2, 20, 9, 6), (1, 384, 4, 4), (3, 40, 5, 13)):
        arguments = Case(OP, shape, dtype, layout, variant).arguments()
        with ops.backend("triton"):
            got = ops.residual_sum(*map(moved, arguments))
        assert torch.equal(got, sums.residual_sum(*map(moved, arguments)))


def test_float64_is_left_to_pytorch():
    case = Case(OP, (1, 2, 3, 3), torch.float64)
    with ops.backend("triton"), pytest.raises(RuntimeError, match="triton: float64 is PyTorch's"):
        ops.residual_sum(*case.arguments())


def test_it_is_taken_where_it_is_switched_on_and_proven(monkeypatch):
    monkeypatch.setitem(ops._registry.ORDER, "cpu", ("triton", "reference"))  # as on a GPU
    monkeypatch.setattr(ops._registry, "INTERPRETED", True)
    arguments = Case(OP, (1, 4, 3, 3), torch.float32, "channels_last", "residual-bias").arguments()
    op = ops.OPS[OP]
    assert op.resolve(*arguments)[0] == "reference"
    with ops.switches.anywhere():
        assert op.resolve(*arguments)[0] == "triton"
        assert torch.equal(ops.residual_sum(*arguments), sums.residual_sum(*arguments))
        with ops.switches.switched(fused_sum=False):
            assert op.resolve(*arguments)[0] == "reference"
