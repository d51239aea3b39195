"""purify::attention and its gradient in Triton against reference/layers.py: every stride, sizes that fill no tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from purify_engine import UNetConfig, ops
from purify_engine.kernels import _outputs
from purify_engine.kernels import attention as kernels
from purify_engine.models.blocks import AttentionBlock
from purify_engine.reference import layers
from purify_engine.testing import magnitudes
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.yardstick import assert_within_yardstick
from tests.kernels.triton_runner import DEVICE, moved, run

FORWARD, BACKWARD = "attention", "attention_backward"
HALF = torch.float16
# Several blocks of queries and of keys, the last ones not full; a width that is no power of two, and one that is.
RAGGED = [((1, 1, 70, 24), torch.float32), ((1, 2, 37, 32), torch.float32), ((1, 1, 131, 20), HALF), ((2, 1, 67, 64), HALF)]


def chosen(op: str) -> list[Case]:
    """The cases in the precisions that the kernels take, and the ragged ones."""
    small = [case for case in cases(op) if case.dtype == torch.float32]
    small += [Case(op, case.shape, HALF, case.layout) for case in small]
    return [*small, *(Case(op, shape, dtype) for shape, dtype in RAGGED)]


@pytest.mark.parametrize("case", chosen(FORWARD), ids=str)
def test_matches_the_reference(case):
    assert_agrees(case, run(case), layers.attention)


@pytest.mark.parametrize("case", chosen(BACKWARD), ids=str)
def test_gradient_matches_the_reference(case):
    assert_agrees(case, run(case), layers.attention_backward)


def test_the_gradient_in_float32_has_the_error_of_its_products_alone():
    # By root mean square 3.1e-8 to 3.7e-8, whichever kernels multiply; with sums of rows in float32 it is 4.1e-8 to 4.4e-8.
    squares = torch.zeros(2, dtype=torch.float64)  # of the errors of grad_q and grad_k
    for seed in range(12):
        arguments = torch.randn(4, 1, 4, 9, 5, generator=torch.Generator().manual_seed(seed)).unbind()
        with ops.backend("triton"):
            grads = ops.attention_backward(*map(moved, arguments))
        truth = layers.attention_backward(*(tensor.double() for tensor in arguments))
        squares += torch.stack([(grads[place].cpu() - truth[place]).square().mean() for place in range(2)])
    assert float((squares / 12).sqrt().max()) < 3.95e-8


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(5, 33), (33, 5), (1, 70)])
def test_queries_and_keys_may_differ_in_number(queries, keys, dtype):
    q, k, v = (Case(FORWARD, (1, 2, tokens, 8), dtype).arguments()[place] for place, tokens in enumerate((queries, keys, keys)))
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with ops.backend("triton"):
        got = ops.attention(*map(moved, (q, k, v))), *ops.attention_backward(*map(moved, (grad, q, k, v)))
    honest = layers.attention(q, k, v), *layers.attention_backward(grad, q, k, v)
    grad_out, *inputs = (tensor.double() for tensor in (grad, q, k, v))
    truth = layers.attention(*inputs), *layers.attention_backward(grad_out, *inputs)
    sizes = *magnitudes.attention(q, k, v), *magnitudes.attention_backward(grad, q, k, v)
    for result, like, true, size in zip(got, honest, truth, sizes, strict=True):
        assert_within_yardstick(result.cpu(), like, true, size)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_block_reads_its_images_where_they_lie(layout):
    block = AttentionBlock(32, UNetConfig(num_head_channels=16, norm_groups=4)).to(memory_format=layout)
    torch.nn.init.normal_(block.out.weight)
    x = torch.randn(2, 32, 3, 5, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    block, x = block.to(moved(x).device), moved(x)
    with torch.no_grad(), ops.backend("reference"):
        honest, truth = block(x), block.double()(x.double())
    with torch.no_grad(), ops.backend("triton"):
        assert_within_yardstick(block.float()(x).cpu(), honest.cpu(), truth.cpu())


@triton.jit
def _exp2_kernel(out_ptr, x_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(out_ptr + place, kernels._exp2(tl.load(x_ptr + place), tl.float32))


def exp2(x: Tensor) -> Tensor:
    out = torch.empty(len(x), device=DEVICE)
    _exp2_kernel[(1,)](out, moved(x), SIZE=len(x))
    return out.cpu()


@pytest.mark.parametrize("lowest", [-0.5, -1.5, -20.0, -126.0])
def test_the_exponential_in_float32_is_that_of_a_library(lowest):
    """Element by element: within a unit in the last place, which the hardware's own is not."""
    x = torch.linspace(lowest, 0.01, 4096)
    truth = np.exp2(x.numpy().astype(np.longdouble))
    assert (np.abs(exp2(x).numpy() - truth) / truth).max() < 2.0**-23
    assert_within_yardstick(exp2(x), x.exp2(), truth)


def test_the_exponential_keeps_the_ends():
    x = torch.tensor([0.0, -1.0, -126.0, -127.0, -1e30, -torch.inf, torch.nan, 1.0])
    assert exp2(x)[:-2].tolist() == [1, 0.5, 2.0**-126, 0, 0, 0]
    assert exp2(x)[-2].isnan()


def test_the_result_is_channels_last_images_without_a_copy():
    with ops.backend("triton"):
        h = ops.attention(*map(moved, Case(FORWARD, (2, 4, 6, 8)).arguments()))
    images = h.transpose(2, 3).reshape(2, 32, 2, 3)
    assert images.data_ptr() == h.data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_large_scores_do_not_overflow(dtype):
    q, k, v = (64 * tensor for tensor in Case(FORWARD, (1, 1, 9, 16), dtype).arguments())
    with ops.backend("triton"):
        got = ops.attention(*map(moved, (q, k, v))).cpu()
    assert_within_yardstick(got, layers.attention(q, k, v), layers.attention(q.double(), k.double(), v.double()))


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_autograd_goes_through_both_kernels(dtype):
    def gradients(engine: str, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in arguments]
        with ops.backend(engine):
            out = ops.attention(*leaves)
            return torch.autograd.grad((out * out).sum(), leaves)

    arguments = tuple(map(moved, Case(FORWARD, (1, 2, 18, 8), dtype).arguments()))
    truth = gradients("reference", tuple(tensor.double() for tensor in arguments))
    for got, like, true in zip(gradients("triton", arguments), gradients("reference", arguments), truth, strict=True):
        assert_within_yardstick(got.cpu(), like.cpu(), true.cpu())


def test_registration_is_sound(monkeypatch):
    # without the guards, which a result would begin behind
    monkeypatch.setattr(_outputs, "empty", lambda shape, dtype, device: torch.empty(tuple(shape), dtype=dtype, device=device))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = [moved(tensor).detach().requires_grad_() for tensor in Case(FORWARD, (1, 2, 3, 4)).arguments()]
    with ops.backend("triton"):
        torch.library.opcheck(torch.ops.purify.attention.default, arguments, test_utils=checks)


@pytest.mark.parametrize("case", [Case(FORWARD, (1, 1, 2, 4), torch.float64), Case(FORWARD, (1, 1, 2, 257))], ids=str)
def test_what_it_does_not_take_is_left_to_the_next_engine(case):
    with pytest.raises(RuntimeError, match="no triton kernel for these arguments"):
        run(case)
    with pytest.raises(RuntimeError, match="no triton kernel for these arguments"):
        run(Case(BACKWARD, case.shape, case.dtype))
