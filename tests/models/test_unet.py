"""The U-Net: every family computes what its paper draws, in any float dtype, twice differentiably."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from purify_engine import ops
from purify_engine.config import UNetConfig
from purify_engine.models import UNet
from purify_engine.models.blocks import AttentionBlock, Downsample, GroupNormSiLU, ResBlock
from tests.models.networks import FAMILIES, lively, noisy_images, small_unet, transposed

families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_one_embedding_serves_the_whole_batch(family):
    unet, x = small_unet(family), noisy_images(3)
    each = unet(x, torch.full((3,), 5.0))
    assert (unet.decode(x, unet.embeddings(torch.tensor([5]))) - each).abs().max() < 1e-12
    assert (unet(x, torch.tensor([5])) - each).abs().max() < 1e-12


@families
def test_images_of_a_batch_do_not_meet(family):
    unet, x, t = small_unet(family), noisy_images(3), torch.tensor([1.0, 50.0, 999.0])
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert (unet(x, t) - alone).abs().max() < 1e-12


@families
def test_rows_and_columns_are_treated_alike_at_any_height_and_width(family):
    """A network of filters turned about their diagonal sees the transposed image as the network sees the image."""
    unet, t = small_unet(family), torch.tensor([30.0])
    for height, width in ((4, 14), (12, 2)):
        x = torch.randn(1, 1, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        seen = unet(x, t)
        assert (transposed(unet)(x.mT, t) - seen.mT).abs().max() < 1e-12
        assert seen.shape[2:] == x.shape[2:] and (unet(x.flip(3), t) - seen.flip(3)).abs().max() > 1e-3


@families
def test_every_parameter_and_every_pixel_matters(family):
    unet, x = small_unet(family), noisy_images().requires_grad_()
    output = unet(x, torch.tensor([3.0, 700.0]))
    output.square().sum().backward()
    silent = [name for name, p in unet.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not silent
    assert (x.grad != 0).all()


@families
def test_gradient_is_right_to_second_order(family):
    unet, x = small_unet(family), noisy_images(1)
    unet.requires_grad_(False)
    direction, embeddings = noisy_images(2)[1:], unet.embeddings(torch.tensor([40.0]))

    def along(distance):  # one number in, a few numbers out: the whole Jacobian would be slow and say no more
        return unet.decode(x + distance * direction, embeddings).flatten()[:4]

    distance = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, distance)
    assert torch.autograd.gradgradcheck(along, distance)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_is_close_to_float64(family, dtype):
    truth = small_unet(family)(noisy_images(), torch.tensor([10.0]))
    output = small_unet(family).to(dtype)(noisy_images().to(dtype), torch.tensor([10.0]))
    assert output.dtype == dtype
    assert (output.double() - truth).norm() / truth.norm() < 200 * torch.finfo(dtype).eps


@families
def test_memory_format_does_not_matter(family):
    unet, x, t = small_unet(family), noisy_images(), torch.tensor([10.0])
    assert (unet(x.contiguous(memory_format=torch.channels_last), t) - unet(x, t)).abs().max() < 1e-12


@families
def test_goes_through_the_ops(family):
    """The norms and the attention are ours: forcing an engine must not change the result, and there is no other group_norm."""
    unet, x, t = small_unet(family), noisy_images(), torch.tensor([10.0])
    with ops.backend("reference"):
        truth = unet(x, t)
    assert (unet(x, t) - truth).abs().max() < 1e-12
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in unet.modules())


@families
def test_skips_are_read_where_they_are(family, monkeypatch):
    unet, x, t = small_unet(family).float().requires_grad_(False), noisy_images().float(), torch.tensor([10.0])
    truth = small_unet(family)(noisy_images(), t)
    together = unet(x, t)  # where autograd may record, they are written beside what comes up
    cat, joined = torch.cat, []
    monkeypatch.setattr(torch, "cat", lambda tensors, *args, **how: (joined.append(len(tensors)), cat(tensors, *args, **how))[1])
    with torch.no_grad():
        apart = unet(x, t)
    channels = [joined_at for joined_at in joined if joined_at == 2]
    assert len(channels) <= 1  # the time embedding's sine and cosine
    assert (apart - truth).norm() <= 2 * (together - truth).norm() + 1e-7 * truth.norm()


def test_a_fresh_network_predicts_zero():
    unet = UNet(FAMILIES["ddpm"])
    assert unet(torch.randn(1, 1, 8, 8), torch.tensor([3.0])).abs().max() == 0


def test_additive_block_computes_the_published_formula():
    """The block of Ho et al., written out with torch's own layers."""
    torch.manual_seed(0)
    config = UNetConfig(base_channels=16, norm_groups=4)
    block = lively(ResBlock(16, 32, config))
    block.index = 0
    x, row = torch.randn(2, 16, 6, 6, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    h = block.conv1(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-6))) + row[:, :, None, None]
    h = block.conv2(F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-6)))
    assert (block(x, (row,)) - (h + block.shortcut(x))).abs().max() < 1e-12


@pytest.mark.parametrize(("least", "groups"), [(None, 32), (4, 16), (1, 32), (2, 32)], ids=str)
def test_a_norm_has_the_groups_of_its_family(least, groups):
    """Of 64 channels guided-diffusion makes 32 groups, score_sde 16, with four channels each."""
    torch.manual_seed(0)
    x = torch.randn(2, 64, 3, 3)
    norm = GroupNormSiLU(64, UNetConfig(norm_min_channels=least))
    assert (norm(x) - F.silu(F.group_norm(x, groups, eps=1e-6))).abs().max() < 1e-5


def test_scale_shift_block_scales_before_it_shifts():
    """The block of Nichol & Dhariwal: silu(norm(h) * (1 + scale) + shift), the scale being the first half of the projection."""
    torch.manual_seed(0)
    config = replace(FAMILIES["adm"], norm_groups=4)
    block = lively(ResBlock(16, 16, config, resize="down"))
    block.index = 0
    x, row = torch.randn(2, 16, 6, 6, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    h = block.conv1(F.avg_pool2d(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-6)), 2))
    h = F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-6) * (1 + row[:, :16, None, None]) + row[:, 16:, None, None]
    assert (block(x, (row,)) - (block.conv2(F.silu(h)) + F.avg_pool2d(x, 2))).abs().max() < 1e-12


def test_attention_block_agrees_with_torchs_attention():
    torch.manual_seed(0)
    config = replace(FAMILIES["adm"], num_head_channels=8, norm_groups=4)
    block = lively(AttentionBlock(16, config))
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    tokens = F.group_norm(x, 4, block.norm.weight, block.norm.bias, 1e-6).flatten(2).transpose(1, 2)
    published, _ = F.multi_head_attention_forward(
        *[tokens.transpose(0, 1)] * 3, 16, 2, block.qkv.weight.flatten(1), block.qkv.bias, None, None, False, 0.0,
        block.out.weight.flatten(1), block.out.bias, training=False, need_weights=False,
    )  # fmt: skip
    assert (block(x) - x - published.permute(1, 2, 0).reshape(x.shape)).abs().max() < 1e-12


def test_asymmetric_padding_is_on_the_right_and_at_the_bottom():
    """A convolution that picks its centre tap sees the odd pixels with (0, 1, 0, 1), the even ones with padding all around."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    seen = {}
    for padding in ("asymmetric", "symmetric"):
        layer = Downsample(1, UNetConfig(downsample_padding=padding))
        with torch.no_grad():
            layer.conv.weight.zero_()[0, 0, 1, 1] = 1
            layer.conv.bias.zero_()
        seen[padding] = layer(x, ())
    assert torch.equal(seen["asymmetric"], x[:, :, 1::2, 1::2])
    assert torch.equal(seen["symmetric"], x[:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({"image_size": 30}, "image_size"),
        ({"base_channels": 6}, "base_channels"),
        ({"resample": "fir"}, "resample"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"num_heads": 7}, "num_heads"),
        ({"num_head_channels": 48}, "num_head_channels"),
        ({"base_channels": 48, "norm_min_channels": None}, "norm_groups"),
        ({"norm_min_channels": 0}, "norm_min_channels"),
        ({"norm_groups": 0}, "norm_groups"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused_by_name(wrong, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be"), torch.device("meta"):
        UNet(UNetConfig(**wrong))
