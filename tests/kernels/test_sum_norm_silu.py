"""The sum before a norm, the norm and SiLU in Triton against its specification: slabs of whole groups, and chunks of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.kernels import _tiles
from purify_engine.kernels.sum_norm_silu import sum_norm_silu
from purify_engine.ops import switches
from purify_engine.reference import layers, sums
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import cases
from tests.kernels.triton_runner import moved, run

LAYOUTS = {True: torch.contiguous_format, False: torch.channels_last}  # by whether x is contiguous
HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


class Layer(NamedTuple):
    """Channels of x and of its skip, rows and columns of pixels, groups."""

    own: int
    others: int
    height: int
    width: int
    groups: int


WHOLE = [
    Layer(32, 0, 4, 4, 4),
    Layer(16, 8, 4, 4, 2),  # 12 channels a group, of which one straddles both images
    Layer(36, 0, 2, 2, 3),  # 36 channels are 32 and 4, and three groups
    Layer(16, 8, 3, 5, 2),  # pixels that fill no power of two
    Layer(64, 32, 1, 2, 8),
    Layer(32, 16, 4, 4, 12),  # channels that are no power of two, in groups that are
    Layer(32, 0, 1, 1, 32),  # groups of one element
]


class Inputs(NamedTuple):
    x: Tensor
    residual: Tensor | None
    bias: Tensor | None
    temb: Tensor | None
    gain: float
    skip: Tensor | None
    norm: tuple[Any, ...]
    silu: bool = True
    write_sum: bool = True


def inputs(layer: Layer, dtype: torch.dtype, batch: int = 2, layout: torch.memory_format = torch.channels_last) -> Inputs:
    """All that may be added, a scale and a shift that are two halves of one tensor, all in one precision."""
    draw = torch.Generator().manual_seed(sum(layer))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=DOUBLE).to(dtype)

    def images(channels: int, mean: float) -> Tensor:
        return (normal(batch, channels, layer.height, layer.width) + mean).contiguous(memory_format=layout)

    own, channels = layer.own, layer.own + layer.others
    x, residual, skip = images(own, 3.0), images(own, 0.0), images(layer.others, -1.0) if layer.others else None
    rows = normal(1, 2 * channels).expand(batch, -1).chunk(2, dim=1)
    norm = (normal(channels), normal(channels), *rows, layer.groups, 1e-5)
    return Inputs(x, residual, normal(own), normal(batch, own), 0.5**0.5, skip, norm)


def called(given: Inputs) -> tuple[Tensor | None, Tensor]:
    """The kernels' results, where they run."""
    return sum_norm_silu(*(tuple(map(moved, each)) if isinstance(each, tuple) else moved(each) for each in given))


def assert_right(given: Inputs, slack: float = 64.0) -> tuple[Tensor | None, Tensor]:
    """The sum is that of float64, rounded once, and the skip behind it; y is its norm, rounded once. Returns both.

    `slack` counts roundings of the arithmetic, which is float32 for 16 bits.
    """
    total, y = called(given)
    if not given.write_sum:
        assert total is None
        total, again = called(given._replace(write_sum=True))
        assert torch.equal(y, again)
    # Half a unit in the last place; the interpreter cuts bfloat16 off, and then it is a whole one.
    unit = torch.finfo(given.x.dtype).eps
    work = slack * torch.finfo(FLOAT if given.x.dtype.itemsize == 2 else given.x.dtype).eps
    added, largest = in_float64(given)
    assert total.is_contiguous(memory_format=LAYOUTS[given.x.is_contiguous()])
    assert ((total.cpu() - added).abs() <= unit * added.abs() + work * largest).all()
    assert given.skip is None or torch.equal(total[:, given.x.shape[1] :].cpu(), given.skip)
    *affine, groups, eps = given.norm
    wide = [None if each is None else each.double() for each in affine]
    expected = layers.group_norm_silu(total.cpu().double(), *wide, groups, eps, given.silu)
    assert y.dtype == given.x.dtype
    assert y.is_contiguous(memory_format=LAYOUTS[given.x.is_contiguous()])
    assert ((y.cpu() - expected).abs() <= unit * expected.abs() + work * (1 + expected.abs())).all()
    return (total if given.write_sum else None), y


def in_float64(given: Inputs) -> tuple[Tensor, Tensor]:
    """What is normed, and that of the absolute values: how large what is rounded may be. A skip is not rounded."""
    bias = None if given.bias is None else given.bias[:, None, None]
    temb = None if given.temb is None else given.temb[:, :, None, None]
    wide = [term.double() for term in (given.x, given.residual, bias, temb) if term is not None]
    total, largest = given.gain * sum(wide), given.gain * sum(term.abs() for term in wide)
    if given.skip is None:
        return total, largest
    skip = given.skip.double()
    return torch.cat([total, skip], dim=1), torch.cat([largest, torch.zeros_like(skip)], dim=1)


@pytest.fixture(params=[1, 3], ids=["a tile a chunk", "several tiles a chunk"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 pixels, or of three times as many."""
    tile = _tiles.SlabTile(8, 0, 16, request.param, 1, True)
    monkeypatch.setattr(_tiles, "slabs", lambda *layer: [tile])


# Every seventh, which shares no factor with the numbers of dtypes, layouts and variants.
@pytest.mark.parametrize("case", cases("sum_norm_silu")[::7], ids=str)
def test_the_op_on_this_engine_is_the_specification(case):
    assert_agrees(case, run(case), sums.sum_norm_silu)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("layer", WHOLE, ids=str)
def test_slabs_of_whole_groups_are_the_specification(layer, dtype):
    assert_right(inputs(layer, dtype))


@pytest.mark.parametrize("layer", [Layer(16, 8, 7, 9, 2), Layer(16, 0, 8, 8, 2), Layer(8, 16, 5, 5, 6)], ids=str)
def test_chunks_are_the_specification(layer, cut):
    assert_right(inputs(layer, HALF, batch=1)._replace(write_sum=False))


@pytest.mark.parametrize("layer", [Layer(16, 8, 7, 9, 3), Layer(16, 0, 6, 6, 4)], ids=str)
@pytest.mark.parametrize("write_sum", [True, False])
def test_slabs_that_are_read_twice_are_the_specification(layer, write_sum, monkeypatch):
    monkeypatch.setattr(_tiles, "slabs", lambda *layer: [_tiles.SlabTile(8, 0, 16, 4, 1, False)])
    given = inputs(layer, HALF)._replace(write_sum=write_sum)
    assert_right(given)
    assert_right(given._replace(residual=None, bias=None, temb=None, gain=1.0))
    weight, bias, scale, shift, *rest = given.norm
    last = given._replace(
        x=given.x[1:], residual=given.residual[1:], temb=given.temb[1:], norm=(weight, bias, scale[1:], shift[1:], *rest)
    )
    alone = called(last._replace(skip=None if given.skip is None else given.skip[1:]))[1]
    assert torch.equal(alone, called(given)[1][1:])


@pytest.mark.parametrize("layer", [Layer(16, 8, 4, 4, 2), Layer(32, 0, 4, 4, 4)], ids=str)
@pytest.mark.parametrize("absent", ["residual", "bias", "temb", "all"])
def test_what_is_absent_is_not_added(layer, absent):
    given = inputs(layer, HALF)
    names = ("residual", "bias", "temb") if absent == "all" else (absent,)
    given = given._replace(**dict.fromkeys(names), silu=absent != "bias")
    weight, bias, _, _, *rest = given.norm
    assert_right(given._replace(norm=(weight, bias, None, None, *rest)))
    assert_right(given._replace(gain=1.0, write_sum=False))


def test_only_a_norm_is_the_norm_of_x_in_chunks_too(cut):
    given = inputs(Layer(16, 8, 7, 9, 2), HALF)
    assert_right(given._replace(residual=None, bias=None, temb=None, gain=1.0, write_sum=False))


def test_one_time_embedding_serves_all_images():
    given = inputs(Layer(16, 8, 4, 4, 2), HALF, batch=3)
    total, y = assert_right(given._replace(temb=given.temb[:1]))
    same, again = assert_right(given._replace(temb=given.temb[:1].repeat(3, 1)))
    assert torch.equal(total, same)
    assert torch.equal(y, again)


@pytest.mark.parametrize(
    ("layer", "dtype", "layout"),
    [
        (Layer(16, 8, 4, 4, 2), FLOAT, torch.channels_last),
        (Layer(16, 8, 4, 4, 2), DOUBLE, torch.channels_last),
        (Layer(16, 8, 4, 4, 2), HALF, torch.contiguous_format),
        (Layer(5, 7, 3, 3, 3), HALF, torch.channels_last),  # the groups fit neither image
    ],
    ids=str,
)
def test_what_the_slabs_do_not_take_is_right_all_the_same(layer, dtype, layout):
    assert_right(inputs(layer, dtype, layout=layout))
    given = inputs(layer, dtype, layout=layout)._replace(residual=None, bias=None, temb=None, gain=1.0)
    total, _ = assert_right(given)
    assert total.data_ptr() != given.x.data_ptr()


def test_an_image_gets_the_same_bits_in_any_batch():
    given = inputs(Layer(16, 8, 4, 4, 2), HALF, batch=3)
    assert_same_bits(given)


def test_an_image_gets_the_same_bits_in_any_batch_in_chunks_too(cut):
    assert_same_bits(inputs(Layer(16, 8, 5, 5, 2), HALF, batch=3))


def assert_same_bits(given: Inputs) -> None:
    total, y = assert_right(given)
    weight, bias, scale, shift, *rest = given.norm
    some = slice(1, 3)
    part = given._replace(
        x=given.x[some], residual=given.residual[some], temb=given.temb[some], skip=given.skip[some],
        norm=(weight, bias, scale[some], shift[some], *rest),
    )  # fmt: skip
    part_total, part_y = assert_right(part)
    assert torch.equal(part_total, total[some])
    assert torch.equal(part_y, y[some])


@pytest.mark.parametrize("chunks", [False, True])
def test_a_poisoned_image_never_touches_its_batch(chunks, monkeypatch):
    if chunks:
        monkeypatch.setattr(_tiles, "slabs", lambda *layer: [_tiles.SlabTile(8, 0, 16, 1, 1, True)])
    given = inputs(Layer(16, 0, 4, 8, 2), HALF, batch=3)
    _, clean = assert_right(given)
    given.x[1, 0, 0, 0] = torch.nan
    _, y = called(given)
    assert y[1, :8].isnan().all()
    assert torch.equal(y[1, 8:], clean[1, 8:])
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("chunks", [False, True])
def test_a_large_mean_does_not_cancel(chunks, monkeypatch):
    if chunks:
        monkeypatch.setattr(_tiles, "slabs", lambda *layer: [_tiles.SlabTile(8, 0, 16, 2, 1, True)])
    given = inputs(Layer(16, 0, 8, 8, 2), HALF)._replace(residual=None, bias=None, temb=None, gain=1.0)
    # A spread of 1 around 1024 keeps every integer in float16; the mean of such numbers is wrong by 1024 roundings of 1.
    x = (given.x.float().round() + 1024).half().contiguous(memory_format=torch.channels_last)
    assert_right(given._replace(x=x), slack=4096)


@pytest.mark.parametrize("far", [100.0, 3e4, float("inf")])
def test_silu_is_its_limits_far_out(far):
    x, one = moved(torch.zeros(1, 8, 1, 1, dtype=HALF)), moved(torch.ones(8, dtype=HALF))
    for sign in (1, -1):
        _, y = sum_norm_silu(x, None, None, None, 1.0, None, (one, sign * far * one, None, None, 8, 1e-5), True, False)
        expected = far if sign == 1 else 0.0
        assert (y == expected).all() or (far == float("inf") and sign == -1)  # -inf times 0, as in PyTorch


def test_the_norm_in_16_bits_is_this_kernel_where_the_switch_is_on():
    given = inputs(Layer(16, 8, 4, 4, 2), HALF)
    arguments = moved(given.x), *map(moved, given.norm), True, moved(given.skip)
    with ops.backend("triton"), switches.anywhere():
        lean = ops.group_norm_silu(*arguments)
        with switches.switched(lean_norm=False):
            other = ops.group_norm_silu(*arguments)
    plain = given._replace(residual=None, bias=None, temb=None, gain=1.0, write_sum=False)
    assert torch.equal(lean, assert_right(plain)[1])
    assert (lean - other).abs().max() <= 2**-10 * other.abs().max()


# (channels of x, of the skip, pixels a side) of the published U-Nets.
LAYERS = [
    (128, 0, 32), (256, 128, 32), (128, 128, 32), (128, 0, 16), (256, 0, 16), (256, 256, 16), (256, 128, 16), (256, 0, 8),
    (256, 256, 8), (256, 0, 4), (256, 256, 4), (256, 0, 256), (256, 256, 256), (512, 256, 128), (512, 512, 64), (512, 256, 64),
    (1024, 0, 32), (1024, 512, 32), (1024, 512, 16), (1024, 1024, 16), (1024, 1024, 8),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_slabs_cover_the_published_layers(layer):
    own, others, side = layer
    channels = own + others
    tiles = _tiles.slabs(channels, own, side**2, 32)
    assert len(tiles) == len(set(tiles)) > 0
    assert _tiles.slab(channels, own, side**2, 32) == _tiles.SLABS.get((channels, side**2, 32), tiles[0])
    for tile in tiles:
        size = tile.first + tile.second
        assert channels % size == 0 and own % size in (0, tile.first)
        assert tile.chunks(side**2) <= 2 * _tiles.MANY_CHUNKS
        assert size * tile.rows <= _tiles.MOST_IN_SLAB
        if not tile.cut:
            assert size % (channels // 32) == 0 and tile.chunks(side**2) == 1
    assert 2 * (tiles[0].first + tiles[0].second) >= 32  # every sector of memory that is read is used


def test_a_slab_that_shares_sectors_of_memory_gives_way_to_wider_ones_or_chunks():
    assert _tiles.slab(384, 256, 1024, 32).cut  # 24 channels would fit
    wide = _tiles.slab(384, 256, 256, 32)
    assert (wide.first, wide.second) == (64, 32)


def test_a_measured_tile_is_taken_and_one_that_does_not_fit_is_not(monkeypatch):
    *_, other = _tiles.slabs(256, 256, 256, 32)
    monkeypatch.setattr(_tiles, "SLABS", {(256, 256, 32): other})
    assert _tiles.slab(256, 256, 256, 32) == other
    monkeypatch.setitem(_tiles.SLABS, (256, 256, 32), other._replace(rows=8))
    assert _tiles.slab(256, 256, 256, 32) == _tiles.slabs(256, 256, 256, 32)[0]
