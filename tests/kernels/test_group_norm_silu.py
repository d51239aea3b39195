"""purify::group_norm_silu and its gradient in Triton against reference/layers.py: groups whole in a tile, and cut into chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from purify_engine import ops
from purify_engine.kernels import _norm, _tiles
from purify_engine.kernels._launch import Launch
from purify_engine.reference import layers, sums
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.yardstick import extended
from tests.kernels.triton_runner import moved, run

FORWARD, BACKWARD, OF_SUM = "group_norm_silu", "group_norm_silu_backward", "sum_norm_silu_backward"
FLOAT, DOUBLE = torch.float32, torch.float64


def some(op: str, every: int) -> list[Case]:
    """Every `every`-th case of few programs; `every` shares no factor with the numbers of dtypes, layouts and variants."""
    return [case for case in cases(op) if case.shape[0] * case.num_groups <= 16 and is_judged(case)][::every]


def is_judged(case: Case) -> bool:
    """Not gradients of small groups in float64: nothing is wider there, and of short sums PyTorch may get every digit right."""
    elements = torch.Size(case.shape[1:]).numel() // case.num_groups
    return case.op == FORWARD or case.dtype == FLOAT or elements == 0 or elements >= 64


def padded(op: str) -> list[Case]:
    """Groups that fill no power of two, numbers of groups that are none, tiles that hold several groups or all."""
    shapes = (((2, 20, 3, 3), 5), ((1, 24, 5, 5), 3), ((1, 36, 5, 5), 12))
    layouts = ("contiguous", "channels_last")
    return [Case(op, shape, FLOAT, layout, "scale-shift", groups) for shape, groups in shapes for layout in layouts]


def large(op: str) -> list[Case]:
    """Groups of a few thousand elements, of which a tile of 8 KiB holds a part."""
    return [
        Case(op, (1, 8, 31, 17), FLOAT, "contiguous", "plain", 2),
        Case(op, (1, 8, 31, 17), FLOAT, "channels_last", "scale-shift", 2),
        Case(op, (1, 12, 24, 24), FLOAT, "contiguous", "scale-shift", 2),
        Case(op, (1, 12, 24, 24), DOUBLE, "channels_last", "shift-linear", 2),
    ]


@pytest.fixture(params=[32, 2], ids=["a tile a chunk", "several tiles a chunk"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, and how many programs may share a group."""
    monkeypatch.setattr(_tiles, "REGISTERS", 8192)
    monkeypatch.setattr(_tiles, "MOST_CHUNKS", request.param)


@pytest.mark.parametrize("case", some(FORWARD, 7) + padded(FORWARD), ids=str)
def test_matches_the_reference(case):
    assert_agrees(case, run(case), layers.group_norm_silu)


# More images than are added up at a time.
MANY = Case(BACKWARD, (18, 4, 4, 4), FLOAT, "channels_last", "scale-shift", 1)


@pytest.mark.parametrize("case", [*some(BACKWARD, 11), *padded(BACKWARD), MANY], ids=str)
def test_gradient_matches_the_reference(case):
    assert_agrees(case, run(case), layers.group_norm_silu_backward)


@pytest.mark.parametrize("case", some(OF_SUM, 11), ids=str)
def test_gradient_of_a_sum_matches_the_reference(case):
    assert_agrees(case, run(case), sums.sum_norm_silu_backward)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_a_sum_in_chunks_matches_the_reference(layout, cut):
    case = Case(OF_SUM, (1, 12, 24, 24), FLOAT, layout, "residual-scale-shift", 2)
    assert_agrees(case, run(case), sums.sum_norm_silu_backward)


@pytest.mark.parametrize("case", large(FORWARD), ids=str)
def test_groups_cut_into_chunks_match_the_reference(case, cut):
    assert_agrees(case, run(case), layers.group_norm_silu)


@pytest.mark.parametrize("case", large(BACKWARD), ids=str)
def test_gradient_of_groups_cut_into_chunks_matches_the_reference(case, cut):
    assert_agrees(case, run(case), layers.group_norm_silu_backward)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
def test_a_large_mean_does_not_cancel(whole, layout, monkeypatch):
    if not whole:
        monkeypatch.setattr(_tiles, "REGISTERS", 1024)
    x, *rest = Case(FORWARD, (1, 8, 16, 16), layout=layout, num_groups=2).arguments()
    shifted = x + 4096  # exact enough: the spread keeps 12 bits
    truth = layers.group_norm_silu(shifted.double(), *(v.double() if isinstance(v, torch.Tensor) else v for v in rest))
    with ops.backend("triton"):
        y = ops.group_norm_silu(*map(moved, (shifted, *rest))).cpu()
    assert (y - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize(("images", "registers"), [(37, 65536), (2, 512)], ids=["whole", "cut"])
def test_an_image_gets_the_same_bits_in_any_batch(images, registers, monkeypatch):
    monkeypatch.setattr(_tiles, "REGISTERS", registers)
    case = Case(BACKWARD, (images, 4, 5, 13), layout="channels_last", num_groups=2)
    grad, x, weight, bias, *rest = map(moved, case.arguments())
    with ops.backend("triton"):
        y = ops.group_norm_silu(x, weight, bias, *rest)
        grad_x, *_ = ops.group_norm_silu_backward(grad, x, weight, bias, *rest)
        for part in (slice(0, 1), slice(images // 2, images // 2 + 5)):
            assert torch.equal(ops.group_norm_silu(x[part], weight, bias, *rest), y[part])
            assert torch.equal(ops.group_norm_silu_backward(grad[part], x[part], weight, bias, *rest)[0], grad_x[part])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_low_precision_is_rounded_once(dtype, layout):
    x, weight, bias, *rest = Case(FORWARD, (2, 8, 5, 5), layout=layout, num_groups=2).arguments()
    x = x.to(dtype)
    truth = layers.group_norm_silu(x.double(), weight.double(), bias.double(), *rest)
    with ops.backend("triton"):
        y = ops.group_norm_silu(*map(moved, (x, weight, bias, *rest))).cpu()
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    # half a unit in the last place; the interpreter cuts bfloat16 off, and then it is a whole one
    assert ((y - truth).abs() <= torch.finfo(dtype).eps * truth.abs() + 1e-6).all()


def test_scale_and_shift_may_be_two_halves_of_one_row_for_all_images():
    x, weight, bias, _, _, *rest = Case(FORWARD, (3, 8, 3, 3), num_groups=2).arguments()
    scale, shift = torch.randn(1, 16).expand(3, -1).chunk(2, dim=1)
    with ops.backend("triton"):
        got = ops.group_norm_silu(*map(moved, (x, weight, bias, scale, shift, *rest))).cpu()
        alone = ops.group_norm_silu(*map(moved, (x, weight, bias, scale.clone(), shift.clone(), *rest))).cpu()
    assert torch.equal(got, alone)


@pytest.mark.parametrize("far", [128.0, 2.0**14, 2.0**100, float("inf")])
def test_silu_is_its_limits_far_out(far):
    x, one = moved(torch.zeros(1, 1, 1, 1)), moved(torch.ones(1))
    with ops.backend("triton"):
        assert ops.group_norm_silu(x, one, far * one, None, None, 1, 1e-5).item() == far
        if far < float("inf"):
            assert abs(ops.group_norm_silu(x, one, -far * one, None, None, 1, 1e-5).item()) < 1e-30


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
def test_a_poisoned_image_never_touches_its_batch(whole, monkeypatch):
    if not whole:
        monkeypatch.setattr(_tiles, "REGISTERS", 256)
    x, *rest = map(moved, Case(FORWARD, (3, 8, 5, 5), layout="channels_last", num_groups=2).arguments())
    with ops.backend("triton"):
        clean = ops.group_norm_silu(x, *rest)
        x[1, 0, 0, 0] = torch.nan
        y = ops.group_norm_silu(x, *rest)
    assert y[1, :4].isnan().all()
    assert torch.equal(y[1, 4:], clean[1, 4:])
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


def test_first_and_second_gradients_on_the_triton_engine_are_right():
    *arguments, num_groups, norm_eps, silu = Case(FORWARD, (1, 2, 1, 2), DOUBLE, variant="scale-shift").arguments()
    tensors = [moved(value).requires_grad_() for value in arguments]

    def norm(*given):
        return ops.group_norm_silu(*given, num_groups, norm_eps, silu)

    def seconds():
        (grad,) = torch.autograd.grad(norm(*tensors).square().sum(), tensors[0], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), tensors)

    with ops.backend("triton"):
        assert torch.autograd.gradcheck(norm, tensors)
        got = seconds()
    with ops.backend("reference"):
        torch.testing.assert_close(got, seconds())


@triton.jit
def _rstd_kernel(rstd_ptr, around_ptr, count, PLACES: tl.constexpr, NORM_EPS: tl.constexpr):
    place = tl.arange(0, PLACES)
    tl.store(rstd_ptr + place, _norm.rstd(tl.load(around_ptr + place), count, NORM_EPS))


@pytest.mark.parametrize("count", [1, 36, 1000])
def test_a_reciprocal_deviation_in_float64_is_wrong_by_one_place_at_most(count):
    around = torch.rand(4096, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) * count * 9
    rstd = moved(torch.empty_like(around))
    arguments = {"rstd_ptr": rstd, "around_ptr": moved(around), "count": count, "PLACES": 4096, "NORM_EPS": 1e-5}
    Launch(_rstd_kernel, (1,), arguments).run()
    truth = 1 / np.sqrt(extended(around) / count + np.longdouble(1e-5))
    assert (np.abs(extended(rstd) - truth) <= torch.finfo(DOUBLE).eps * truth).all()


# (channels, pixels a side) of the published U-Nets, concatenated skips among them.
LAYERS = [(c, s) for s in (4, 8, 16, 32) for c in (128, 256, 384, 512)] + [
    (c, s) for s in (8, 16, 32, 64, 128, 256) for c in (256, 512, 768, 1024, 1280, 1536, 2048)
]


@pytest.mark.parametrize("tensors", [1, 2])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("channels_last", [True, False])
def test_tiles_fit_the_registers_and_cover_a_group(channels_last, itemsize, tensors):
    for channels, side in LAYERS:
        tile = _tiles.group_norm(channels, side**2, 32, itemsize, channels_last, tensors)
        assert tile.padded >= channels // 32
        assert tile.groups * tile.padded * tile.pixels * max(itemsize, 4) * tensors <= _tiles.REGISTERS
        chunks = -(-(side**2) // (tile.pixels * tile.blocks))
        assert chunks <= _tiles.MOST_CHUNKS
        assert tile.blocks == 1 or chunks > 1  # a program that goes through several tiles cannot hold a group whole
