"""purify::conv3x3 in Triton against reference/layers.py: what surrounds the convolution, terms split, the norm in the gather."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.kernels import _outputs, _tiles, conv3x3
from purify_engine.kernels._tiles import ConvTile
from purify_engine.ops import switches
from purify_engine.reference import layers
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import Case
from purify_engine.testing.shapes import CONV_SHAPES, CONV_VARIANTS, LAYOUTS
from purify_engine.testing.yardstick import assert_within_yardstick
from tests.kernels.triton_runner import moved, run

HALF, LAST = torch.float16, torch.channels_last
# Every shape and layout, with some of what may stand around a convolution; and all of that, where a tile holds several images.
CASES = [
    Case("conv3x3", shape, HALF, layout, CONV_VARIANTS[place % 6], groups)
    for place, ((shape, groups), layout) in enumerate(product(CONV_SHAPES[:5], LAYOUTS))
]
CASES += [Case("conv3x3", (3, 20, 3, 2), HALF, "channels_last", variant, 5) for variant in CONV_VARIANTS]


def aligned(variant: str) -> Case:
    """Images of 16 pixels, 18 channels in groups of 6: two tiles of 16 x 16 by three, or by two where there is a residual."""
    return Case("conv3x3", (2, 18, *((2, 2) if "up" in variant else (2, 8))), HALF, "channels_last", variant, 3)


def use(monkeypatch: pytest.MonkeyPatch, *block: int, splits: int = 1, takes_norm: bool = False) -> None:
    tile = ConvTile(*block, splits, takes_norm, num_warps=4, num_stages=3)
    monkeypatch.setattr(_tiles, "conv3x3", lambda *problem: tile)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case):
    assert_agrees(case, run(case), layers.conv3x3)


@pytest.mark.parametrize("splits", [1, 8], ids=["whole", "18 terms in parts of 3"])
@pytest.mark.parametrize("case", [aligned(variant) for variant in CONV_VARIANTS], ids=str)
def test_small_tiles_match_the_reference_however_their_terms_are_split(case, splits, monkeypatch):
    use(monkeypatch, 16, 16, 16, splits=splits)
    assert_agrees(case, run(case), layers.conv3x3)


@pytest.mark.parametrize("moments", [(1, 1, 32, 32), (2, 3, 4, 16), (8, 1, 2, 16)], ids=str)
@pytest.mark.parametrize("case", [aligned(variant) for variant in CONV_VARIANTS if "norm" in variant], ids=str)
def test_a_norm_in_the_gather_matches_the_reference(case, moments, monkeypatch):
    use(monkeypatch, 16, 32, 16, takes_norm=True)
    monkeypatch.setattr(_tiles, "moments", lambda channels, pixels: _tiles.MomentsTile(*moments))
    monkeypatch.setattr(conv3x3, "group_norm_silu", None)  # it is not called
    assert_agrees(case, run(case), layers.conv3x3)


def test_a_norm_stays_out_of_the_gather_where_tiles_straddle_images(monkeypatch):
    use(monkeypatch, 32, 32, 32, takes_norm=True)
    case = aligned("norm-scale-bias-residual-gain")
    assert_agrees(case, run(case), layers.conv3x3)


def test_a_large_mean_does_not_cancel_in_the_gather(monkeypatch):
    use(monkeypatch, 16, 32, 16, takes_norm=True)
    monkeypatch.setattr(_tiles, "moments", lambda channels, pixels: _tiles.MomentsTile(4, 2, 2, 16))
    x, *rest = aligned("norm-bias-shared-temb").arguments()
    arguments = (x + 1000, *rest)  # float16 keeps a bit or two of its spread, and both count
    with ops.backend("triton"):
        got = torch.ops.purify.conv3x3(*map(moved, arguments)).cpu()
    doubled = [value.double() if isinstance(value, Tensor) else value for value in arguments]
    assert_within_yardstick(got, layers.conv3x3(*arguments), layers.conv3x3(*doubled))


@pytest.mark.parametrize("of_x", [False, True])
@pytest.mark.parametrize("of_weight", [False, True])
@pytest.mark.parametrize("of_residual", [None, False, True])
def test_the_layout_is_the_references(of_x, of_weight, of_residual):
    def laid(*shape: int, last: bool) -> Tensor:
        return torch.randn(shape, dtype=HALF).contiguous(memory_format=LAST if last else torch.contiguous_format)

    x, weight = laid(1, 4, 3, 2, last=of_x), laid(5, 4, 3, 3, last=of_weight)
    residual = None if of_residual is None else laid(1, 5, 3, 2, last=of_residual)
    with ops.backend("triton"):
        got = torch.ops.purify.conv3x3(moved(x), moved(weight), residual=moved(residual))
    assert got.stride() == layers.conv3x3(x, weight, residual=residual).stride()


def test_parameters_may_be_more_precise_than_images():
    case = aligned("norm-scale-bias-residual-gain")
    x, *rest = case.arguments()
    arguments = (x, *(value.float() if isinstance(value, Tensor) else value for value in rest))
    with ops.backend("triton"):
        got = torch.ops.purify.conv3x3(*map(moved, arguments)).cpu()
    assert got.dtype == HALF
    assert_within_yardstick(got, layers.conv3x3(*case.arguments()), layers.conv3x3(*case.arguments(torch.float64)))


def test_its_gradient_is_that_of_its_parts():
    def gradients(engine: str, arguments: tuple) -> tuple[Tensor, ...]:
        leaves = [value for value in arguments if isinstance(value, Tensor)]
        with ops.backend(engine):
            out = torch.ops.purify.conv3x3(*arguments)
            return torch.autograd.grad((out * out).sum(), leaves)

    case = aligned("norm-scale-bias-residual-gain")
    truth = gradients("reference", tuple(v.detach().double().requires_grad_() if isinstance(v, Tensor) else v
                                         for v in case.differentiable()))  # fmt: skip
    honest = gradients("reference", case.differentiable())
    inputs = case.differentiable()
    ours = tuple(moved(value.detach()).requires_grad_() if isinstance(value, Tensor) else value for value in inputs)
    for got, like, true in zip(gradients("triton", ours), honest, truth, strict=True):
        assert_within_yardstick(got.cpu(), like, true)


def test_registration_is_sound(monkeypatch):
    # without the guards, which a result would begin behind
    monkeypatch.setattr(_outputs, "empty", lambda shape, dtype, device, channels_last=False: torch.empty(
        tuple(shape), dtype=dtype, device=device, memory_format=LAST if channels_last else torch.contiguous_format
    ))  # fmt: skip
    arguments = [moved(value) for value in aligned("norm-bias-up-residual").differentiable()]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    with ops.backend("triton"):
        torch.library.opcheck(torch.ops.purify.conv3x3.default, arguments, test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_precisions_are_left_to_the_next_engine(dtype):
    with pytest.raises(RuntimeError, match="no triton kernel for these arguments"):
        run(Case("conv3x3", (1, 4, 2, 2), dtype))


def test_it_runs_unforced_only_where_it_was_measured_to_win(monkeypatch):
    x, weight, *_ = map(moved, Case("conv3x3", (1, 20, 4, 4), HALF, variant="plain").arguments())
    declines, around = ops.OPS["conv3x3"].engines["triton"].declines, ops.Around()
    tile = ConvTile(16, 32, 32, 1, takes_norm=False, num_warps=4, num_stages=3)
    with switches.anywhere(), switches.switched(split_k=True):
        assert "cuDNN" in declines(x, weight, None, around)
        monkeypatch.setitem(_tiles.CONV3X3_WINS, (16, 20, len(weight), conv3x3.capability(x)), tile)
        assert declines(x, weight, None, around) is None
        assert "cuDNN" in declines(x[:, :, :2], weight, None, around)  # fewer pixels
        many = x.reshape(16, 20, 1, 1)  # as many pixels, of more images than were measured
        assert "cuDNN" in declines(many, weight, None, around)
        assert declines(x.reshape(4, 20, 2, 2), weight, None, around) is None
        assert "cuDNN" in declines(x[:, :, :2, :2], weight, None, ops.Around(upsample=True))  # as many, but not what was measured
        assert "PyTorch differentiates" in declines(x.clone().requires_grad_(), weight, None, around)
        with switches.switched(split_k=False):
            assert "cuDNN" in declines(x, weight, None, around)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)], ids=str)
@pytest.mark.parametrize(("channels", "out_channels"), [(3, 128), (128, 3), (96, 192), (256, 256), (2048, 1024)])
def test_guessed_tiles_fit_the_gpu_and_the_problem(channels, out_channels, capability, monkeypatch):
    monkeypatch.setattr(_tiles, "CONV3X3_WINS", {})  # what was measured is no guess
    for pixels in (1, 16, 1024, 2**14, 2**24):
        tile = _tiles.conv3x3(pixels, channels, out_channels, capability)
        operands = 2 * (tile.block_m + tile.block_n) * tile.block_c * tile.num_stages
        assert operands <= _tiles.shared_memory(capability)
        assert tile.block_n < 2 * max(out_channels, 16)
        assert tile.splits == 1 or 9 * channels >= 8 * tile.block_c * tile.splits


def test_measured_tiles_fit_the_gpu_and_the_problem():
    assert _tiles.CONV3X3_WINS
    for (_, channels, out_channels, capability), tile in _tiles.CONV3X3_WINS.items():
        assert 2 * (tile.block_m + tile.block_n) * tile.block_c * tile.num_stages <= _tiles.shared_memory(capability)
        assert tile.block_n <= out_channels and 9 * channels >= tile.block_c * tile.splits
