"""Residual networks as published for CIFAR: the guides and the classifiers. Images in [0, 1] in; normalisation is inside.

Parameters carry the names of the published weights: ResNet and WideResNet those of TRADES (Zhang et al. 2019), the CIFAR ResNets
(He et al. 2016, option A) those of Y. Idelbayev's. All end in a global mean, so that any image size of at least 8 works.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine.config import ClassifierConfig
from purify_engine.models.folded_blocks import PostActivation, PreActivation
from purify_engine.models.folding import Folding, Twice
from purify_engine.ops import PackedWeights
from purify_engine.types import Features, Images, Logits

_lines = PackedWeights()

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
Folds = tuple[tuple[str, str], ...]  # the convolutions that feed a batch norm and nothing else (folding.py)
RESNET_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def conv3x3(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias: a batch norm follows."""
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every second pixel, and channels of zeros on both sides; no parameters."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.padding = (extra_channels // 2, extra_channels - extra_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """conv, norm, activation, conv, norm, plus the shortcut, activation (He et al. 2016)."""

    folds: Folds = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, channels: int, out_channels: int, stride: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.activation = ACTIVATIONS[config.activation]()
        self.shortcut: nn.Module = nn.Sequential()
        if config.architecture == "cifar_resnet" and stride != 1:
            self.shortcut = PadShortcut(out_channels - channels)
        elif stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            self.folds = (*self.folds, ("shortcut.0", "shortcut.1"))

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.bn1(self.conv1(x)))
        return self.activation(self.bn2(self.conv2(h)) + self.shortcut(x))

    def fused(self) -> nn.Module:
        """What runs in its place once its batch norms are folded."""
        return PostActivation(self) if isinstance(self.activation, nn.ReLU) else self


class PreActivationBlock(nn.Module):
    """norm, activation, conv, twice, plus the shortcut (Zagoruyko & Komodakis 2016)."""

    folds: Folds = (("conv1", "bn2"),)

    def __init__(self, channels: int, out_channels: int, stride: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv3x3(channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.activation = ACTIVATIONS[config.activation]()
        self.convShortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False) if channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(h)
        return shortcut + self.conv2(self.activation(self.bn2(self.conv1(h))))

    def fused(self) -> nn.Module:
        """What runs in its place once its batch norms are folded."""
        return PreActivation(self) if isinstance(self.activation, nn.ReLU) else self


def stage(block: type[nn.Module], index: int, widths: list[int], depth: int, config: ClassifierConfig) -> nn.Sequential:
    """`depth` blocks from widths[index] to widths[index + 1] channels; every stage but the first halves the resolution."""
    channels, out_channels = widths[index : index + 2]
    first = block(channels, out_channels, 1 if index == 0 else 2, config)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1, config) for _ in range(depth - 1)))


def _post_activation(depths: tuple[int, ...], config: ClassifierConfig) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {
        "conv1": conv3x3(config.in_channels, config.width),
        "bn1": nn.BatchNorm2d(config.width),
        "activation": ACTIVATIONS[config.activation](),
    }
    widths = [config.width, *(config.width * 2**index for index in range(len(depths)))]
    for index, depth in enumerate(depths):
        layers[f"layer{index + 1}"] = stage(BasicBlock, index, widths, depth, config)
    return layers | {"linear": nn.Linear(widths[-1], config.num_classes)}


def resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """ResNet-10, 18 or 34 without the first pooling: the CIFAR variant of TRADES."""
    return _post_activation(RESNET_BLOCKS[config.depth], config)


def cifar_resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """ResNet-20, 32, 56, 110: three stages of (depth - 2) / 6 blocks (He et al. 2016, section 4.2; width 16 there)."""
    return _post_activation(((config.depth - 2) // 6,) * 3, config)


def wide_resnet(config: ClassifierConfig) -> dict[str, nn.Module]:
    """WideResNet, e.g. WRN-28-10 and WRN-70-16: three stages of (depth - 4) / 6 blocks, `width` times wider than 16, 32, 64."""
    widths = [16, 16 * config.width, 32 * config.width, 64 * config.width]
    layers: dict[str, nn.Module] = {"conv1": conv3x3(config.in_channels, widths[0])}
    for index in range(3):
        blocks = stage(PreActivationBlock, index, widths, (config.depth - 4) // 6, config)
        layers[f"block{index + 1}"] = nn.Sequential(OrderedDict(layer=blocks))
    layers |= {"bn1": nn.BatchNorm2d(widths[-1]), "activation": ACTIVATIONS[config.activation]()}
    return layers | {"fc": nn.Linear(widths[-1], config.num_classes)}


ARCHITECTURES = {"resnet": resnet, "cifar_resnet": cifar_resnet, "wide_resnet": wide_resnet}


class Classifier(nn.Module):
    """images [B, C, H, W] in [0, 1] -> logits [B, K]. The normalisation belongs to the configuration, not to the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        layers = ARCHITECTURES[config.architecture](config)
        for name, layer in layers.items():
            self.add_module(name, layer)
        *self._trunk, self._head = layers
        post_activation = config.architecture != "wide_resnet"
        self.folds: Folds = (("conv1", "bn1"),) if post_activation else ()
        rectified: Folds = (("conv1" if post_activation else "bn1", "activation"),)
        self.rectified = rectified if config.activation == "relu" else ()
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
        for name in self._trunk:
            x = self.get_submodule(name)(x)
        return x.x if isinstance(x, Twice) else x

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
