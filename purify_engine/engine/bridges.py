"""Images of other sizes than the network's: what the network is given of them, and how the results are joined (docs/math.md E24).

A bridge stands around a whole purification with all its cycles: the guide, its target and a callback see what the network sees.
Gradients pass through a bridge exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.config import PurifierConfig, require
from purify_engine.models.denoiser import NetworkFacts
from purify_engine.reference.philox import derive_seed
from purify_engine.types import Images, NoiseKey

TILES = 2**48  # the first seed stream of tiles: + top * 2**24 + left, in pixels
CHOICES = "set sizes (--sizes) to"
Part = tuple[Images, NoiseKey]


class Bridge(Protocol):
    """What of an image the network is given, and the way back."""

    @property
    def taken(self) -> str:
        """Height and width of the images that are taken, as a shape names them."""
        ...

    @property
    def policy(self) -> str:
        """What is done to images of other sizes than the network's, in words."""
        ...

    def refusal(self, height: int, width: int) -> str | None:
        """Why images of this size are not taken, and what to do; None where they are."""
        ...

    def parts(self, x: Images, noise: NoiseKey) -> Iterator[Part]:
        """What the network is given of `x` [B, C, H, W] in [-1, 1], one after another, each with its noise."""
        ...

    def joined(self, purified: Iterable[Images], x: Images) -> Images:
        """The parts of `x` after purification, in their order, as images of its shape; one part is asked for at a time."""
        ...


@dataclass(frozen=True)
class Whole:
    """Images as they are: of the network's `side` alone, or of any multiples of `factor` where there is no `side`."""

    side: int | None
    factor: int

    @property
    def taken(self) -> str:
        return f"{self.side}, {self.side}" if self.side else "H, W"

    @property
    def policy(self) -> str:
        if self.side is not None:
            return f"exact: {self.side}x{self.side} alone"
        return "native: the network runs at the image's own height and width, which differ from training"

    def refusal(self, height: int, width: int) -> str | None:
        if self.side is not None:
            others = f"resize it first, or {CHOICES} resize, tile or native"
            return None if height == width == self.side else f"the network takes {self.side}x{self.side}: {others}"
        is_multiple = min(height, width) > 0 and height % self.factor == width % self.factor == 0
        others = f"crop it first, or {CHOICES} resize or tile"
        return None if is_multiple else f"the network takes multiples of {self.factor}: {others}"

    def parts(self, x: Images, noise: NoiseKey) -> Iterator[Part]:
        yield x, noise

    def joined(self, purified: Iterable[Images], x: Images) -> Images:
        (whole,) = purified
        return whole


@dataclass(frozen=True)
class Resized:
    """Any image, resized to the `side` of the network and back as in DiffPure: bilinear, corners not aligned, not antialiased.

    On GPUs PyTorch adds up this gradient in any order, unless `torch.use_deterministic_algorithms` forbids it.
    """

    side: int
    taken = "H, W"

    @property
    def policy(self) -> str:
        return f"resize: to {self.side}x{self.side} and back, bilinear, without antialiasing"

    def refusal(self, height: int, width: int) -> str | None:
        return None

    def parts(self, x: Images, noise: NoiseKey) -> Iterator[Part]:
        yield _resized(x, (self.side, self.side)), noise

    def joined(self, purified: Iterable[Images], x: Images) -> Images:
        (whole,) = purified
        return _resized(whole, (x.shape[2], x.shape[3]))


@dataclass(frozen=True)
class Tiled:
    """Images of the network's `side` at least, in tiles of it every `stride` pixels, the last ones shifted inwards.

    A tile has noise of its own, by where it stands; the one at the top left has the image's. Overlaps are averaged, with weights
    that fall towards those edges of a tile that are not the image's.
    """

    side: int
    stride: int
    taken = "H, W"

    @property
    def policy(self) -> str:
        return f"tile: {self.side}x{self.side} every {self.stride} pixels, each with noise of its own, overlaps averaged"

    def refusal(self, height: int, width: int) -> str | None:
        others = f"enlarge it first, or {CHOICES} resize or native"
        return None if min(height, width) >= self.side else f"a tile takes {self.side}x{self.side}: {others}"

    def parts(self, x: Images, noise: NoiseKey) -> Iterator[Part]:
        for top in self._starts(x.shape[2]):
            for left in self._starts(x.shape[3]):
                stream = TILES + (top << 24) + left
                key = derive_seed(noise.key, stream) if top or left else noise.key
                tile = x[:, :, top : top + self.side, left : left + self.side]
                yield x if tile.shape == x.shape else tile.contiguous(), NoiseKey(key, noise.ids)

    def joined(self, purified: Iterable[Images], x: Images) -> Images:
        height, width = x.shape[2:]
        rows, columns = self._shares(height, x.device), self._shares(width, x.device)
        places = [(row, column) for row in rows.items() for column in columns.items()]
        out = torch.zeros_like(x)
        for ((top, by_row), (left, by_column)), tile in zip(places, purified, strict=True):
            share = (by_row[:, None] * by_column).to(tile.dtype)
            out[:, :, top : top + self.side, left : left + self.side] += share * tile
        return out

    def _starts(self, length: int) -> list[int]:
        last = length - self.side
        return [*range(0, last, self.stride), last]

    def _shares(self, length: int, device: torch.device) -> dict[int, Tensor]:
        """By the start of a tile, its share in each of its rows (or columns), float64 [side]: exactly 1 where it stands alone."""
        middle, starts = (self.side + 1) // 2, self._starts(length)
        rising = torch.arange(1, self.side + 1, dtype=torch.float64, device=device).clamp(max=middle)
        even, total = torch.full_like(rising, middle), torch.zeros(length, dtype=torch.float64, device=device)
        weights = {}
        for start in starts:  # no ramp at the image's own edges, where no other tile lies
            before, behind = rising if start else even, rising.flip(0) if start < starts[-1] else even
            weights[start] = torch.minimum(before, behind)
            total[start : start + self.side] += weights[start]
        return {start: weight / total[start : start + self.side] for start, weight in weights.items()}


def make_bridge(config: PurifierConfig, network: NetworkFacts) -> Bridge:
    """The bridge that `config.sizes` names; ValueError where its tiles would leave gaps."""
    side = network.image_size
    stride = config.tile_stride or max(side * 3 // 4, 1)
    require(config.sizes != "tile" or stride <= side, "tile_stride", f"in [1, {side}], the network's size", config.tile_stride)
    if config.sizes == "resize":
        return Resized(side)
    if config.sizes == "tile":
        return Tiled(side, stride)
    return Whole(side if config.sizes == "exact" else None, 2**network.num_halvings)


def _resized(x: Images, size: tuple[int, int]) -> Images:
    """To (height, width); at that size already `x` itself."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
