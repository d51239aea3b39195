"""Images of other sizes than the network's: resized, in tiles, or as they are (docs/math.md E24); and images not cut off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from purify_engine.engine.bridges import TILES
from purify_engine.engine.loop import Loop
from purify_engine.reference.philox import derive_seed
from purify_engine.types import NoiseKey
from tests.test_purifier import images
from tests.test_purifier_state import EXECUTIONS, MODES, apart, assert_close, gradient, made

OTHERS = pytest.mark.parametrize("sizes", ["native", "resize", "tile"])
DIFFERENTIATED = pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "blind"])


def sized(height, width, count=2, seed=3, dtype=torch.float64):
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def double(sizes="exact", **options):
    return made("loop", sizes=sizes, **{"clamp": False, "num_steps": 2, **options}).double()


def resized(x, height, width):
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def resized_by_hand(model):
    """Resize, purify, resize: each of the three as a user would call it."""
    return lambda x: resized(model(resized(x, 8, 8)), *x.shape[2:])


def tiled_by_hand(model, down, across):
    """Every tile purified under the seed of its place, then averaged by distance from those edges that are not the image's."""

    def weight(start, starts):
        before = [4, 4, 4, 4] if start == starts[0] else [1, 2, 3, 4]
        behind = [4, 4, 4, 4] if start == starts[-1] else [4, 3, 2, 1]
        return torch.tensor(before + behind, dtype=torch.float64)

    def purified(x):
        total, weights = torch.zeros_like(x), torch.zeros_like(x)
        for top, left in [(top, left) for top in down for left in across]:
            seed = int(derive_seed(torch.tensor(0), TILES + top * 2**24 + left)) if top or left else 0
            tile = model.configured(seed=seed)(x[:, :, top : top + 8, left : left + 8])
            around = (left, x.shape[3] - left - 8, top, x.shape[2] - top - 8)
            by_place = weight(top, down)[:, None] * weight(left, across)
            total, weights = total + F.pad(by_place * tile, around), weights + F.pad(by_place, around)
        return total / weights

    return purified


def native_by_hand(model):
    """The loop at the images' own size."""

    def purified(x):
        noise = NoiseKey(model.seed, torch.zeros(len(x), dtype=torch.int64))
        return (Loop().run(model._purification().process(x.dtype, noise), 2 * x - 1) + 1) / 2

    return purified


@pytest.mark.parametrize("size", [(13, 20), (9, 7), (3, 1)], ids=str)
def test_resizing_is_a_resize_before_and_after(size):
    x = sized(*size)
    assert_close(double("resize", cycles=2)(x), resized_by_hand(double(cycles=2))(x), 1e-12)


TILED = [  # height, width and stride; where tiles start, down and across
    ((13, 20, None), [0, 5], [0, 6, 12]),
    ((16, 9, 8), [0, 8], [0, 1]),
    ((8, 10, 1), [0], [0, 1, 2]),
]


@pytest.mark.parametrize(("size", "down", "across"), TILED, ids=str)
def test_tiles_are_purified_one_by_one_and_averaged(size, down, across):
    height, width, stride = size
    x, options = sized(height, width, count=1), {"cycles": 2, "num_steps": 1}
    expected = tiled_by_hand(double(**options), down, across)(x)
    assert_close(double("tile", tile_stride=stride, **options)(x), expected, 1e-12)


@pytest.mark.parametrize("size", [(8, 14), (6, 4), (16, 2)], ids=str)
def test_at_its_own_size_an_image_goes_through_the_loop_as_it_is(size):
    x = sized(*size)
    assert_close(double("native")(x), native_by_hand(double())(x), 1e-12)


@DIFFERENTIATED
def test_every_gradient_passes_through_a_bridge_as_through_its_parts(mode):
    x, model = sized(8, 12, count=1), double(gradient=mode, scale=30.0, surrogate_steps=1)
    exact = {"resize": resized_by_hand(model), "tile": tiled_by_hand(model, [0], [0, 4])}
    for sizes, by_hand in exact.items():
        found = gradient(model.configured(sizes=sizes), x)
        assert_close(found, gradient(by_hand, x), 1e-12)
        assert found.abs().max() > 0


@OTHERS
def test_the_exact_gradient_equals_central_differences(sizes):
    model, x, h = double(sizes, scale=30.0), sized(8, 12, count=1, seed=5), 1e-5
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    difference = (weights * (model(x + h * v) - model(x - h * v))).sum() / (2 * h)
    grad = gradient(model, x)
    assert abs((grad * v).sum() - difference) <= 1e-6 * max(abs(difference), 1e-3 * grad.norm() * v.norm())


@OTHERS
def test_what_attackers_take_for_the_purifier_knows_of_no_bridge(sizes):
    blind, x = double(sizes, gradient="blind"), sized(8, 12)
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    assert_close(gradient(blind, x), weights, 1e-15)
    assert_close(blind(x.requires_grad_()).detach(), x.detach(), 1e-15)


@EXECUTIONS
def test_the_networks_own_size_is_taken_as_it_is_bit_for_bit(execution):
    exact, x = made(execution, num_steps=2), images(1)
    expected, slope = exact(x), gradient(exact, x)
    for sizes in ("native", "resize", "tile"):
        used = exact.configured(sizes=sizes)
        assert torch.equal(used(x), expected)
        assert torch.equal(gradient(used, x), slope)


def test_graphs_of_one_purifier_serve_several_sizes_in_turn():
    replayed, stepped = made("graph", sizes="native"), made("loop", sizes="native")
    for height, width in ((8, 14), (10, 4), (8, 14)):
        x = sized(height, width, count=1, dtype=torch.float32)
        assert_close(replayed(x), stepped(x))
    assert_close(gradient(replayed, x), gradient(stepped, x), 1e-4)


@pytest.mark.parametrize("sizes", ["resize", "tile"])
def test_parts_of_one_shape_are_replayed_by_one_graph(sizes):
    replayed = made("graph", sizes=sizes)
    for height, width in ((8, 14), (13, 9)):
        x = sized(height, width, count=1, dtype=torch.float32)
        assert_close(replayed(x), made("loop", sizes=sizes)(x))
    assert len(replayed._purification().guided.replay._graphs) == 1


def test_a_tile_has_noise_of_its_own_by_its_place_alone():
    model, tile = made(sizes="tile", tile_stride=8, kind="none"), sized(8, 8, dtype=torch.float32)
    out = model(tile.repeat(1, 1, 2, 2))
    corners = [out[:, :, top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8)]
    assert all(apart(one, other) for index, one in enumerate(corners) for other in corners[:index])
    wider = model(tile.repeat(1, 1, 2, 3))  # another image, and more tiles before the third
    assert_close(wider[:, :, :, :16], out)
    backwards = model(tile.repeat(1, 1, 2, 2).flip(0))
    assert_close(backwards.flip(0), out)


@OTHERS
def test_the_noise_of_an_image_is_the_same_in_any_batch(sizes):
    model, x, ids = made(sizes=sizes), sized(10, 12, count=5, dtype=torch.float32), torch.tensor([3, 2**40, 0, 8, 1])
    pieces = [model(part, ids=part_ids) for part, part_ids in zip(x.split(2), ids.split(2), strict=True)]
    assert_close(torch.cat(pieces), model(x, ids=ids))


@pytest.mark.parametrize(
    ("sizes", "shapes"),
    [("native", [(8, 12)] * 4), ("resize", [(8, 8)] * 4), ("tile", [(8, 8)] * 8)],
)
def test_the_callback_sees_what_the_network_sees_part_by_part(sizes, shapes):
    seen = []
    double(sizes, cycles=2)(sized(8, 12), callback_on_step_end=lambda step, t, x_t: seen.append((step, tuple(x_t.shape))))
    assert seen == [(index % 2, (2, 1, *shape)) for index, shape in enumerate(shapes)]


def test_calibration_measures_the_pull_on_what_the_network_sees():
    once = {"num_steps": 1, "t_star": 100}
    x = sized(12, 6)
    assert double("resize", **once).calibrate(x, 0.3) == pytest.approx(double(**once).calibrate(resized(x, 8, 8), 0.3), rel=1e-9)
    x = sized(8, 16, count=1)  # two tiles, each pulled once: the median is their mean
    places = {0: x[..., :8], int(derive_seed(torch.tensor(0), TILES + 8)): x[..., 8:]}
    pulls = [0.3 / double(seed=seed, **once).calibrate(tile, 0.3) for seed, tile in places.items()]
    assert pulls[0] != pytest.approx(pulls[1], rel=1e-3)
    found = double("tile", tile_stride=8, **once).calibrate(x, 0.3)
    assert found == pytest.approx(0.3 / (sum(pulls) / 2), rel=1e-9)


def test_memory_is_reported_for_images_of_any_size():
    def report(sizes, *size):
        return made(sizes=sizes).memory_report(*size)

    own = report("exact")
    assert all(report(sizes) == own for sizes in ("native", "resize", "tile"))
    assert report("resize", 64, 32) == own
    assert report("tile", 8, 14) == {**own, "trajectory_per_image": 2 * own["trajectory_per_image"]}
    native = report("native", 16, 24)
    assert native["trajectory_per_image"] == 6 * own["trajectory_per_image"] and native["step_per_image"] > own["step_per_image"]
    with pytest.raises(ValueError, match=r"images must be \[B, 1, 8, 8\], got \[1, 1, 16, 8\]"):
        report("exact", 16)


REFUSED = [
    ("exact", (8, 7), r"images must be \[B, 1, 8, 8\], got \[2, 1, 8, 7\]; the network takes 8x8: resize it first, or set "
     r"sizes \(--sizes\) to resize, tile or native"),
    ("native", (8, 7), r"images must be \[B, 1, H, W\], got \[2, 1, 8, 7\]; the network takes multiples of 2: .* resize or tile"),
    ("native", (3, 8), "multiples of 2"),
    ("tile", (8, 7), r"got \[2, 1, 8, 7\]; a tile takes 8x8: enlarge it first, or set sizes \(--sizes\) to resize or native"),
    ("tile", (7, 30), "a tile takes 8x8"),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "size", "says"), REFUSED, ids=str)
def test_a_size_that_is_not_taken_is_refused_with_what_to_do(sizes, size, says):
    with pytest.raises(ValueError, match=says) as caught:
        made(sizes=sizes)(sized(*size))
    assert "\n" not in str(caught.value)
    assert made(sizes=sizes).bridge.refusal(*size) in str(caught.value) and made(sizes=sizes).bridge.refusal(8, 8) is None


def test_tiles_with_gaps_between_them_are_refused():
    with pytest.raises(ValueError, match=r"tile_stride must be in \[1, 8\], the network's size, got 9"):
        made(sizes="tile", tile_stride=9)
    assert made(sizes="resize", tile_stride=9).config.tile_stride == 9  # which tiles nothing


@pytest.mark.parametrize("sizes", ["exact", "native", "resize", "tile"])
def test_channels_that_come_last_are_told_apart_from_another_size(sizes):
    with pytest.raises(ValueError, match=r"images must be NCHW .*, got NHWC \[2, 8, 8, 1\]; use images.permute\(0, 3, 1, 2\)"):
        made(sizes=sizes)(sized(8, 8).permute(0, 2, 3, 1))


def test_an_image_that_is_not_cut_off_keeps_its_values_and_its_gradient():
    """White images end partly outside [0, 1]."""
    cut = made(num_steps=2)
    whole, x = cut.configured(clamp=False), torch.ones(3, 1, 8, 8)
    free = whole(x)
    outside = (free < 0) | (free > 1)
    assert 0 < outside.float().mean() < 1
    assert torch.equal(free.clamp(0, 1), cut(x))

    def pull(model):  # of what leaves [0, 1] alone
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(model(leaf)[outside].sum(), leaf)[0].abs().max()

    assert pull(cut) == 0 and pull(whole) > 0


def test_the_gradient_of_images_that_are_not_cut_off_equals_central_differences():
    model, x, h = double(scale=30.0), sized(8, 8, count=1, seed=6).round(), 1e-5  # black and white: many end outside
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    difference = (weights * (model(x + h * v) - model(x - h * v))).sum() / (2 * h)
    grad = gradient(model, x)
    assert abs((grad * v).sum() - difference) <= 1e-6 * max(abs(difference), 1e-3 * grad.norm() * v.norm())


def test_images_that_are_not_cut_off_keep_their_dtype():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert made(clamp=False)(images().to(dtype)).dtype == dtype
