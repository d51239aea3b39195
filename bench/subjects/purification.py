"""Whole purifications of a few guided steps: the setting, the images, the FLOPs, and the comparison with float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.core.comparison import OPPONENT, Finding, compare, within
from purify_engine.benchmark.eager_baseline import EagerPurifier
from purify_engine.config import PurifierConfig
from purify_engine.purifier import Execution, GuidedPurifier
from purify_engine.reference.philox import philox_normal
from purify_engine.testing.yardstick import assert_within_yardstick
from purify_engine.types import Images

COMPARED_IMAGES, COMPARED_STEPS = 4, 2


@dataclass(frozen=True)
class PurificationSetting:
    """What is timed: the networks, the batch, and how many steps of DDPM in one call."""

    network: str
    guide: str
    batch: int
    steps: int = 10

    def __str__(self) -> str:
        return f"{self.network} + {self.guide}, batch {self.batch}, {self.steps} steps"

    @property
    def config(self) -> PurifierConfig:
        return config(self.steps)


def config(steps: int) -> PurifierConfig:
    """DDPM over the first 100 timesteps, as DiffPure purifies CIFAR-10; `steps` of them."""
    return PurifierConfig(t_star=100, num_steps=steps, noise="fixed")


def engine(purifier: GuidedPurifier, execution: Execution, low: bool = False) -> GuidedPurifier:
    """The purifier itself on networks of its own, in bfloat16 and channels_last where `low`."""
    own = GuidedPurifier(*copy.deepcopy((purifier.denoiser, purifier.guide)), purifier.config, execution=execution)
    own = own.to(purifier.device)
    return own.to(torch.bfloat16).to(memory_format=torch.channels_last) if low else own  # type: ignore[call-overload]


class Comparison:
    """Variants against the same walk in float64, at the batch that is timed, with the engine's own noise in all of them.

    Two steps, and the truth of a few images of the batch: noise belongs to the image's id, so they are the same in any batch. The
    honest error is eager PyTorch's in the variant's precision: the yardstick allows ours twice that. An opponent need only be the
    same function, and is allowed `OPPONENT` times as much.
    """

    def __init__(self, purifier: GuidedPurifier, images: Images) -> None:
        self.short = purifier.configured(num_steps=COMPARED_STEPS)
        self.images, self.few = images, images[:COMPARED_IMAGES]
        self.honest: dict[torch.dtype, Images] = {}
        self.truth = self.purified(EagerPurifier(self.short, torch.float64), self.few.double())

    def finding(self, variant: Any) -> Finding:
        """How far `variant`'s result is from the truth, and whether that is too far."""
        dtype = next(variant.parameters()).dtype
        if dtype not in self.honest:
            honest = EagerPurifier(self.short, dtype, channels_last=dtype == torch.bfloat16)
            # At the whole batch, for whose shapes alone cuDNN's algorithms are then chosen.
            self.honest[dtype] = self.purified(honest, self.images)[: len(self.few)]
        got = self.purified(self.shortened(variant), self.images)[: len(self.few)]
        judge = _judge_ours if isinstance(variant, GuidedPurifier) else within(OPPONENT)
        return compare(got, self.honest[dtype], self.truth, judge)

    def shortened(self, variant: Any) -> Any:
        """The same networks with the few steps that are compared."""
        if isinstance(variant, GuidedPurifier):
            return variant.configured(num_steps=COMPARED_STEPS)
        return variant.on_plan(self.short.plan())

    def purified(self, variant: Any, images: Images) -> Images:
        """By a variant, with the engine's noise of seed and id."""
        ids, key = torch.arange(len(images), device=images.device), self.short.seed

        def noise(like: Images, step: int) -> Images:
            counter, numel = torch.tensor(step, device=like.device), like[0].numel()
            return philox_normal(key, ids, counter, numel, dtype=like.dtype).view_as(like)

        with torch.no_grad():
            return variant(images, ids=ids) if isinstance(variant, GuidedPurifier) else variant(images, noise)


def _judge_ours(got: Tensor, honest: Tensor, truth: Tensor, magnitude: Any = None) -> None:
    assert_within_yardstick(got, honest, truth)
    within(OPPONENT)(got, honest, truth, magnitude)


def images_for(purifier: GuidedPurifier, batch: int) -> Images:
    """Random images of the network's size."""
    network, device = purifier.denoiser.unet.config, purifier.device
    shape = batch, network.in_channels, network.image_size, network.image_size
    return torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(batch))


def step_flops(purifier: GuidedPurifier) -> int:
    """Of one guided step on one image: U-Net forward, guide forward, guide backward to the input."""
    plain = EagerPurifier(purifier).to("meta")  # where nothing is computed, so no library chooses by shapes that are not timed
    plain.load_schedule(purifier.plan().to("meta", None))
    image = images_for(purifier, 1).to("meta")
    with torch.no_grad():
        target = plain.target(image)
        with FlopCounterMode(display=False) as counter:
            plain.step(image, target, plain.row(0, image), lambda like, step: like, 0)
    return counter.get_total_flops()
