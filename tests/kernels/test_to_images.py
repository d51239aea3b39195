"""purify::to_images in Triton against reference/process.py: the same roundings, so the same bits."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import process
from purify_engine.testing.agreement import strides
from purify_engine.testing.cases import Case, cases
from tests.kernels.triton_runner import moved, run

SMALL = [case for case in cases("to_images") if torch.Size(case.shape).numel() <= 600][::5]
BYTES = [
    Case("to_images", (2, 3, 20, 19), dtype, layout, "uint8")
    for dtype in (torch.float32, torch.float64)
    for layout in ("contiguous", "channels_last")
]


def on_triton(x, dtype):
    with ops.backend("triton"):
        return ops.to_images(moved(x), dtype).cpu()


@pytest.mark.parametrize("case", SMALL + BYTES, ids=str)
def test_is_the_reference_bit_for_bit(case):
    (got,), want = run(case), process.to_images(*case.arguments())
    assert got.dtype == want.dtype
    assert strides(got) == strides(want)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_halves_are_rounded_to_even(dtype):
    halves = torch.arange(0.5, 255, dtype=torch.float64)
    x = (halves / 255 * 2 - 1).to(dtype).reshape(1, 1, 5, 51)
    exact = ((x + 1) / 2 * 255) % 1 == 0.5
    assert exact.sum() > 50  # where the arithmetic hits the half
    assert torch.equal(on_triton(x, torch.uint8), process.to_images(x, torch.uint8))
    assert (on_triton(x, torch.uint8)[exact] % 2 == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_computed_in_float32(dtype):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(dtype)
    assert torch.equal(on_triton(x, torch.float32), process.to_images(x.float(), torch.float32))


def test_nan_stays_nan():
    images = on_triton(torch.tensor([torch.nan, -torch.inf, torch.inf]).reshape(1, 1, 1, 3), torch.float32)
    assert images[..., 0].isnan()
    assert images[..., 1:].flatten().tolist() == [0, 1]
