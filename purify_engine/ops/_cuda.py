"""The CUDA C++ extension: launching its kernels, which are handed device pointers and torch's current stream.

A launcher hands its inputs over in the layout and the precision they come in wherever the kernels read those, allocates what the
kernels fill, and never looks at a number on the device. What the kernels do not take (8-bit floats, an image or a group of 2**30
elements) a launcher declines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purify_engine.ops._extension import load
from purify_engine.ops._layout import is_channels_last
from purify_engine.ops._registry import Declines, Launcher

INTERFACE = 2  # of the extension that these launchers know how to call

CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}  # csrc/cuda/ops.h
MOST_ELEMENTS = 2**30  # of an image, or of a group: the kernels count them in 32 bits
TOO_LARGE = "its kernels count fewer than 2**30 elements"
OTHER_FLOATS = "its kernels read floats of 16, 32 and 64 bits"

ImageArguments = tuple[int, int, bool]  # address, dtype, whether channels_last
ChannelArguments = tuple[int, int, int]  # address, dtype, stride from one image to the next

extension: Any = load("_cuda", INTERFACE)  # None where it was never built


def cuda(run: Callable[..., Any], declines: Declines) -> Launcher | str:
    """A launcher of kernels of the extension, where it is built."""
    if extension is None:
        return "purify_engine._cuda is not built; build it with `pip install -e .` where there is nvcc"
    return Launcher(run, declines)


def launch(kernel: str, device: torch.device, *arguments: Any) -> None:
    """Queue a kernel of the extension on the device's current stream. If that fails it is a RuntimeError with the op's name."""
    with torch.cuda.device(device):
        getattr(extension, kernel)(torch.cuda.current_stream().cuda_stream, *arguments)


def empty(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """The one place where launchers allocate what kernels fill: a test poisons it here."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)


def images(x: Tensor | None) -> ImageArguments:
    """Images, or words, as the extension takes them."""
    return (0, 0, False) if x is None or not x.numel() else (x.data_ptr(), CODES[x.dtype], x.dim() == 4 and is_channels_last(x))


def channels(values: Tensor | None) -> ChannelArguments:
    """[C] or [B, C] as the extension takes them."""
    if values is None or not values.numel():
        return 0, 0, 0
    return values.data_ptr(), CODES[values.dtype], values.stride(0) if values.dim() == 2 else 0
