"""What the ops refuse. Kernels work on bare pointers, so nothing gets past here that would make one read beyond a tensor.

The sentences are built for a refusal only: an op is called for every layer of every step.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purify_engine.config import require
from purify_engine.ops._arguments import Affine, Norm


def images(name: str, x: Tensor, shape: str = "[B, C, H, W]") -> None:
    """Float, of four dimensions."""
    if not x.is_floating_point() or x.dim() != 4:
        refuse(name, f"float images {shape}", x)


def like(name: str, tensor: Tensor | None, x: Tensor, shape: Sequence[int]) -> None:
    """A float tensor of this shape on the device of `x`, or none at all."""
    if tensor is None:
        return
    if not tensor.is_floating_point() or tensor.shape != shape:
        refuse(name, f"float {list(shape)}", tensor)
    if tensor.device != x.device:
        same_device(name, tensor, x)


def same_device(name: str, tensor: Tensor, x: Tensor) -> None:
    """On the device of `x`."""
    if tensor.device != x.device:
        require(False, name, f"on {x.device}, like the images", str(tensor.device))


def norm(x: Tensor, batch: int, channels: int, given: Norm, names: tuple[str, str] = ("weight", "bias")) -> None:
    """The norm of images [B, channels, H, W], of which `x` has some: weight and bias [C], scale and shift [B, C]."""
    weight, bias, scale, shift, num_groups, _ = given
    if num_groups < 1 or channels % num_groups:
        require(False, "num_groups", f"a divisor of the {channels} channels", num_groups)
    like(names[0], weight, x, (channels,))
    like(names[1], bias, x, (channels,))
    if scale is not None:
        like("scale", scale, x, (batch, channels))
    if shift is not None:
        like("shift", shift, x, (batch, channels))


def affine(x: Tensor, given: Affine) -> None:
    """slope and offset for every channel of `x`, or neither."""
    slope, offset = given
    if (slope is None) != (offset is None):
        require(False, "offset", "given with slope", None if offset is None else kind(offset))
    like("slope", slope, x, x.shape[1:2])
    like("offset", offset, x, x.shape[1:2])


def refuse(name: str, allowed: str, tensor: Tensor) -> None:
    """The one sentence for a tensor that is not allowed."""
    require(False, name, allowed, kind(tensor))


def kind(tensor: Tensor) -> str:
    """Dtype and shape, for a sentence."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
