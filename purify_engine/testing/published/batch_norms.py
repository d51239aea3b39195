"""Names and shapes of convolutions with batch norms, as PyTorch's modules store them, and random values for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Named = tuple[str, tuple[int, ...]]


def conv(name: str, channels: int, out_channels: int, taps: int) -> Iterator[Named]:
    """A square convolution without bias."""
    yield f"{name}.weight", (out_channels, channels, taps, taps)


def norm(name: str, channels: int) -> Iterator[Named]:
    """A batch norm with its statistics."""
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, features: int, classes: int) -> Iterator[Named]:
    """A head with its bias."""
    yield f"{name}.weight", (classes, features)
    yield f"{name}.bias", (classes,)


def drawn(named: Iterable[Named], seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """A float32 tensor of each shape, in the same order: deviations positive, activations of order one. On "meta" no values."""
    generator = torch.Generator().manual_seed(seed)

    def one(name: str, shape: tuple[int, ...]) -> Tensor:
        if device == "meta" or not shape:
            return torch.zeros(shape, device=device, dtype=torch.float32 if shape else torch.int64)
        if len(shape) > 1:
            return torch.randn(shape, generator=generator, device="cpu") * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        spread = torch.rand(shape, generator=generator, device="cpu")
        return spread + 0.5 if name.endswith(("running_var", ".weight")) else spread - 0.5

    return {name: one(name, shape) for name, shape in named}
