"""Classifiers for CIFAR as TRADES, RobustBench and kuangliu name and store their tensors, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from purify_engine.testing.published.batch_norms import Named, conv, drawn, linear, norm


def wide_resnet(
    depth: int, widen_factor: int, num_classes: int = 10, *, sub_block1: bool = False, seed: int = 0, device: str = "cpu"
) -> dict[str, Tensor]:
    """`WideResNet(depth, num_classes, widen_factor)`; with `sub_block1`, the copy of the first stage that nothing reads."""
    return drawn(_wide(depth, widen_factor, num_classes, sub_block1), seed, device)


def resnet(
    num_blocks: tuple[int, ...],
    planes: int = 64,
    num_classes: int = 10,
    *,
    bottleneck: bool = False,
    option_a: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """`ResNet(block, num_blocks)` of TRADES and kuangliu; `option_a`: Y. Idelbayev's, whose shortcuts have no weights."""
    return drawn(_narrow(num_blocks, planes, num_classes, bottleneck, option_a), seed, device)


def _wide(depth: int, widen_factor: int, num_classes: int, sub_block1: bool) -> Iterator[Named]:
    channels = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
    yield from conv("conv1", 3, channels[0], 3)
    for name, stage in [("block1", 0), *([("sub_block1", 0)] if sub_block1 else []), ("block2", 1), ("block3", 2)]:
        for index in range((depth - 4) // 6):
            block, out_channels = f"{name}.layer.{index}", channels[stage + 1]
            in_channels = channels[stage] if index == 0 else out_channels
            yield from norm(f"{block}.bn1", in_channels)
            yield from conv(f"{block}.conv1", in_channels, out_channels, 3)
            yield from norm(f"{block}.bn2", out_channels)
            yield from conv(f"{block}.conv2", out_channels, out_channels, 3)
            if in_channels != out_channels:
                yield from conv(f"{block}.convShortcut", in_channels, out_channels, 1)
    yield from norm("bn1", channels[3])
    yield from linear("fc", channels[3], num_classes)


def _narrow(num_blocks: tuple[int, ...], planes: int, num_classes: int, bottleneck: bool, option_a: bool) -> Iterator[Named]:
    expansion, in_planes = 4 if bottleneck else 1, planes
    yield from conv("conv1", 3, planes, 3)
    yield from norm("bn1", planes)
    for stage, blocks in enumerate(num_blocks):
        inner = planes * 2**stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            taps = (1, 3, 1) if bottleneck else (3, 3)
            widths = [in_planes, inner, *([inner] if bottleneck else []), inner * expansion]
            for number, (size, (channels, out_channels)) in enumerate(zip(taps, pairwise(widths), strict=True), start=1):
                yield from conv(f"{block}.conv{number}", channels, out_channels, size)
                yield from norm(f"{block}.bn{number}", out_channels)
            if in_planes != inner * expansion and not option_a:
                yield from conv(f"{block}.shortcut.0", in_planes, inner * expansion, 1)
                yield from norm(f"{block}.shortcut.1", inner * expansion)
            in_planes = inner * expansion
    yield from linear("linear", in_planes, num_classes)
