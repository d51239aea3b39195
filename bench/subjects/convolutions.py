"""Every 3x3 convolution of the benchmarked networks, written out, so that `probe.py` needs nothing but PyTorch.

Held to the networks themselves by tests/test_bench.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Convolution(NamedTuple):
    """`repeats` convolutions of one kind in one pass over an image; `size` is the input's side, padding 1 on all of them.

    (Ho et al. pad the strided ones on two sides only, by 1: the same work.)
    """

    repeats: int
    channels: int
    out_channels: int
    size: int
    stride: int = 1

    @property
    def pixels(self) -> int:
        """Of the result."""
        return (self.size // self.stride) ** 2

    @property
    def flops(self) -> int:
        """Of one of them on one image, 2 a multiply-add."""
        return 2 * 9 * self.channels * self.out_channels * self.pixels


def _rows(*rows: tuple[int, ...]) -> tuple[Convolution, ...]:
    return tuple(Convolution(*row) for row in rows)


CONVOLUTIONS: dict[str, tuple[Convolution, ...]] = {
    "ddpm-cifar10": _rows(
        (1, 3, 128, 32), (7, 128, 128, 32), (1, 128, 128, 32, 2), (1, 128, 256, 16), (7, 256, 256, 16), (1, 256, 256, 16, 2),
        (8, 256, 256, 8), (1, 256, 256, 8, 2), (11, 256, 256, 4), (3, 512, 256, 4), (3, 512, 256, 8), (2, 512, 256, 16),
        (1, 384, 256, 16), (1, 256, 256, 32), (1, 384, 128, 32), (2, 256, 128, 32), (1, 128, 3, 32),
    ),
    "ddpmpp-cifar10": _rows(
        (1, 3, 128, 32), (13, 128, 128, 32), (2, 128, 128, 16), (1, 128, 256, 16), (14, 256, 256, 16), (17, 256, 256, 8),
        (19, 256, 256, 4), (5, 512, 256, 4), (5, 512, 256, 8), (4, 512, 256, 16), (1, 384, 256, 16), (2, 256, 256, 32),
        (1, 384, 128, 32), (4, 256, 128, 32), (1, 128, 3, 32),
    ),
    "adm-imagenet256": _rows(
        (1, 3, 256, 256), (9, 256, 256, 256), (9, 256, 256, 128), (2, 256, 256, 64), (1, 256, 512, 64), (8, 512, 512, 64),
        (9, 512, 512, 32), (2, 512, 512, 16), (1, 512, 1024, 16), (8, 1024, 1024, 16), (13, 1024, 1024, 8), (3, 2048, 1024, 8),
        (2, 2048, 1024, 16), (1, 1536, 1024, 16), (2, 1024, 1024, 32), (1, 1536, 512, 32), (2, 1024, 512, 32), (2, 1024, 512, 64),
        (1, 768, 512, 64), (2, 512, 512, 128), (1, 768, 256, 128), (2, 512, 256, 128), (3, 512, 256, 256), (1, 256, 6, 256),
    ),
    "resnet18": _rows(
        (1, 3, 64, 32), (4, 64, 64, 32), (1, 64, 128, 32, 2), (3, 128, 128, 16), (1, 128, 256, 16, 2), (3, 256, 256, 8),
        (1, 256, 512, 8, 2), (3, 512, 512, 4),
    ),
    "wrn-28-10": _rows(
        (1, 3, 16, 32), (1, 16, 160, 32), (7, 160, 160, 32), (1, 160, 320, 32, 2), (7, 320, 320, 16), (1, 320, 640, 16, 2),
        (7, 640, 640, 8),
    ),
}  # fmt: skip

# What a dry run measures instead.
TOY = {"toy": _rows((1, 3, 8, 8), (2, 8, 8, 8), (1, 8, 8, 8, 2))}
