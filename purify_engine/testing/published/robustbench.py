"""DeepMind's robust networks as RobustBench's `DMWideResNet` and `DMPreActResNet` store them, with random weights."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from purify_engine.testing.published.batch_norms import Named, conv, drawn, linear, norm


def dm_wide_resnet(depth: int, width: int, num_classes: int = 10, *, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """`DMWideResNet(num_classes, depth, width)`."""
    return drawn(_wide(depth, width, num_classes), seed, device)


def dm_preact_resnet(
    num_blocks: tuple[int, ...], planes: int = 64, num_classes: int = 10, *, seed: int = 0, device: str = "cpu"
) -> dict[str, Tensor]:
    """`DMPreActResNet(num_classes, depth)`, whose shortcuts are 3x3; its `planes` are always 64."""
    return drawn(_narrow(num_blocks, planes, num_classes), seed, device)


def _wide(depth: int, width: int, num_classes: int) -> Iterator[Named]:
    channels = [16, 16 * width, 32 * width, 64 * width]
    yield from conv("init_conv", 3, channels[0], 3)
    for group in range(3):
        for index in range((depth - 4) // 6):
            block, out_channels = f"layer.{group}.block.{index}", channels[group + 1]
            in_channels = channels[group] if index == 0 else out_channels
            yield from norm(f"{block}.batchnorm_0", in_channels)
            yield from conv(f"{block}.conv_0", in_channels, out_channels, 3)
            yield from norm(f"{block}.batchnorm_1", out_channels)
            yield from conv(f"{block}.conv_1", out_channels, out_channels, 3)
            if in_channels != out_channels:
                yield from conv(f"{block}.shortcut", in_channels, out_channels, 1)
    yield from norm("batchnorm", channels[3])
    yield from linear("logits", channels[3], num_classes)


def _narrow(num_blocks: tuple[int, ...], planes: int, num_classes: int) -> Iterator[Named]:
    in_planes = planes
    yield from conv("conv_2d", 3, planes, 3)
    for stage, blocks in enumerate(num_blocks):
        out_planes = planes * 2**stage
        for index in range(blocks):
            block = f"layer_{stage}.{index}"
            yield from norm(f"{block}.batchnorm_0", in_planes)
            yield from conv(f"{block}.conv_2d_1", in_planes, out_planes, 3)
            yield from norm(f"{block}.batchnorm_1", out_planes)
            yield from conv(f"{block}.conv_2d_2", out_planes, out_planes, 3)
            if in_planes != out_planes:
                yield from conv(f"{block}.shortcut", in_planes, out_planes, 3)
            in_planes = out_planes
    yield from norm("batchnorm", in_planes)
    yield from linear("logits", in_planes, num_classes)
