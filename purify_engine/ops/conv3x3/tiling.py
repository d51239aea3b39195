"""Which 3x3 convolutions Winograd's filtering takes on a CPU, and how: plain functions of the problem, nothing is tried out."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from purify_engine.ops.conv3x3.table import WINNERS


class Tiling(NamedTuple):
    """F(results x results, 3x3) with so many tiles worked on at a time, at most; the filters kept transformed, or as they are."""

    results: int
    block: int
    keep: bool


FEW = 20480  # elements of a single image up to which PyTorch convolves by matrix products, slowly and a little more accurately


def admitted(images: int, height: int, width: int, channels: int, out_channels: int) -> tuple[int, ...]:
    """Which F(results x results, 3x3) are accurate here: at most four times as wrong as PyTorch's convolution in float32.

    Few channels average no errors out, and images smaller than a tile are mostly the transforms' errors.
    """
    if min(channels, out_channels) < 16 or min(height, width) < 4:
        return ()
    few = images == 1 and channels * height * width <= FEW
    return (2,) if few or min(height, width) < 6 else (2, 4)


@cache
def tiling(images: int, height: int, width: int, channels: int, out_channels: int, instruction_set: str) -> Tiling | None:
    """The measured winner of the most similar problem; None: direct convolution is faster."""
    possible = admitted(images, height, width, channels, out_channels)
    if not possible:
        return None
    winners = WINNERS.get(instruction_set, WINNERS["avx2"])
    asked = images, min(height, width), channels, out_channels
    winner = winners[min(winners, key=lambda measured: _distance(asked, measured))]
    if winner is None:
        return None
    best = Tiling(*winner)
    return best if best.results in possible else best._replace(results=possible[-1])


def _distance(asked: tuple[int, ...], measured: tuple[int, ...]) -> float:
    """How unlike two problems are: by the ratios of their sizes."""
    return sum(math.log2(one / other) ** 2 for one, other in zip(asked, measured, strict=True))
