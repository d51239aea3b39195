"""ResNets as torchvision's models/resnet.py stores them, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from purify_engine.testing.published.batch_norms import Named, conv, drawn, linear, norm


def state_dict(
    layers: tuple[int, ...],
    planes: int = 64,
    num_classes: int = 1000,
    *,
    bottleneck: bool = False,
    width_per_group: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """`ResNet(block, layers, num_classes, width_per_group)`; its `planes` are always 64, and so is its usual width_per_group."""
    return drawn(_parameters(layers, planes, num_classes, bottleneck, (width_per_group or planes) / planes), seed, device)


def _parameters(
    layers: tuple[int, ...], planes: int, num_classes: int, bottleneck: bool, widening: float
) -> Iterator[Named]:
    inplanes = planes
    yield from conv("conv1", 3, planes, 7)
    yield from norm("bn1", planes)
    for stage, blocks in enumerate(layers):
        out_planes = planes * 2**stage * (4 if bottleneck else 1)
        width = int(planes * 2**stage * (widening if bottleneck else 1))
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            taps = (1, 3, 1) if bottleneck else (3, 3)
            widths = [inplanes, width, *([width] if bottleneck else []), out_planes]
            for number, (size, (channels, out_channels)) in enumerate(zip(taps, pairwise(widths), strict=True), start=1):
                yield from conv(f"{block}.conv{number}", channels, out_channels, size)
                yield from norm(f"{block}.bn{number}", out_channels)
            if index == 0 and (stage > 0 or inplanes != out_planes):
                yield from conv(f"{block}.downsample.0", inplanes, out_planes, 1)
                yield from norm(f"{block}.downsample.1", out_planes)
            inplanes = out_planes
    yield from linear("fc", inplanes, num_classes)
