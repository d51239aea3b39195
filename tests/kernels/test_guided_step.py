"""purify::guided_step in Triton against reference/process.py."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.kernels import _images
from purify_engine.reference import process
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import Case, cases
from tests.kernels.triton_runner import moved, run

# Every seventh of the small ones: seven shares no factor with the numbers of dtypes, layouts and variants. Not single pixels:
# nothing is wider than float64 here, and of one sum in it PyTorch may get every digit right.
SMALL = [case for case in cases("guided_step") if torch.Size(case.shape).numel() <= 600 and case.shape != (1, 1, 1, 1)][::7]
# Odd images as the networks hand them over, and what they read; one program an image, and two.
NETWORKS = [
    Case("guided_step", shape, dtype, "channels_last", variant, keywords={"net_dtype": net_dtype})
    for shape, dtype in (((2, 3, 5, 7), torch.float64), ((1, 3, 15, 13), torch.float32))
    for variant in ("guided-bfloat16-eps", "unguided-bfloat16-eps")
    for net_dtype in (torch.float16, torch.bfloat16, torch.float64, None)
]


@pytest.mark.parametrize("case", SMALL + NETWORKS, ids=lambda case: f"{case}-{case.keywords['net_dtype']}")
def test_matches_the_reference(case):
    assert_agrees(case, run(case), process.guided_step)


def test_an_image_gets_the_same_step_in_any_batch_and_layout():
    x_t, eps, grad, rows, _, key, ids = map(moved, Case("guided_step", (37, 3, 3, 5)).arguments())
    step = moved(torch.tensor(1))
    with ops.backend("triton"):
        whole, _ = ops.guided_step(x_t, eps, grad, rows, step, key, ids)
        eps = eps.contiguous(memory_format=torch.channels_last)
        for bounds in ((0, 1, 2, 36, 37), (0, 5, 10, 15, 20, 25, 30, 35, 37)):  # batches of one, and of five
            for first, end in zip(bounds, bounds[1:], strict=False):
                if end - first in (1, 2, 5):
                    images = (tensor[first:end] for tensor in (x_t, eps, grad))
                    part, _ = ops.guided_step(*images, rows, step, key, ids[first:end])
                    assert torch.equal(part, whole[first:end])


def test_channels_last_predictions_are_read_as_they_lie():
    eps = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    read, last = _images.readable(eps)
    assert last
    assert read.data_ptr() == eps.data_ptr()


def test_the_last_row_gives_the_same_result_for_any_seed():
    x_t, eps, grad, rows, _, key, ids = map(moved, Case("guided_step", (2, 3, 4, 4)).arguments())
    last = moved(torch.tensor(3))
    with ops.backend("triton"):
        one, other = (ops.guided_step(x_t, eps, grad, rows, last, seed, ids)[0] for seed in (key, key + 1))
        drawn = ops.guided_step(x_t, eps, grad, rows, last - 1, key + 1, ids)[0]
    assert torch.equal(one, other)
    assert not torch.equal(one, drawn)


@pytest.mark.parametrize("step", [4, -1, 2**40])
def test_a_step_beyond_the_plan_gives_nan(step):
    x_t, eps, grad, rows, _, key, ids = map(moved, Case("guided_step", (2, 3, 2, 2)).arguments())
    with ops.backend("triton"):
        x_next, x_net = ops.guided_step(x_t, eps, grad, rows, moved(torch.tensor(step)), key, ids, net_dtype=torch.float16)
    assert x_next.isnan().all()
    assert x_net.isnan().all()


def test_a_poisoned_image_never_touches_its_batch():
    x_t, eps, *rest = map(moved, Case("guided_step", (3, 3, 5, 5)).arguments())
    with ops.backend("triton"):
        clean, _ = ops.guided_step(x_t, eps, *rest)
        eps[1] = torch.nan
        poisoned, _ = ops.guided_step(x_t, eps, *rest)
    assert poisoned[1].isnan().all()
    assert torch.equal(poisoned[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("variant", ["guided", "unguided"])
def test_the_gradients_on_the_triton_engine_are_the_references(variant):
    grads = []
    for engine in ("triton", "reference"):
        arguments = [moved(value) for value in Case("guided_step", (2, 1, 2, 3), torch.float64, variant=variant).arguments()]
        images = [value.requires_grad_() for value in arguments[:3] if value is not None]
        with ops.backend(engine):
            x_next, x_net = ops.guided_step(*arguments, net_dtype=torch.float32)
            grads.append(torch.autograd.grad(x_next.square().sum() + 3 * x_net.sum(), images))
    torch.testing.assert_close(*grads)
