"""Faster ways through a network in 16 bits on GPUs, each behind a switch that one process can flip, and what each promises.

Two contracts, never mixed. *exact*: equal to its parts to the bit, which is checked on the first tensors of every shape. *fast*:
the same function, rounded otherwise; held to the specification in float64 by the yardstick, and in benchmarks to the final image
and the classifier's verdicts. float32, float64 and CPUs never take these ways.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from purify_engine.config import require
from purify_engine.devices import SIXTEEN_BITS

Contract = Literal["exact", "fast"]
Result = TypeVar("Result", Tensor, tuple[Tensor, ...])


@dataclass(frozen=True)
class Switch:
    """A faster way: what it promises, what it does, where it is taken, whether it is where nothing is said, and who computes."""

    contract: Contract
    says: str
    used: str
    default: bool = True
    engine: str = "Triton"


SWITCHES = {
    "linear_1x1": Switch(
        "fast", "a 1x1 convolution is a matrix product with the bias in its epilogue", "U-Net: qkv, shortcuts", engine="cuBLASLt"
    ),
    "transposed_upsample": Switch(
        "fast", "nearest 2x and a 3x3 convolution are one transposed 4x4 convolution", "upsampling", engine="cuDNN"
    ),
    "padded_downsample": Switch("fast", "padding right and below is part of a 4x4 filter", "downsampling", engine="cuDNN"),
    "benchmark_limit": Switch(
        "fast", "cuDNN times up to 40 algorithms of a convolution instead of 10", "captured graphs", engine="cuDNN"
    ),
    "sum_in_norm": Switch("fast", "a norm adds the bias, embedding, residual and skip of what it reads", "U-Net, inference"),
    "lean_norm": Switch("fast", "the norm in 16 bits by exact tiles, without an origin", "U-Net: every GroupNorm"),
    "fused_sum": Switch("exact", "bias and residual are added in one pass", "U-Net: sums that no norm reads"),
    "conv_relu": Switch("fast", "cuDNN adds bias and residual and applies the ReLU after a convolution", "guide", engine="cuDNN"),
    "turned_filters": Switch(
        "fast", "the gradient of a 3x3 convolution is one by turned filters", "guide, exact gradient", engine="cuDNN"
    ),
    "padded_channels": Switch(
        "fast", "a 3x3 convolution has zeros for channels, up to 8", "U-Net and guide: from and to images", engine="cuDNN"
    ),
    "affine_relu": Switch("fast", "residual sum, folded batch norm and ReLU are one pass", "guide: WideResNet"),
    "masked_sum": Switch("exact", "gradients of a ReLU's two readers are summed in the pass of its mask", "guide: ResNet"),
    "guide_ends": Switch(
        "fast", "images are mapped in one pass, the objective's gradient is written out", "guide: its two ends", engine="PyTorch"
    ),
    "pixel_key": Switch("exact", "the pixel guide's seed is derived once a call", "guide: pixels", engine="PyTorch"),
    "library_attention": Switch(
        "fast", "attention is PyTorch's choice of flash and cuDNN", "U-Net, without its gradient", False, engine="PyTorch"
    ),
    "captured_opening": Switch(
        "exact", "a guide's target and the noised images are a graph, too", "before the first step", engine="CUDA graph"
    ),
    "whole_plan": Switch(
        "exact", "all steps of a short plan are one graph", "captured graphs, small batches", default=False, engine="CUDA graph"
    ),
    "split_k": Switch("fast", "the terms of a small 3x3 convolution are split over programs", "U-Net, by a measured table"),
}


class _Thread(threading.local):
    def __init__(self) -> None:
        self.on = {name: switch.default for name, switch in SWITCHES.items()}
        self.anywhere = False


_thread = _Thread()
_proofs: dict[tuple[object, ...], bool] = {}  # (switch, what describes the call) -> whether it was equal to its parts


def runs(name: str, x: Tensor) -> bool:
    """Whether the way of this name is taken for `x`: it is switched on, and `x` is of 16 bits on a GPU. A compiler takes none."""
    if torch.compiler.is_compiling():  # first: what a thread has set breaks a graph that is being compiled
        return False
    if _thread.anywhere:
        return _thread.on[name]
    return x.is_cuda and x.dtype in SIXTEEN_BITS and _thread.on[name]


def is_on(name: str) -> bool:
    """Whether a switch is on in this thread, whatever the device."""
    return _thread.on[name]


@contextmanager
def switched(**on: bool) -> Iterator[None]:
    """Turn switches on or off, by name, in this thread. ValueError where a name is not one of `SWITCHES`."""
    for name in on:
        require(name in SWITCHES, "switch", f"one of {', '.join(SWITCHES)}", name)
    before = _thread.on
    _thread.on = {**before, **on}
    try:
        yield
    finally:
        _thread.on = before


@contextmanager
def anywhere() -> Iterator[None]:
    """Take the ways that are switched on in any precision and on any device: to hold them to the specification in float64."""
    before, _thread.anywhere = _thread.anywhere, True
    try:
        yield
    finally:
        _thread.anywhere = before


def state() -> tuple[object, ...]:
    """All that decides which ways are taken in this thread; a captured graph goes on taking those of its capture."""
    return _thread.anywhere, *_thread.on.values()


def proven(name: str, key: tuple[object, ...], fused: Callable[[], Result], parts: Callable[[], Result]) -> Result:
    """`fused()` where it was equal to `parts()`, to the bit, in the first call with this `key`; `parts()` elsewhere.

    `key` says what the proof holds for: shapes, dtype, device. It is taken outside a capture, whose warm-up comes before; a
    difference is a warning, once.
    """
    whole_key = name, *key
    proof = _proofs.get(whole_key)
    if proof is not None:
        return fused() if proof else parts()
    expected = parts()
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return expected
    got = fused()
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else ((got, expected),)
    equal = _proofs[whole_key] = all(_same(one, other) for one, other in pairs)
    if not equal:
        warnings.warn(f"{name} is not equal to its parts for {key} and stays off there", RuntimeWarning, stacklevel=2)
    return expected


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit: NaN is equal to NaN. Without numbers, on the meta device, nothing is proven or refuted."""
    if one.is_meta:
        return True
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
