"""guided-diffusion's checkpoints: recognised, read, written back, and computing what their own code computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from purify_engine.config import ScheduleConfig
from purify_engine.models import UNet, published
from purify_engine.models.checkpoints import layout as layouts
from purify_engine.models.checkpoints.guided_diffusion import GUIDED_DIFFUSION
from purify_engine.models.checkpoints.registry import UNETS, recognised
from purify_engine.testing.published import guided_diffusion as theirs
from tests.models.checkpoints.plain_guided_diffusion import PlainUNet

SMALL = theirs.Flags(
    image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,), num_heads=2
)  # fmt: skip
NETWORKS = {
    "residual": replace(SMALL, resblock_updown=True, num_head_channels=16),
    "three levels": replace(
        SMALL, resblock_updown=True, channel_mult=(1, 1, 2), attention_resolutions=(8, 2), num_head_channels=32
    ),
    "convolution": replace(SMALL, num_res_blocks=2),
    "additive, by means": replace(
        SMALL, conv_resample=False, use_scale_shift_norm=False, learn_sigma=False, channels=1, num_heads=1
    ),
    "one level": replace(SMALL, channel_mult=(2,), attention_resolutions=(8,)),
    "new order": replace(SMALL, use_new_attention_order=True),
}
GIVEN = {"residual": {"num_head_channels": 16}, "three levels": {"num_head_channels": 32}, "additive, by means": {"num_heads": 1}}
networks = pytest.mark.parametrize("name", NETWORKS)


def read(weights, given, layout=None, source="a.pt"):
    """The configuration, and our state_dict, of a checkpoint."""
    layout, config, _ = recognised(layouts.shapes_of(weights), UNETS, source, given=given, layout=layout)
    with torch.device("meta"):
        wanted = layouts.shapes_of(UNet(config).state_dict())
    return config, layouts.translate(layout, config, weights, wanted, source)


def small(name):
    """A small checkpoint, what must be said about it, and the layout's name where shapes do not tell it."""
    given = {"image_size": 8, **GIVEN.get(name, {"num_heads": 2})}
    return theirs.state_dict(NETWORKS[name]), given, "guided-diffusion-new-order" if name == "new order" else None


@networks
def test_computes_what_its_own_code_computes(name):
    weights, given, layout = small(name)
    config, ours = read(weights, given, layout)
    unet = UNet(config).eval()
    unet.load_state_dict(ours)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, config.in_channels, 8, 8, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.0, 31.5, 500.0, 999.0])
    with torch.no_grad():
        truth = PlainUNet(weights, NETWORKS[name])(x, t)
        single = unet(x.float(), t)
        double = unet.double()(x, t)
    assert truth.std() > 0.1
    assert (double - truth).abs().max() / truth.abs().max() < 1e-12
    assert (single - truth).abs().max() / truth.abs().max() < 2e-5


@networks
def test_is_written_back_to_the_bit(name):
    weights, given, layout = small(name)
    config, ours = read(weights, given, layout)
    back = layouts.written(next(known for known in UNETS if known.name == (layout or "guided-diffusion")), config, ours)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) and back[key].dtype == weights[key].dtype for key in weights)
    assert all(tensor.is_contiguous() for tensor in ours.values())


# (the published network, the flags of its README, its tensors, its parameters)
FULL_SIZE = {
    "ADM 256": (published.ADM_IMAGENET256, theirs.ADM_256, 566, 552_814_086),
    "improved-diffusion 32": (published.IMPROVED_CIFAR10, theirs.IMPROVED_32, 446, 52_546_438),
    "improved-diffusion 64": (published.IMPROVED_IMAGENET64, theirs.IMPROVED_64, 450, 121_063_942),
    "improved-diffusion 256": (published.IMPROVED_LSUN256, theirs.IMPROVED_256, 426, 113_676_678),
}


@pytest.mark.parametrize(("network", "flags", "tensors", "parameters"), FULL_SIZE.values(), ids=FULL_SIZE.keys())
def test_published_networks_need_nothing_said_and_leave_no_tensor_over(network, flags, tensors, parameters):
    weights = theirs.state_dict(flags, device="meta")
    assert len(weights) == tensors and sum(weight.numel() for weight in weights.values()) == parameters
    config, ours = read(weights, {})
    assert config == network
    assert "published network" in recognised(layouts.shapes_of(weights), UNETS, "a.pt").says[0]
    assert sum(weight.numel() for weight in ours.values()) == parameters
    back = layouts.written(GUIDED_DIFFUSION, config, ours)
    assert layouts.shapes_of(back) == layouts.shapes_of(weights)


def test_schedules_are_those_the_networks_were_trained_on():
    of = GUIDED_DIFFUSION.schedule
    assert of(published.ADM_IMAGENET256, {}) == of(published.ADM_LSUN256, {}) == ScheduleConfig()
    assert of(published.IMPROVED_LSUN256, {}) == ScheduleConfig()
    for network in (published.IMPROVED_CIFAR10, replace(published.IMPROVED_CIFAR10, dropout=0.0), published.IMPROVED_IMAGENET64):
        assert of(network, {}) == ScheduleConfig(kind="cosine", num_timesteps=4000)


def test_a_statement_overrides_what_a_published_network_has():
    config, _ = read(theirs.state_dict(theirs.ADM_256, device="meta"), {"image_size": 512, "num_heads": 4, "time_scale": 0.5})
    assert config == replace(
        published.ADM_IMAGENET256,
        image_size=512, attention_resolutions=(64, 32, 16), num_heads=4, num_head_channels=None, time_scale=0.5,
    )  # fmt: skip


def test_a_file_in_fp16_is_read_into_float32():
    weights, given, _ = small("convolution")
    halves = theirs.in_fp16(weights)
    assert {str(tensor.dtype) for tensor in halves.values()} == {"torch.float16", "torch.float32"}
    _, ours = read(halves, given)
    _, exact = read({name: half.float() for name, half in halves.items()}, given)
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, exact[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("unsaid", ["image_size", "num_heads"])
def test_what_weights_do_not_tell_must_be_given(unsaid):
    weights, given, _ = small("convolution")
    del given[unsaid]
    with pytest.raises(
        ValueError, match=rf"^a.pt: a guided-diffusion network of 32 channels .* do not tell {unsaid}.*must be given$"
    ):
        read(weights, given)


def test_statements_about_nothing_are_refused():
    weights, given, _ = small("convolution")
    with pytest.raises(ValueError, match=r"^a.pt: given must be fields of UNetConfig \(image_size, .*, got 'heads'$"):
        read(weights, given | {"heads": 3})


def _without(prefix):
    return lambda weights: {name: weight for name, weight in weights.items() if not name.startswith(prefix)}


def _with(**shapes):
    return lambda weights: weights | {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


WRONG = {
    "conditional": (_with(label_emb__weight=(10, 128)), r"conditional on classes \(it holds label_emb.weight\)"),
    "classifier": (_without("output_blocks."), "classifier of noisy images, or cut short"),
    "upsampler": (_with(input_blocks__0__0__weight=(32, 6, 3, 3)), "is an upsampler"),
    "cut short": (_without("out."), r"^a.pt: it is no whole guided-diffusion checkpoint, since it lacks 'out.2.weight'$"),
    "a hole": (_without("output_blocks.2.0"), r"^a.pt is no whole guided-diffusion checkpoint: it lacks 'output_blocks.2.0.in_l"),
    "a tensor more": (_with(extra__weight=(3,)), r"^a.pt holds 'extra.weight', for which guided-diffusion has no place"),
    "another shape": (
        _with(middle_block__1__qkv__weight=(96, 64, 1)),
        r"^a.pt: 'middle_block.1.qkv.weight' must make \S+qkv.weight of shape \(192, 64, 1, 1\), got \(96, 64, 1\)$",
    ),
    "one dimension less": (_with(middle_block__1__proj_out__weight=(64,)), "'middle_block.1.proj_out.weight' must make"),
    "widths": (_with(input_blocks__3__0__in_layers__2__weight=(40, 32, 3, 3)), r"of \[32, 40\] channels, which must be multip"),
}


@pytest.mark.parametrize(("harm", "line"), WRONG.values(), ids=WRONG.keys())
def test_every_wrong_file_is_one_line(harm, line):
    weights = harm(theirs.state_dict(SMALL))
    with pytest.raises(ValueError, match=line) as refusal:
        read(weights, {"image_size": 8, "num_heads": 2})
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_every_tensor_is_asked_for_and_its_shape_is_checked():
    """One after the other is left out, and given another shape, whether it says what the network is or not."""
    weights, given, _ = small("residual")
    weights = {name: weight.to("meta") for name, weight in weights.items()}
    for name in list(weights)[::7]:
        rest = {other: weight for other, weight in weights.items() if other != name}
        for harmed in (rest, rest | {name: torch.empty(7, *weights[name].shape[1:], device="meta")}):
            with pytest.raises(ValueError, match="^a.pt") as refusal:
                read(harmed, given)
            assert "\n" not in str(refusal.value)


def test_other_files_are_not_taken_for_it():
    for shapes in ({}, {"conv1.weight": (64, 3, 3, 3)}, {"time_embed.0.weight": (128, 32)}):
        assert GUIDED_DIFFUSION.recognise(shapes, {}) is None
