"""Residual blocks of classifiers, with the names that the published weights have; `fused` is what runs once they are frozen."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine.config import ClassifierConfig
from purify_engine.models.folded_blocks import PostActivation, PostActivationBottleneck, PreActivation
from purify_engine.models.folding import Twice

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
Folds = tuple[tuple[str, str], ...]  # the convolutions that feed a batch norm and nothing else (folding.py)


class BelowAndRight(nn.Conv2d):
    """A 3x3 convolution of stride 2 whose zeros stand below and to the right of the image: SAME of JAX at even sizes."""

    margin = (0, 1, 0, 1)

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margin))


def conv3x3(channels: int, out_channels: int, stride: int = 1, padding: str = "symmetric") -> nn.Conv2d:
    """A 3x3 convolution without bias: a batch norm follows."""
    if stride == 2 and padding == "asymmetric":
        return BelowAndRight(channels, out_channels)
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(channels, out_channels, 1, stride, bias=False)


class StemPool(nn.MaxPool2d):
    """The largest of 3x3 pixels, every second one: behind the first convolution of ImageNet's networks."""

    def __init__(self) -> None:
        super().__init__(3, 2, 1)

    def forward(self, x: Tensor | Twice) -> Tensor:
        return super().forward(x.x if isinstance(x, Twice) else x)


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every second pixel, and channels of zeros on both sides; no parameters."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.padding = (extra_channels // 2, extra_channels - extra_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """conv, norm, activation, conv, norm, plus the shortcut, activation (He et al. 2016)."""

    expansion = 1
    folds: Folds = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, channels: int, width: int, stride: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.activation = ACTIVATIONS[config.activation]()
        self.shortcut: nn.Module = nn.Sequential()
        if config.architecture == "cifar_resnet" and stride != 1:
            self.shortcut = PadShortcut(width - channels)
        elif stride != 1 or channels != width:
            self.shortcut = nn.Sequential(conv1x1(channels, width, stride), nn.BatchNorm2d(width))
            self.folds = (*self.folds, ("shortcut.0", "shortcut.1"))

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.bn1(self.conv1(x)))
        return self.activation(self.bn2(self.conv2(h)) + self.shortcut(x))

    def fused(self) -> nn.Module:
        """What runs in its place once its batch norms are folded."""
        return PostActivation(self) if isinstance(self.activation, nn.ReLU) else self


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 pixels with a norm each, plus the shortcut (He et al. 2016). The 3x3 has the stride."""

    expansion = 4
    folds: Folds = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, channels: int, width: int, stride: int, config: ClassifierConfig) -> None:
        super().__init__()
        inside, out_channels = width * config.bottleneck_factor, width * self.expansion
        self.conv1 = conv1x1(channels, inside)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = conv3x3(inside, inside, stride)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = conv1x1(inside, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.activation = ACTIVATIONS[config.activation]()
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(channels, out_channels, stride), nn.BatchNorm2d(out_channels))
            self.folds = (*self.folds, ("shortcut.0", "shortcut.1"))

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.bn1(self.conv1(x)))
        h = self.activation(self.bn2(self.conv2(h)))
        return self.activation(self.bn3(self.conv3(h)) + self.shortcut(x))

    def fused(self) -> nn.Module:
        """What runs in its place once its batch norms are folded."""
        return PostActivationBottleneck(self) if isinstance(self.activation, nn.ReLU) else self


class PreActivationBlock(nn.Module):
    """norm, activation, conv, twice, plus the shortcut (He et al. 2016, Identity mappings; Zagoruyko & Komodakis 2016)."""

    expansion = 1
    folds: Folds = (("conv1", "bn2"),)

    def __init__(self, channels: int, width: int, stride: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv3x3(channels, width, stride, config.downsample_padding)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.activation = ACTIVATIONS[config.activation]()
        self.reads_input = config.shortcut_reads == "input"
        self.convShortcut = _convolved_shortcut(channels, width, stride, config)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(x if self.reads_input else h)
        return shortcut + self.conv2(self.activation(self.bn2(self.conv1(h))))

    def fused(self) -> nn.Module:
        """What runs in its place once its batch norms are folded."""
        return PreActivation(self) if isinstance(self.activation, nn.ReLU) else self


class PreActivationBottleneck(nn.Module):
    """norm, activation, conv, three times, 1x1, 3x3 and 1x1, plus the shortcut (He et al. 2016, Identity mappings)."""

    expansion = 4
    folds: Folds = (("conv1", "bn2"), ("conv2", "bn3"))

    def __init__(self, channels: int, width: int, stride: int, config: ClassifierConfig) -> None:
        super().__init__()
        inside, out_channels = width * config.bottleneck_factor, width * self.expansion
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv1x1(channels, inside)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv2 = conv3x3(inside, inside, stride, config.downsample_padding)
        self.bn3 = nn.BatchNorm2d(inside)
        self.conv3 = conv1x1(inside, out_channels)
        self.activation = ACTIVATIONS[config.activation]()
        self.reads_input = config.shortcut_reads == "input"
        self.convShortcut = _convolved_shortcut(channels, out_channels, stride, config)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(x if self.reads_input else h)
        h = self.activation(self.bn2(self.conv1(h)))
        return shortcut + self.conv3(self.activation(self.bn3(self.conv2(h))))


def _convolved_shortcut(channels: int, out_channels: int, stride: int, config: ClassifierConfig) -> nn.Conv2d | None:
    if stride == 1 and channels == out_channels:
        return None
    if config.shortcut_kernel == 3:
        return conv3x3(channels, out_channels, stride, config.downsample_padding)
    return conv1x1(channels, out_channels, stride)
