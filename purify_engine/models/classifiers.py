"""Residual networks as published for CIFAR and ImageNet: guides and classifiers. Images in [0, 1] in; normalisation is inside.

Parameters of ResNets and WideResNets carry the names of TRADES (Zhang et al. 2019), the CIFAR ResNets (He et al. 2016, option A)
those of Y. Idelbayev's; checkpoints/ knows what others call them. All end in a global mean, so that any image size of at least
8 works.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn

from purify_engine.config import ClassifierConfig, require
from purify_engine.models.classifier_blocks import (
    ACTIVATIONS,
    BasicBlock,
    Bottleneck,
    Folds,
    PreActivationBlock,
    PreActivationBottleneck,
    StemPool,
    conv3x3,
)
from purify_engine.models.folding import Folding, Twice, TwoParts
from purify_engine.ops import PackedWeights
from purify_engine.types import Features, Images, Logits

_lines = PackedWeights()

Depths = tuple[int, ...]  # blocks of each stage

# By layers; which have bottlenecks stands in `ClassifierConfig.has_bottlenecks`.
RESNET_BLOCKS: dict[int, Depths] = {
    10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3),
    14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip


def stages(block: Any, channels: int, widths: list[int], depths: Depths, config: ClassifierConfig) -> list[nn.Sequential]:
    """Stages of so many blocks of these widths, the first of which reads `channels`; all but the first halve the resolution."""
    made = []
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        first = block(channels, width, 1 if index == 0 else 2, config)
        channels = width * block.expansion
        made.append(nn.Sequential(first, *(block(channels, width, 1, config) for _ in range(depth - 1))))
    return made


def _named(layers: list[nn.Sequential]) -> dict[str, nn.Module]:
    return {f"layer{index}": layer for index, layer in enumerate(layers, start=1)}


def _end(config: ClassifierConfig, channels: int) -> dict[str, nn.Module]:
    """A batch norm and its activation, before the global mean."""
    return {"bn1": nn.BatchNorm2d(channels), "activation": ACTIVATIONS[config.activation]()}


def _post_activation(stem: dict[str, nn.Module], depths: Depths, config: ClassifierConfig) -> dict[str, nn.Module]:
    block = Bottleneck if config.has_bottlenecks else BasicBlock
    widths = [config.width * 2**index for index in range(len(depths))]
    layers = stem | _named(stages(block, config.width, widths, depths, config))
    return layers | {"linear": nn.Linear(widths[-1] * block.expansion, config.num_classes)}


def _small_stem(config: ClassifierConfig) -> dict[str, nn.Module]:
    return {"conv1": conv3x3(config.in_channels, config.width), **_end(config, config.width)}


def resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """ResNets without the first pooling: the CIFAR variant of TRADES, DiffPure's ResNet-50."""
    return _post_activation(_small_stem(config), RESNET_BLOCKS[config.depth], config)


def cifar_resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """ResNet-20, 32, 56, 110: three stages of (depth - 2) / 6 blocks (He et al. 2016, section 4.2; width 16 there)."""
    return _post_activation(_small_stem(config), ((config.depth - 2) // 6,) * 3, config)


def imagenet_resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """torchvision's ResNets: a quarter of the resolution before the first block."""
    first = nn.Conv2d(config.in_channels, config.width, 7, 2, padding=3, bias=False)
    stem = {"conv1": first, **_end(config, config.width), "pool": StemPool()}
    return _post_activation(stem, RESNET_BLOCKS[config.depth], config)


def preact_resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """Pre-activation ResNets for CIFAR (He et al. 2016, Identity mappings in deep residual networks)."""
    block: Any = PreActivationBottleneck if config.has_bottlenecks else PreActivationBlock
    widths = [config.width * 2**index for index in range(4)]
    layers: dict[str, nn.Module] = {"conv1": conv3x3(config.in_channels, config.width)}
    layers |= _named(stages(block, config.width, widths, RESNET_BLOCKS[config.depth], config))
    channels = widths[-1] * block.expansion
    layers |= _end(config, channels) if config.final_norm else {}
    return layers | {"linear": nn.Linear(channels, config.num_classes)}


def wide_resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """WideResNet, e.g. WRN-28-10 and WRN-70-16: three stages of (depth - 4) / 6 blocks, `width` times wider than 16, 32, 64."""
    widths = [16 * config.width, 32 * config.width, 64 * config.width]
    layers: dict[str, nn.Module] = {"conv1": conv3x3(config.in_channels, 16)}
    for index, blocks in enumerate(stages(PreActivationBlock, 16, widths, ((config.depth - 4) // 6,) * 3, config), start=1):
        layers[f"block{index}"] = nn.Sequential(OrderedDict(layer=blocks))
    return layers | _end(config, widths[-1]) | {"fc": nn.Linear(widths[-1], config.num_classes)}


ARCHITECTURES = {
    "resnet": resnet,
    "cifar_resnet": cifar_resnet,
    "wide_resnet": wide_resnet,
    "preact_resnet": preact_resnet,
    "imagenet_resnet": imagenet_resnet,
}


class Classifier(nn.Module):
    """images [B, C, H, W] in [0, 1] -> logits [B, K]. The normalisation belongs to the configuration, not to the weights."""

    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...] | None = None
    """Of the classes 0, 1, ..., where they are known: names of class folders become labels by it."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        layers = ARCHITECTURES[config.architecture](config)
        for name, layer in layers.items():
            self.add_module(name, layer)
        *self._trunk, self._head = layers
        post_activation = self._trunk[1] == "bn1"
        self.folds: Folds = (("conv1", "bn1"),) if post_activation else ()
        rectified: Folds = (("conv1" if post_activation else "bn1", "activation"),)
        self.rectified = rectified if config.activation == "relu" and "activation" in layers else ()
        self._folding = Folding()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Images) -> Logits:
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: Images) -> tuple[Features, Logits]:
        """The penultimate features [B, F], after the global mean, and the logits [B, K] that they give."""
        return self.read_off(self._through((images - self.mean) / self.std))

    def last_maps(self, x: Images) -> Images:
        """What the global mean is taken of, [B, F, h, w]; x in [-1, 1] becomes a normalised image in one pass."""
        slope, offset = self._line()
        return self._through(torch.addcmul(offset, x, slope))

    def read_off(self, maps: Images) -> tuple[Features, Logits]:
        """Features and logits of the last maps."""
        features = maps.mean(dim=(2, 3))
        return features, self.head(features)

    @property
    def head(self) -> nn.Linear:
        """What makes logits of features."""
        return cast(nn.Linear, self.get_submodule(self._head))

    def _through(self, x: Images) -> Images:
        self._check(x)
        through: Any = x
        for name in self._trunk:
            through = self.get_submodule(name)(through)
        if isinstance(through, TwoParts):
            return through.residual + through.x
        return cast(Tensor, through.x if isinstance(through, Twice) else through)

    def _check(self, x: Images) -> None:
        """A shortcut of one pixel and a convolution whose zeros stand on one side halve an odd size differently."""
        if self.config.downsample_padding == "asymmetric" and self.config.shortcut_kernel == 1:
            halvings = 2 if self.config.architecture == "wide_resnet" else 3
            sizes, factor = tuple(x.shape[2:]), 2**halvings
            fits = all(size % factor == 0 for size in sizes)
            require(fits, "images", f"of multiples of {factor} pixels a side for downsample_padding='asymmetric'", sizes)

    def _line(self) -> tuple[Tensor, Tensor]:
        """The slope and the offset of every channel, of an image in [-1, 1] to a normalised one."""

        def packed() -> Tensor:
            with torch.inference_mode(False), torch.no_grad():
                mean, std = self.mean.double(), self.std.double()
                return torch.stack([0.5 / std, (0.5 - mean) / std]).to(self.mean.dtype)

        slope, offset = _lines.of(self.mean, "line", packed)
        return slope, offset

    def frozen(self) -> Classifier:
        """The same function with its batch norms folded away; this network itself where a parameter may want a gradient."""
        return cast(Classifier, self._folding.of(self))

    def _replicate_for_data_parallel(self) -> Classifier:
        replica = super()._replicate_for_data_parallel()
        replica._folding = Folding()
        return replica
