"""Pre-activation ResNets as kuangliu's and RobustBench's `PreActResNet` store them, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from purify_engine.testing.published.batch_norms import Named, conv, drawn, linear, norm


def state_dict(
    num_blocks: tuple[int, ...],
    planes: int = 64,
    num_classes: int = 10,
    *,
    bottleneck: bool = False,
    bn_before_fc: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """`PreActResNet(block, num_blocks, num_classes, bn_before_fc)`, of `PreActBlock` or `PreActBottleneck`."""
    return drawn(_parameters(num_blocks, planes, num_classes, bottleneck, bn_before_fc), seed, device)


def _parameters(num_blocks: tuple[int, ...], planes: int, num_classes: int, bottleneck: bool, ends: bool) -> Iterator[Named]:
    expansion, in_planes = 4 if bottleneck else 1, planes
    yield from conv("conv1", 3, planes, 3)
    for stage, blocks in enumerate(num_blocks):
        inner = planes * 2**stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            taps = (1, 3, 1) if bottleneck else (3, 3)
            widths = [in_planes, inner, *([inner] if bottleneck else []), inner * expansion]
            for number, (size, (channels, out_channels)) in enumerate(zip(taps, pairwise(widths), strict=True), start=1):
                yield from norm(f"{block}.bn{number}", channels)
                yield from conv(f"{block}.conv{number}", channels, out_channels, size)
            if in_planes != inner * expansion:
                yield from conv(f"{block}.shortcut.0", in_planes, inner * expansion, 1)
            in_planes = inner * expansion
    if ends:
        yield from norm("bn", in_planes)
    yield from linear("linear", in_planes, num_classes)
