"""The walk in which norms add up what they read: the same function as the walk of layers, for every family."""

from __future__ import annotations

import copy
import gc
import re
import weakref

import pytest
import torch
from torch import nn

from bench.subjects.step_launches import Launches
from purify_engine.engine.cpu_capture import CpuCapture
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.models import UNet, published, summed
from purify_engine.models.blocks import Downsample, GroupNormSiLU, Upsample
from purify_engine.models.denoiser import Denoiser
from purify_engine.ops import switches
from tests.engine.test_replay import images, looped, noise, plan
from tests.models.networks import FAMILIES, noisy_images, small_unet

families = pytest.mark.parametrize("family", FAMILIES)


def both(family, x, t):
    """(by layers, by norms that add) in float64."""
    unet = small_unet(family)
    with torch.no_grad():
        expected = unet(x, t)
        with switches.anywhere():
            assert summed.is_taken(x, unet)
            return expected, unet(x, t)


@families
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_same_function(family, batch):
    for t in (torch.tensor([7.0]), torch.linspace(3, 900, batch)):
        expected, got = both(family, noisy_images(batch), t)
        assert got.shape == expected.shape and got.dtype == torch.float64
        assert (got - expected).abs().max() < 1e-12


@families
def test_it_is_taken_where_no_parameter_trains_and_nobody_looks_on(family):
    unet, x = small_unet(family), noisy_images()
    with torch.no_grad():
        assert not summed.is_taken(x, unet), "float64, and a CPU"
    with switches.anywhere():
        assert not summed.is_taken(x, unet), "its parameters may train"
        assert summed.is_taken(x, unet.requires_grad_(False))
        with torch.no_grad():
            assert summed.is_taken(x, unet)
            assert not summed.is_taken(x, unet.train())
            unet.eval()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert not summed.is_taken(x, unet)
            with switches.switched(sum_in_norm=False):
                assert not summed.is_taken(x, unet)


@families
@pytest.mark.parametrize("batch", [1, 3])
def test_images_do_not_meet_and_one_embedding_serves_them_all(family, batch):
    unet, x = small_unet(family), noisy_images(batch)
    with torch.no_grad(), switches.anywhere():
        rows = unet.embeddings(torch.tensor([5.0]))
        together = unet.decode(x, rows)
        each = unet.decode(x, tuple(row.expand(batch, -1) for row in rows))
        alone = torch.cat([unet.decode(x[i : i + 1], rows) for i in range(batch)])
    assert (together - each).abs().max() < 1e-12
    assert (together - alone).abs().max() < 1e-12


@families
def test_its_gradient_is_that_of_the_walk_of_layers(family):
    unet, x = small_unet(family).requires_grad_(False), noisy_images().requires_grad_()
    rows = [row.detach().requires_grad_() for row in unet.embeddings(torch.tensor([40.0]))]
    weights = torch.randn(unet.decode(x, tuple(rows)).shape, generator=torch.Generator().manual_seed(2)).double()

    def derivatives():
        grads = torch.autograd.grad((weights * unet.decode(x, tuple(rows))).sum(), [x, *rows], create_graph=True)
        seconds = torch.autograd.grad(sum(grad.square().sum() for grad in grads), [x, *rows])
        return grads, seconds

    expected = derivatives()
    with switches.anywhere():
        assert summed.is_taken(x, unet)
        got = derivatives()
    for one, other in zip(got, expected, strict=True):
        for found, truth in zip(one, other, strict=True):
            assert (found - truth).abs().max() < 1e-11 * max(1, truth.abs().max())


def test_a_hook_or_a_layer_of_anothers_takes_the_walk_of_layers():
    class Louder(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, *given, **around):
            return 2 * self.layer(*given, **around)

    unet, x, t = small_unet(), noisy_images(), torch.tensor([7.0])
    with torch.no_grad(), switches.anywhere():
        plain = unet(x, t)
        seen = []
        handle = unet.encoder[0].block.conv1.register_forward_hook(lambda *given: seen.append(given))
        assert not summed.is_taken(x, unet)
        unet(x, t)
        assert len(seen) == 1
        handle.remove()
        assert summed.is_taken(x, unet)
        unet.middle[0].block.conv2 = Louder(unet.middle[0].block.conv2)
        assert not summed.is_taken(x, unet)
        assert (unet(x, t) - plain).abs().max() > 1e-3


@families
def test_a_recording_of_it_equals_the_loop_to_the_bit(family):
    model = Denoiser(small_unet(family).float().requires_grad_(False))
    process = ReverseProcess(plan(3), model, NoGuide(), noise(2))
    with switches.anywhere():
        expected = looped(process, images(2))
        replay = Replay(CpuCapture())
        for _ in range(2):
            assert torch.equal(replay.run(process, images(2)), expected)


# What still stands between the layers: the time embedding's own operations are not in `decode`.
PASSES = {"add", "add_", "mul", "mul_", "cat", "copy_", "_to_copy", "clone", "constant_pad_nd", "silu", "native_group_norm"}


@pytest.mark.parametrize("network", ["DDPM_CIFAR10", "DDPMPP_CIFAR10", "IMPROVED_CIFAR10", "ADM_IMAGENET256"])
def test_no_image_passes_for_a_sum_alone(network):
    """On tensors without numbers: an op, a convolution or a product at a time, and nothing between them."""
    config = getattr(published, network)
    with torch.device("meta"):
        unet = UNet(config).eval().to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_(False)
        x, t = torch.empty(2, config.in_channels, config.image_size, config.image_size, dtype=torch.bfloat16), torch.empty(1)
        x = x.contiguous(memory_format=torch.channels_last)
    norms = sum(isinstance(module, GroupNormSiLU) for module in unet.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in unet.modules())
    resamplers = sum(isinstance(module, Upsample | Downsample) for module in unet.modules())
    seen = Launches()
    with torch.no_grad(), switches.switched(padded_channels=False):
        with Launches().counting():
            rows = unet.embeddings(t)
            unet.decode(x, rows)  # filters that are kept are made
        with seen.counting():
            unet.decode(x, rows)
    names = {kernel: kernel.removeprefix("aten::").removesuffix(" of whole tensors") for kernel in seen.launched}
    launched = {name: seen.launched[kernel] for kernel, name in names.items()}
    assert not PASSES & set(launched)
    assert seen.ops["sum_norm_silu"] == norms
    assert seen.ops["residual_sum"] == resamplers
    kinds = re.compile("convolution|addmm|mm$|_conv3x3_kernel")
    assert sum(n for kernel, n in launched.items() if kinds.match(kernel)) == convolutions


def test_a_network_that_has_taken_it_is_not_kept_alive():
    unet = small_unet(next(iter(FAMILIES)))
    alive = weakref.ref(unet)
    with torch.no_grad(), switches.anywhere():
        assert summed.is_taken(noisy_images(1), unet)
        unet(noisy_images(1), torch.tensor([7.0]))
    del unet
    gc.collect()
    assert alive() is None


def test_copies_ask_about_their_own_layers():
    unet = small_unet(next(iter(FAMILIES)))
    with torch.no_grad(), switches.anywhere():
        assert summed.is_taken(noisy_images(1), unet)
        twin = copy.deepcopy(unet)
        twin.middle[0].register_forward_hook(lambda *_: None)
        assert summed.is_taken(noisy_images(1), unet) and not summed.is_taken(noisy_images(1), twin)
