"""Residual blocks of a frozen classifier without batch norms: their ReLUs and sums belong to the convolutions beside them.

Each is made of a block that `folding.folded` has been through: its convolutions are our ops, its batch norms are gone,
or channel-wise affine maps.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.models.folding import ChannelAffine, FrozenConv3x3


class PostActivation(nn.Module):
    """conv, ReLU, conv, plus the shortcut, ReLU."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1: nn.Module = block.conv1
        self.conv2: FrozenConv3x3 = block.conv2
        self.shortcut: nn.Module = block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(_relu_conv(self.conv1(x), self.conv2, residual=self.shortcut(x)))


class PreActivation(nn.Module):
    """affine map, ReLU, conv, ReLU, conv, plus the shortcut of what the first ReLU gives; plus x where there is none."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.affine: ChannelAffine = block.bn1
        self.conv1: FrozenConv3x3 = block.conv1
        self.conv2: FrozenConv3x3 = block.conv2
        self.shortcut: nn.Module | None = block.convShortcut

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            h = F.relu(self.affine(x))
            return _relu_conv(self.conv1(h), self.conv2, residual=self.shortcut(h))
        h = ops.relu_conv3x3(x, self.conv1.weight, self.conv1.bias, self.affine.slope, self.affine.offset)
        return _relu_conv(h, self.conv2, residual=x)


def _relu_conv(x: Tensor, conv: FrozenConv3x3, residual: Tensor) -> Tensor:
    return ops.relu_conv3x3(x, conv.weight, conv.bias, residual=residual)
