"""Residual blocks of a frozen classifier without batch norms: their ReLUs and sums belong to the convolutions beside them.

Each is made of a block that `folding.folded` has been through: its convolutions are our ops, its batch norms are gone,
or channel-wise affine maps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.models.folding import AffineRelu, ChannelAffine, FrozenConv3x3, FrozenConvolution, Twice, TwoParts
from purify_engine.ops import switches

_biases = ops.PackedWeights()


class PostActivation(nn.Module):
    """conv, ReLU, conv, plus the shortcut, ReLU. Where a ReLU costs no pass behind a convolution, nor does a shortcut's bias."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1: FrozenConv3x3 | FrozenConvolution = block.conv1
        self.conv2: FrozenConv3x3 = block.conv2
        self.shortcut: nn.Module = block.shortcut

    def forward(self, x: Tensor | Twice) -> Tensor | Twice:
        x, again = x if isinstance(x, Twice) else (x, x)
        if ops.conv_relu_is_fused(x, self.conv1.weight, self.conv1.bias):
            shortcut, bias = _unbiased(self.shortcut, again, self.conv2.bias)
            return Twice(*ops.conv_relu_twice(self.conv1.with_relu(x), self.conv2.weight, bias, shortcut))
        return F.relu(_relu_conv(self.conv1(x), self.conv2, residual=self.shortcut(x)))


class PostActivationBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with its ReLU; the shortcut is added before the last one."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1: FrozenConvolution = block.conv1
        self.conv2: FrozenConv3x3 | FrozenConvolution = block.conv2
        self.conv3: FrozenConvolution = block.conv3
        self.shortcut: nn.Module = block.shortcut

    def forward(self, x: Tensor | Twice) -> Tensor | Twice:
        x, again = x if isinstance(x, Twice) else (x, x)
        how = {"stride": self.conv3.stride, "padding": self.conv3.padding}
        if ops.conv_relu_is_fused(x, self.conv1.weight, self.conv1.bias):
            shortcut, bias = _unbiased(self.shortcut, again, self.conv3.bias)
            h = self.conv2.with_relu(self.conv1.with_relu(x))
            return Twice(*ops.conv_relu_twice(h, self.conv3.weight, bias, shortcut, **how))
        h = self.conv1(x)
        h = _relu_conv(h, self.conv2) if isinstance(self.conv2, FrozenConv3x3) else self.conv2(F.relu(h))
        return ops.conv_relu(F.relu(h), self.conv3.weight, self.conv3.bias, self.shortcut(x), **how)


def _unbiased(shortcut: nn.Module, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The shortcut without its bias, and the `bias` of the convolution that it is added to with that in it."""
    one = shortcut[0] if isinstance(shortcut, nn.Sequential) and len(shortcut) else None
    more = getattr(one, "bias", None)
    if not isinstance(one, FrozenConvolution) or bias is None or more is None:
        return shortcut(x), bias
    total = _biases.of(more, "total", lambda: _added(bias, more))
    return ops.conv2d(x, one.weight, None, one.stride, one.padding), total


def _added(one: Tensor, other: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return (one.double() + other.double()).to(one.dtype)


class PreActivation(nn.Module):
    """affine map, ReLU, conv, ReLU, conv, plus the shortcut of what the first ReLU gives, or of x; plus x where there is none.

    Where one pass adds up, maps and rectifies, the last sum is left to the block that follows.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.affine: ChannelAffine = block.bn1
        self.conv1: FrozenConv3x3 | FrozenConvolution = block.conv1
        self.conv2: FrozenConv3x3 = block.conv2
        self.shortcut: nn.Module | None = block.convShortcut
        self.reads_input: bool = block.reads_input
        self._rectified = AffineRelu(self.affine)

    def forward(self, x: Tensor | TwoParts) -> Tensor | TwoParts:
        if isinstance(x, TwoParts) or switches.runs("affine_relu", x):
            total, h = self._rectified.summed(x)
            return TwoParts(self.conv2(self.conv1.with_relu(h)), self._residual(total, h))
        if ops.conv_relu_is_fused(x, self.conv1.weight, self.conv1.bias):
            h = F.relu(self.affine(x))
            return self.conv2(self.conv1.with_relu(h), residual=self._residual(x, h))
        if self.shortcut is not None:
            h = F.relu(self.affine(x))
            return _relu_conv(self.conv1(h), self.conv2, residual=self._residual(x, h))
        h = ops.relu_conv3x3(x, self.conv1.weight, self.conv1.bias, self.affine.slope, self.affine.offset)
        return _relu_conv(h, self.conv2, residual=x)

    def _residual(self, x: Tensor, h: Tensor) -> Tensor:
        return x if self.shortcut is None else self.shortcut(x if self.reads_input else h)


def _relu_conv(x: Tensor, conv: FrozenConv3x3, residual: Tensor | None = None) -> Tensor:
    return ops.relu_conv3x3(x, conv.weight, conv.bias, residual=residual)
