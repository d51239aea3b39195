"""purify::q_sample in Triton against reference/process.py."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.reference import process
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import Case, cases
from tests.kernels.triton_runner import moved, run

# Every fifth of the small ones: five shares no factor with the numbers of dtypes, layouts and copies.
SMALL = [case for case in cases("q_sample") if torch.Size(case.shape).numel() <= 600][::5]
COPIES = [
    Case("q_sample", (2, 3, 5, 4), dtype, keywords={"net_dtype": copy})
    for dtype in (torch.float32, torch.float64)
    for copy in (torch.float16, torch.bfloat16, torch.float64)
]


@pytest.mark.parametrize("case", SMALL + COPIES, ids=lambda case: f"{case}-{case.keywords['net_dtype']}")
def test_matches_the_reference(case):
    assert_agrees(case, run(case), process.q_sample)


def test_an_image_is_noised_alike_in_any_batch():
    x_start, marginal, step, key, ids = map(moved, Case("q_sample", (7, 3, 3, 5)).arguments())
    with ops.backend("triton"):
        whole = ops.q_sample(x_start, marginal, step, key, ids, net_dtype=torch.float16)
        batches = zip(x_start.split(3), ids.split(3), strict=True)
        parts = [ops.q_sample(x, marginal, step, key, their, net_dtype=torch.float16) for x, their in batches]
    for part, together in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), together)


def test_the_networks_copy_is_channels_last_and_shares_no_memory():
    for channels in (1, 3):
        arguments = map(moved, Case("q_sample", (2, channels, 4, 4)).arguments())
        with ops.backend("triton"):
            x_t, x_net = ops.q_sample(*arguments, net_dtype=torch.float32)
        assert x_net.is_contiguous(memory_format=torch.channels_last)
        assert x_t.data_ptr() != x_net.data_ptr()
        assert torch.equal(x_t, x_net)


def test_the_gradient_on_the_triton_engine_is_the_references():
    grads = []
    for engine in ("triton", "reference"):
        x_start, *rest = map(moved, Case("q_sample", (2, 2, 1, 3), torch.float64).arguments())
        with ops.backend(engine):
            x_t, x_net = ops.q_sample(x_start.requires_grad_(), *rest, net_dtype=torch.float32)
            grads += torch.autograd.grad(x_t.square().sum() + 3 * x_net.sum(), x_start)
    torch.testing.assert_close(*grads)
