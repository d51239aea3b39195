"""The images that go in and come out: their range, their layout in memory, and the numbers that stand beside them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from purify_engine import Classifier, Denoiser, GuidedPurifier, UNet
from purify_engine.config import GuidanceConfig, PurifierConfig
from purify_engine.data import purify_dataset
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.self_test import gradient_self_test
from purify_engine.images import from_model_space, image_draws, image_ids, in_model_space
from tests.test_purifier import GUIDE, UNET, images
from tests.test_purifier_state import EXECUTIONS, MODES, assert_close, gradient, made

RANGES = pytest.mark.parametrize("bounds", [(-1, 1), (0, 255), (0.5, 2)], ids=str)


def stretched(x, bounds):
    """Images in [0, 1] as images in `bounds`."""
    return x * (bounds[1] - bounds[0]) + bounds[0]


@pytest.fixture(scope="module")
def double():
    """A guided purifier in float64, of one step, that cuts nothing off."""
    return made("loop", num_steps=1, clamp=False).double()


@RANGES
def test_images_of_another_range_are_purified_as_the_same_images_in_the_unit_range(bounds, double):
    x, other = images(2, dtype=torch.float64), double.configured(image_range=bounds)
    assert_close(other(stretched(x, bounds)), stretched(double(x), bounds), 1e-12)
    assert_close(gradient(other, stretched(x, bounds)), gradient(double, x), 1e-10)
    assert other.calibrate(stretched(x, bounds), 0.2) == pytest.approx(double.calibrate(x, 0.2), rel=1e-10)
    assert other.memory_report() == double.memory_report()


@RANGES
def test_what_comes_out_is_cut_to_the_range_where_it_is_to_be(bounds, double):
    cut, whole = (double.configured(image_range=bounds, clamp=clamp) for clamp in (True, False))
    x = stretched(images(dtype=torch.float64), bounds)
    assert whole(x).min() < bounds[0] and whole(x).max() > bounds[1]
    assert torch.equal(cut(x), whole(x).clamp(*bounds))


@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (0, 255)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_ends_of_the_range_are_the_ends_of_the_models_space(bounds, dtype):
    config = PurifierConfig(image_range=bounds)
    ends = torch.tensor([[[bounds]]], dtype=dtype)
    x = in_model_space(ends, config)
    assert x.flatten().tolist() == [-1, 1] and x.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(from_model_space(x, ends, config), ends)


@pytest.mark.parametrize(
    ("bounds", "x", "says"),
    [
        ((-1, 1), 1.5, r"must be in \[-1, 1\], got values in \[1\.5, 1\.5\]; image_range=.*, clip_input=True"),
        ((0, 255), -1.0, r"must be in \[0, 255\], got values in \[-1, -1\]"),
        ((0, 1), 1.001, r"must be in \[0, 1\], got values in .* image_range=.*, clip_input=True"),
    ],
)
def test_images_outside_are_refused_by_the_name_of_their_range(bounds, x, says):
    model = made("loop", image_range=bounds)
    with pytest.raises(ValueError, match=says) as caught:
        model(torch.full((1, 1, 8, 8), x))
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match=r"float tensor in \[.*\], got torch.uint8; for uint8 use images.float\(\)"):
        model(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@EXECUTIONS
@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1)], ids=str)
def test_images_that_leave_the_range_are_cut_to_it_and_their_gradient_with_them(execution, bounds):
    refusing = made(execution, image_range=bounds, num_steps=1)
    cutting = refusing.configured(clip_input=True)
    outside = stretched(1.5 * images() - 0.25, bounds)
    inside = outside.clamp(*bounds)
    gone = outside != inside
    assert 0.1 < gone.float().mean() < 0.9
    assert torch.equal(cutting(outside), refusing(inside)) and torch.equal(cutting(inside), refusing(inside))
    expected = gradient(refusing, inside)
    assert expected[gone].all() and torch.equal(gradient(cutting, outside), expected.masked_fill(gone, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused_even_where_images_are_cut(value):
    x = images()
    x[2, 0, 3, 4] = value
    with pytest.raises(ValueError, match="images must be finite"):
        made("loop", clip_input=True)(x)


# Shape, dtype and memory format


@pytest.fixture(scope="module")
def coloured():
    """A guided purifier of 3x8x8 images, whose layouts differ in memory."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = Classifier(dataclasses.replace(GUIDE, in_channels=3, mean=(0.3,) * 3, std=(0.4,) * 3))
        unet = UNet(dataclasses.replace(UNET, in_channels=3))
        for parameter in unet.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    config = PurifierConfig(t_star=100, num_steps=2, guidance=GuidanceConfig(scale=0.1), noise="fixed")
    return GuidedPurifier(Denoiser(unet), guide, config, execution="loop")


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "of every second image": lambda x: x.repeat_interleave(2, 0)[::2],
    "expanded": lambda x: x[:1].expand_as(x),
}
CALLS = {
    "without gradient": ({}, torch.no_grad()),
    "inference mode": ({}, torch.inference_mode()),
    "not cut off": ({"clamp": False}, torch.no_grad()),
    "of another range": ({"image_range": (-1, 1)}, torch.no_grad()),
    "cut before": ({"clip_input": True}, torch.no_grad()),
    **{sizes: ({"sizes": sizes}, torch.no_grad()) for sizes in ("native", "resize", "tile")},
    **{f"{sizes} with gradient": ({"sizes": sizes}, torch.enable_grad()) for sizes in ("resize", "tile")},
    **{mode: ({"gradient": mode}, torch.enable_grad()) for mode in MODES},
}


def assert_laid_out_as(out, x):
    """As PyTorch lays out what it makes of `x`."""
    assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)
    assert out.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("call", CALLS)
def test_what_comes_out_is_laid_out_as_what_went_in(coloured, call):
    options, grad = CALLS[call]
    model, columns = coloured.configured(**options), 8 if options.get("sizes", "native") == "native" else 10
    x = torch.rand(2, 3, 8, columns, generator=torch.Generator().manual_seed(4))
    expected = x if call == "blind" else model(x)
    with grad:
        for name in ("contiguous", "channels_last", "transposed"):
            given = LAYOUTS[name](x).requires_grad_(torch.is_grad_enabled())
            out, nothing = model(given), model(given[:0])
            assert_laid_out_as(out, given)
            assert_laid_out_as(nothing, given[:0])
            assert_close(out, expected, 1e-5)
            assert out.requires_grad == nothing.requires_grad == torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_layout_is_kept_in_every_dtype_and_by_a_replay(coloured, dtype):
    replayed = GuidedPurifier(coloured.denoiser, coloured.guide, coloured.config, execution="graph")
    for layout in LAYOUTS.values():
        given = layout(images(6).view(2, 3, 8, 8).to(dtype))
        out, by_loop = replayed(given), coloured(given)
        assert_laid_out_as(out, given)
        assert_laid_out_as(by_loop, given)
        assert torch.equal(out, by_loop)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_each_of_several_draws_is_laid_out_as_the_images(coloured, layout):
    given = LAYOUTS[layout](images(6).view(2, 3, 8, 8))
    for out in coloured(given, num_draws=2):
        assert_laid_out_as(out, given)


def test_nothing_purified_is_not_the_nothing_that_went_in(coloured):
    nothing = torch.zeros(0, 3, 8, 8, requires_grad=True)
    with torch.no_grad():
        assert not coloured(nothing).requires_grad
    coloured(nothing).sum().backward()
    assert nothing.grad.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("layout", ["contiguous", "expanded"])  # of expanded images PyTorch makes contiguous ones, too
def test_an_output_of_the_right_layout_is_not_copied(layout, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *_: pytest.fail("copied"))
    x = torch.zeros(2, 3, 8, 8)
    assert from_model_space(x, LAYOUTS[layout](x), PurifierConfig()).is_contiguous()


# Ids and draws

FIVE = torch.zeros(5, 1, 8, 8)
NUMBERS = [
    [4, 0, 2, 2, 9],
    (4, 0, 2, 2, 9),
    [np.int64(4), 0, torch.tensor(2), 2, 9],
    np.array([9, 2, 2, 0, 4])[::-1],
    np.array([4, 0, 2, 2, 9], np.uint8),
    np.array([4, 0, 2, 2, 9], ">i4"),
    torch.tensor([4, 0, 2, 2, 9]),
    torch.tensor([4, 0, 2, 2, 9], dtype=torch.uint8),
    torch.tensor([4, 0, 2, 2, 9], dtype=torch.int32),
]


@pytest.mark.parametrize("given", NUMBERS, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("read", [image_ids, image_draws])
def test_lists_and_arrays_of_integers_are_taken(read, given):
    found = read(FIVE, given)
    assert found.dtype == torch.int64 and found.tolist() == [4, 0, 2, 2, 9]


@pytest.mark.parametrize("read", [image_ids, image_draws])
def test_none_are_needed_beside_an_empty_batch(read):
    for none in ([], np.array([], np.int64), torch.zeros(0, dtype=torch.int64)):
        assert read(FIVE[:0], none).shape == (0,)


@pytest.mark.parametrize("draw", [7, np.int32(7), np.array(7), torch.tensor(7), torch.tensor(7, dtype=torch.uint8)], ids=repr)
def test_one_draw_for_all_is_a_plain_number(draw):
    found = image_draws(FIVE, draw)
    assert type(found) is int and found == 7


def test_without_any_ids_count_the_places_and_no_draw_is_none():
    assert image_ids(FIVE).tolist() == [0, 1, 2, 3, 4] and image_draws(FIVE) is None
    assert image_draws(FIVE, 2**32 - 1) == 2**32 - 1 and image_ids(FIVE[:1], [2**63 - 1]).tolist() == [2**63 - 1]


NO_NUMBERS = [
    ([0.0, 1, 2, 3, 4], "got 'list of float64'"),
    (torch.rand(5), "got torch.float32"),
    (np.ones(5), "got 'ndarray of float64'"),
    ([True] * 5, "got 'list of bool'"),
    (torch.ones(5, dtype=torch.bool), "got torch.bool"),
    (["a"] * 5, "got 'list of <U1'"),
    ([None] * 5, "got 'list of object'"),
    ([[1], [2, 3]], "got a list that is no array"),
    ([0, 1, 2, 3, -1], "got -1"),
    (torch.tensor([0, 1, 2, 3, -1]), "got -1"),
    ([0, 1, 2, 3], r"got \[4\]"),
    (torch.zeros(5, 1, dtype=torch.int64), r"got \[5, 1\]"),
    (1.5, "got 1.5"),
    (True, "got True"),
    ("3", "got '3'"),
    ({1: 2}, "got {1: 2}"),
]


@pytest.mark.parametrize(("given", "says"), NO_NUMBERS, ids=[says for _, says in NO_NUMBERS])
@pytest.mark.parametrize(("name", "read"), [("ids", image_ids), ("draw", image_draws)])
def test_what_is_no_number_beside_images_is_refused_in_one_line(name, read, given, says):
    with pytest.raises(ValueError, match=f"^{name} must be .*(integer|one id an image).*, {says}") as caught:
        read(FIVE, given)
    assert "\n" not in str(caught.value)


def test_a_draw_has_an_end_and_ids_are_one_each():
    for draw in (-1, 2**32, np.int64(2**32), torch.tensor(-1), [0, 0, 0, 0, 2**32]):
        with pytest.raises(ValueError, match=r"draw must be .*in \[0, 2\*\*32\).*, got "):
            image_draws(FIVE, draw)
    with pytest.raises(ValueError, match=r"ids must be one id an image, \[5\], got \[\]"):
        image_ids(FIVE, 3)


# Files, attacks and command lines hold images in [0, 1]


def test_files_and_attacks_take_purifiers_of_unit_images_alone():
    model = made("loop", image_range=(-1, 1))
    defence = Defence("d", model.guide, model)
    for call in (
        lambda: defence(images(), torch.arange(5), 0),
        lambda: purify_dataset(model, None, None),
        lambda: gradient_self_test(model, images()),
    ):
        with pytest.raises(ValueError, match=r"image_range must be \(0, 1\) here, .*configured\(image_range=\(0, 1\)\)"):
            call()


def test_a_saved_range_comes_back(tmp_path):
    model = made("loop", image_range=(-1, 1), clip_input=True)
    model.save_pretrained(tmp_path / "mine")
    loaded = GuidedPurifier.from_pretrained(tmp_path / "mine")
    assert loaded.config == model.config and loaded.config.image_range == (-1.0, 1.0)
    saved = json.loads((tmp_path / "mine" / "config.json").read_text())
    del saved["purifier"]["image_range"], saved["purifier"]["clip_input"]  # as folders written without them
    (tmp_path / "mine" / "config.json").write_text(json.dumps(saved))
    assert GuidedPurifier.from_pretrained(tmp_path / "mine").config == made("loop").config
