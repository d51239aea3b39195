"""Geometry without networks: what the network is given, how the parts are joined, and that no seams show (docs/math.md E24)."""

import pytest
import torch

from purify_engine.config import PurifierConfig, ScheduleConfig, UNetConfig
from purify_engine.engine.bridges import Resized, Tiled, make_bridge
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.reference.schedules import make_schedule
from purify_engine.testing.oracles import GaussianWorld
from purify_engine.types import NoiseKey

NOISE = NoiseKey(torch.tensor(11), torch.arange(2))
SIZES = pytest.mark.parametrize("size", [(8, 8), (9, 16), (13, 20), (31, 8)], ids=str)


def sized(height, width, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_half_the_pixels_are_means_of_two_and_twice_as_many_are_mixed_three_to_one():
    """Half-pixel centres, no antialiasing: what DiffPure's images of 224 pixels go through."""
    wide, bridge = torch.arange(32.0).repeat(1, 1, 8, 1), Resized(8)
    ((narrow, noise),) = bridge.parts(wide, NOISE)
    assert noise is NOISE
    assert narrow[0, 0].unique(dim=0).tolist() == [[1.5 + 4 * pixel for pixel in range(8)]]  # of four, the two in the middle
    double = torch.empty(1, 1, 16, 16)
    back = bridge.joined([narrow], double)[0, 0].unique(dim=0)[0].tolist()
    assert back == [1.5, *(1.5 + 1 + 2 * pixel for pixel in range(14)), 29.5]


@SIZES
@pytest.mark.parametrize("stride", [1, 3, 6, 8])
def test_tiles_that_nothing_changes_are_the_image_again(size, stride):
    """They lie inside the image, cover it, and their weights sum to one."""
    x, bridge = sized(*size), Tiled(8, stride)
    parts = [part for part, _ in bridge.parts(x, NOISE)]
    assert all(part.shape == (2, 3, 8, 8) and part.is_contiguous() for part in parts)
    # At stride 1 a pixel is the sum of 64 tiles, each rounded three times: 67 roundings of 2**-53.
    assert (bridge.joined(parts, x) - x).abs().max() <= 67 * 2**-53 * x.abs().max()
    assert len({int(noise.key) for _, noise in bridge.parts(x, NOISE)}) == len(parts)


@pytest.mark.parametrize("side", [8, 9, 32])
def test_where_two_tiles_meet_one_fades_into_the_other(side):
    """Tiles as different as can be, 0 and 1 in turn: from one pixel to the next there are no more than even steps."""
    bridge = make_bridge(PurifierConfig(sizes="tile"), UNetConfig(image_size=side, channel_mult=(1,)))
    x = torch.zeros(1, 1, side, 3 * side + 1, dtype=torch.float64)
    count = sum(1 for _ in bridge.parts(x, NOISE))
    row = bridge.joined((torch.full_like(x[..., :side], index % 2) for index in range(count)), x)[0, 0, 0]
    overlap = side - side * 3 // 4
    assert row.min() == 0 and row.max() == 1
    assert row.diff().abs().max() <= (1 + 1e-12) / (overlap + 1)


@SIZES
def test_one_tile_is_asked_for_at_a_time(size):
    """Memory is that of one tile position of the batch, and of the result."""
    x, bridge, alive = sized(*size), Tiled(8, 4), []

    def purified():
        for part, _ in bridge.parts(x, NOISE):
            alive.append("made")
            yield part
            alive.append("joined")

    bridge.joined(purified(), x)
    assert alive == ["made", "joined"] * (len(alive) // 2) and alive


@SIZES
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_gaussian_world_shows_no_seams(size, sampler):
    """There purification is x -> gain x + shift + noise in every pixel, so two images part by their gain, whatever the tile."""
    world, bridge = GaussianWorld(), Tiled(8, 6)
    plan = write_plan(make_schedule(ScheduleConfig()), 100, 3, sampler)

    def purified(x):
        parts = bridge.parts(x, NOISE)
        outs = (Loop().run(ReverseProcess(plan, world.denoiser, NoGuide(), noise), part) for part, noise in parts)
        return bridge.joined(outs, x)

    one, other = sized(*size), sized(*size, seed=1)
    gain = world.purified(1.0, plan)[0] - world.purified(0.0, plan)[0]
    assert 0 < gain < 1
    assert (purified(one) - purified(other) - gain * (one - other)).abs().max() < 1e-12
