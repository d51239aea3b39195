"""An image and its skip side by side: what `torch.cat` and the ops give, without it; who is left alone."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.ops._skip import are_read_apart
from purify_engine.ops.conv2d import _conv1x1_of_two
from purify_engine.ops.group_norm_silu import group_norm_silu_nhwc
from purify_engine.reference import layers

pytestmark = pytest.mark.usefixtures("each_instruction_set")

# batch, channels, channels skip, groups, height, width: groups that end where the first image does, that straddle, one of all.
SIZES = [
    (1, 32, 32, 8, 16, 16),
    (2, 24, 12, 4, 5, 7),
    (3, 1, 7, 2, 1, 1),
    (5, 40, 9, 7, 3, 4),
    (1, 3, 61, 1, 8, 8),
    (0, 4, 4, 2, 3, 3),
]


def norm_of_two(x, skip, weight, bias, groups):
    return group_norm_silu_nhwc(x, ops.Norm(weight, bias, None, None, groups, 1e-5), True, skip)


def two(batch, own, others, height, width):
    generator = torch.Generator().manual_seed(own)
    return [
        torch.randn(batch, channels, height, width, generator=generator).to(memory_format=torch.channels_last)
        for channels in (own, others)
    ]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_norm_is_that_of_the_two_together_to_the_bit(sizes, threads):
    batch, own, others, groups, height, width = sizes
    x, skip = two(batch, own, others, height, width)
    weight, bias = torch.randn(own + others), torch.randn(own + others)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = norm_of_two(x, skip, weight, bias, groups)
        together = torch.cat([x, skip], dim=1).contiguous(memory_format=torch.channels_last)
        expected = ops.group_norm_silu(together, weight, bias, None, None, groups, 1e-5)
    finally:
        torch.set_num_threads(before)
    truth = layers.group_norm_silu(together.double(), weight.double(), bias.double(), None, None, groups, 1e-5)
    assert torch.equal(got, group_norm_silu_nhwc(together, ops.Norm(weight, bias, None, None, groups, 1e-5), True, None))
    assert torch.allclose(got, expected, atol=1e-5) and torch.allclose(got.double(), truth, atol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_the_convolution_is_that_of_the_two_together(sizes, biased):
    batch, own, others, _, height, width = sizes
    x, skip = two(batch, own, others, height, width)
    weight, bias = torch.randn(11, own + others, 1, 1), torch.randn(11) if biased else None
    got = _conv1x1_of_two(x, skip, weight, bias)
    wide = [None if tensor is None else tensor.double() for tensor in (torch.cat([x, skip], dim=1), weight, bias)]
    truth = torch.nn.functional.conv2d(*wide)
    assert got.shape == truth.shape and (got - truth).norm() <= 1e-6 * truth.norm()
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_it_is_for_float32_channels_last_images_that_nobody_differentiates():
    x, skip = two(2, 8, 4, 6, 6)
    with torch.no_grad():
        assert are_read_apart(x, skip)
        assert not are_read_apart(x.contiguous(), skip)
        assert not are_read_apart(x, skip.double())
        norm = ops.Norm(torch.ones(12), torch.zeros(12), None, None, 3, 1e-5)
        assert ops.side_by_side(x, skip, norm)[1] is skip
        with ops.backend("reference"):
            together, nothing = ops.side_by_side(x, skip, norm)
            assert nothing is None and torch.equal(together, torch.cat([x, skip], dim=1))
        with torch.autocast("cpu", torch.bfloat16):
            assert not are_read_apart(x, skip)
        for other in (skip[:1], skip[:, :, :5], skip[:, :, :, :5]):  # `torch.cat` says what is wrong with these
            assert not are_read_apart(x, other.contiguous(memory_format=torch.channels_last))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            assert not are_read_apart(x, skip)
    assert not are_read_apart(x, skip)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(8)}, r"weight must be float \[12\], got 'float32 \[8\]'"),
        ({"bias": torch.ones(12, 1)}, r"bias must be float \[12\]"),
        ({"num_groups": 5}, "num_groups must be a divisor of the 12 channels, got 5"),
        ({"skip": torch.ones(2, 4, 5, 6)}, r"skip must be float \[2, 4, 6, 6\]"),
    ],
)
def test_impossible_arguments_are_refused(changes, message):
    x, skip = two(2, 8, 4, 6, 6)
    others = {"scale": None, "shift": None, "num_groups": 3, "norm_eps": 1e-5}
    arguments = {"skip": skip, "weight": torch.ones(12), "bias": torch.ones(12)} | others
    with pytest.raises(ValueError, match=message):
        ops.group_norm_silu(x, **(arguments | changes))


@pytest.mark.parametrize("engine", ["cpp", "reference"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_op_norms_a_skip_like_the_two_together(engine, layout):
    x, skip = (image.contiguous(memory_format=layout) for image in two(2, 6, 3, 4, 5))
    weight, bias, scale, shift = (torch.randn(shape) for shape in ((9,), (9,), (2, 9), (2, 9)))
    with ops.backend(engine), torch.no_grad():
        got = ops.group_norm_silu(x, weight, bias, scale, shift, 3, 1e-5, skip=skip)
        together = ops.group_norm_silu(torch.cat([x, skip], dim=1), weight, bias, scale, shift, 3, 1e-5)
    assert got.stride() == together.stride() and torch.allclose(got, together, atol=1e-6)


@pytest.mark.parametrize("op", [ops.group_norm_silu, torch.ops.purify.group_norm_silu], ids=["as it is called", "the op itself"])
def test_first_and_second_gradients_reach_the_skip(op):
    x, skip = (image.double().requires_grad_() for image in two(2, 2, 4, 1, 3))
    norm = [torch.randn(shape).double().requires_grad_() for shape in ((6,), (6,), (2, 6), (2, 6))]
    function = lambda x, skip, *norm: op(x, *norm, 2, 1e-5, True, skip)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, skip, *norm)) and torch.autograd.gradgradcheck(function, (x, skip, *norm))


def test_registration_with_a_skip_is_sound():
    x, skip = (image.requires_grad_() for image in two(2, 2, 4, 2, 3))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (x, torch.ones(6), torch.zeros(6), None, None, 2, 1e-5, True, skip)
    torch.library.opcheck(torch.ops.purify.group_norm_silu.default, arguments, test_utils=checks)
