"""The gradient that the exact attack follows, by the engine and by plain autograd that stores the graph of all steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine.benchmark.eager_baseline import EagerPurifier, Noise, Row
from purify_engine.benchmark.networks import random_purifier, with_random_weights
from purify_engine.config import ClassifierConfig, PurifierConfig, UNetConfig, require
from purify_engine.models import Classifier
from purify_engine.purifier import GuidedPurifier
from purify_engine.reference.philox import philox_normal
from purify_engine.training.recipes import RECIPES
from purify_engine.types import Images, Labels

SMALL = RECIPES["cifar10-small"].parts  # how fast a step is does not depend on what was learnt
TOY_UNET = UNetConfig(image_size=8, base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4)
TOY_GUIDE = ClassifierConfig(depth=10, width=4, activation="silu")
TOY_CLASSIFIER = ClassifierConfig(architecture="cifar_resnet", depth=8, width=4)
T_STAR, RATIO = 70, 0.8
Gradient = Callable[[], Tensor]


class Storing(EagerPurifier):
    """As a lab writes an attack on a purifier: the loop, differentiated through, everything on the way stored."""

    def pull(self, x_t: Images, eps: Images, target: tuple[Tensor, ...], row: Row, noise: Noise, step: int) -> Images:
        """grad G at x_t, differentiable in turn."""
        require(self.config.guidance.look_at == "xt", "look_at", "'xt' for the loop that stores", self.config.guidance.look_at)
        (grad,) = torch.autograd.grad(self.objective(x_t.to(memory_format=self.layout), *target), x_t, create_graph=True)
        return grad

    def purified(self, images: Images, noise: Noise) -> Images:
        """images [B, C, H, W] in [0, 1], differentiably."""
        return ((self.walk(2 * images - 1, noise) + 1) / 2).clamp(0, 1)


def subject(steps: int, device: torch.device, *, toy: bool) -> tuple[GuidedPurifier, nn.Module]:
    """A purifier by latent guidance, and the classifier behind it, with random weights."""
    small: Any = [SMALL[part].network for part in ("unet", "guide", "classifier")]
    unet, guide, classifier = (TOY_UNET, TOY_GUIDE, TOY_CLASSIFIER) if toy else small
    made = random_purifier(unet, guide, PurifierConfig(t_star=T_STAR, num_steps=steps, noise="fixed"), device=device)
    latent = dataclasses.replace(made.config.guidance, pseudo_label="none", label_weight=0.0)
    purifier = GuidedPurifier(made.denoiser, made.guide, dataclasses.replace(made.config, guidance=latent))
    images = torch.rand(4, unet.in_channels, *2 * [unet.image_size], generator=torch.Generator().manual_seed(1), device="cpu")
    scale = purifier.calibrate(images.to(device), RATIO)
    config = dataclasses.replace(purifier.config, guidance=dataclasses.replace(latent, scale=scale))
    with torch.device(device):
        judge = with_random_weights(Classifier(classifier))
    return GuidedPurifier(made.denoiser, made.guide, config).to(device), judge.eval().requires_grad_(False)


def by_engine(purifier: GuidedPurifier, classifier: nn.Module, images: Images, labels: Labels) -> Gradient:
    """Of the cross-entropy behind the purifier, with the noise of the places in the batch."""
    ids = torch.arange(len(images), device=images.device)

    def gradient() -> Tensor:
        leaf = images.clone().requires_grad_()
        return _gradient(classifier(purifier(leaf, ids=ids)), labels, leaf)

    return gradient


def by_storing(purifier: GuidedPurifier, classifier: nn.Module, images: Images, labels: Labels) -> Gradient:
    """The same, channels_last, which is PyTorch's faster layout on CPUs as well."""
    plain = Storing(purifier, channels_last=True)
    ids, key = torch.arange(len(images), device=images.device), purifier.seed

    def noise(like: Images, step: int) -> Images:
        counter, numel = torch.tensor(step, device=like.device), like[0].numel()
        return philox_normal(key, ids, counter, numel, dtype=like.dtype).view_as(like)

    def gradient() -> Tensor:
        leaf = images.clone().requires_grad_()
        return _gradient(classifier(plain.purified(leaf, noise)), labels, leaf)

    return gradient


def _gradient(logits: Tensor, labels: Labels, leaf: Images) -> Tensor:
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
    return grad
