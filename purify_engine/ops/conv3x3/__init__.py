"""purify::conv3x3 and its gradient: a 3x3 convolution with what surrounds it in a U-Net (docs/math.md E19).

One op, so that an engine may fuse what it can and leave the rest. On CPUs it is Winograd's filtering (winograd.py) by the table
of tiling.py; on GPUs Triton's kernel where it was measured to win; else PyTorch's convolution, the norm's own kernel before it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.config import require
from purify_engine.ops import _check, _extension, _gradient, _layout, resampling, switches
from purify_engine.ops._arguments import Around, Norm
from purify_engine.ops._registry import Launcher, Op, call, define, forced, is_recorded, parts_of_torch
from purify_engine.ops._triton import kernel, triton
from purify_engine.ops.conv3x3 import padded, turned, winograd
from purify_engine.ops.group_norm_silu import check as check_norm
from purify_engine.ops.group_norm_silu import group_norm_silu, group_norm_silu_cpp
from purify_engine.reference import layers as reference
from purify_engine.types import Images

_NO_CUDA = "CUDA C++ has the ops without which the loop cannot run; convolutions are Triton's or cuDNN's"
_CUDNN_BACKWARD = "cuDNN computes it; autograd reaches it through PyTorch's own convolution"
_DEFAULTS: tuple[Any, ...] = (*(None,) * 7, 1, 1e-5, 1.0, False)  # of the schema's arguments behind x and weight


def conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    *,
    temb: Tensor | None = None,
    residual: Images | None = None,
    gain: float = 1.0,
    upsample: bool = False,
) -> Images:
    """gain (residual + conv(up(norm(x))) + bias + temb): a 3x3 convolution with what surrounds it in a U-Net (docs/math.md E19).

    x [B, C, H, W], `weight` [K, C, 3, 3], `bias` [K]; `norm` as of `group_norm_silu`; `temb` [B or 1, K]; `residual` of the
    result's shape; `upsample` repeats every pixel 2x2 first.
    Differentiable in every tensor, any number of times; where autograd records, its parts run and nothing is computed twice.
    """
    if not is_recorded((x, weight, bias, temb, residual, *(norm or ()))):
        return call(CONV3X3, x, weight, bias, *_flat(norm, temb, residual, gain, upsample))
    engine, launch = CONV3X3.resolve(x, weight, bias, *_flat(norm, temb, residual, gain, upsample))
    # PyTorch differentiates its own operations; an op's rule would compute the convolution once more to do so.
    if engine == "torch":
        return launch()
    if norm is not None:  # an op of its own, whose gradient has kernels
        x = group_norm_silu(x, *norm)
    arguments = x, weight, bias, *_flat(None, temb, residual, gain, upsample)
    return CONV3X3.reference(*arguments) if engine == "reference" else call(CONV3X3, *arguments)


def conv3x3_backward(grad_out: Images, weight: Tensor, upsample: bool = False) -> Images:
    """The gradient of `conv3x3`, without norm and gain, to its x: [B, K, H, W], [K, C, 3, 3] -> [B, C, H, W] (docs/math.md E19).

    With `upsample` x was half as high and wide. Differentiable in both, any number of times.
    """
    return call(CONV3X3_BACKWARD, grad_out, weight, upsample)


def _flat(norm: Norm | None, temb: Tensor | None, residual: Tensor | None, gain: float, upsample: bool) -> tuple[Any, ...]:
    """The schema's arguments behind x, weight and bias."""
    if norm is None:
        return None, None, None, None, temb, residual, *_DEFAULTS[7:9], gain, upsample
    return *norm.tensors, temb, residual, norm.num_groups, norm.norm_eps, gain, upsample


def _bundle(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Norm | None, Around]:
    """(x, weight, norm, around)."""
    bias, norm_weight, norm_bias, scale, shift, temb, residual, num_groups, norm_eps, gain, upsample = (
        others + _DEFAULTS[len(others) :]
    )
    normed = norm_weight is not None or norm_bias is not None
    norm = Norm(norm_weight, norm_bias, scale, shift, num_groups, norm_eps) if normed else None
    return x, weight, norm, Around(bias, temb, residual, gain, upsample)


def check(x: Tensor, weight: Tensor, norm: Norm | None, around: Around) -> None:
    """x [B, C, H, W], weight [K, C, 3, 3], the rest to match; norm_weight and norm_bias together."""
    _check.images("x", x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        _check.refuse("weight", f"float [K, {x.shape[1]}, 3, 3]", weight)
    _check.like("weight", weight, x, weight.shape)
    if norm is not None:
        require(norm.weight is not None and norm.bias is not None, "norm_bias", "given with norm_weight", norm.bias)
        check_norm(x, norm, names=("norm_weight", "norm_bias"))
    batch, _, height, width = x.shape
    bias, temb, residual, _, _ = around
    channels, zoom = weight.shape[0], around.zoom
    _check.like("bias", bias, x, (channels,))
    _check.like("temb", temb, x, (channels,) if temb is None else (1 if temb.shape[0] == 1 else batch, channels))
    _check.like("residual", residual, x, (batch, channels, zoom * height, zoom * width))


def check_backward(grad_out: Tensor, weight: Tensor, upsample: bool = False) -> None:
    """grad_out [B, K, H, W], weight [K, C, 3, 3]; with upsample, H and W even."""
    _check.images("grad_out", grad_out, "[B, K, H, W]")
    if weight.dim() != 4 or weight.shape[0] != grad_out.shape[1] or weight.shape[2:] != (3, 3):
        _check.refuse("weight", f"float [{grad_out.shape[1]}, C, 3, 3]", weight)
    _check.like("weight", weight, grad_out, weight.shape)
    if upsample and (grad_out.shape[2] % 2 or grad_out.shape[3] % 2):
        _check.refuse("grad_out", "of even height and width, being the gradient of an upsampled image", grad_out)


def _conv3x3_torch(x: Tensor, weight: Tensor, norm: Norm | None, around: Around) -> Tensor:
    """The norm by its own kernel, the rest by PyTorch."""
    if norm is not None:
        with parts_of_torch():
            x = group_norm_silu(x, *norm)
    if around.upsample and resampling.is_transposed(x, weight):
        bias, temb, residual, gain, _ = around
        y = resampling.upsampled(x, weight, None if bias is None else bias.to(x.dtype))
        return reference.surrounded(y, temb, residual, gain, x.dtype)
    if is_recorded((x,)) and turned.runs(x, weight):
        return turned.surrounded(x, weight, around)
    return _conv3x3_padded(x, weight, around) if padded.runs(x, weight) else reference.convolved(x, weight, *around)


def _conv3x3_padded(x: Tensor, weight: Tensor, around: Around) -> Tensor:
    """PyTorch differentiates its operations."""
    bias, temb, residual, gain, upsample = around
    h = F.interpolate(x, scale_factor=2.0, mode="nearest") if upsample else x
    y = padded.convolved(h, weight, None if bias is None else bias.to(x.dtype))
    return reference.surrounded(y, temb, residual, gain, x.dtype)


def _conv3x3_cpp(x: Tensor, weight: Tensor, norm: Norm | None, around: Around) -> Tensor:
    if norm is not None:
        x = group_norm_silu_cpp(x, norm)
    y = winograd.convolved(x, weight, around)
    return y.contiguous(memory_format=_layout.of_convolution(x, weight, around.residual))


def _conv3x3_triton(x: Tensor, weight: Tensor, norm: Norm | None, around: Around) -> Tensor:
    y = kernel("conv3x3", "conv3x3")(x, weight, norm, around)
    return y.contiguous(memory_format=_layout.of_convolution(x, weight, around.residual))


def _declines_triton(x: Tensor, weight: Tensor, norm: Norm | None, around: Around) -> str | None:
    """Where nothing forces it, it is for what it was measured to win, and not where PyTorch's own gradient is wanted."""
    if forced() != "triton":
        if is_recorded((x, weight, *(norm or ()), *around)):
            return "PyTorch differentiates its own convolution, with nothing computed twice"
        if not (switches.runs("split_k", x) and kernel("conv3x3", "wins")(x, weight, around.upsample)):
            return "cuDNN is faster here, or was not compared"
    return kernel("conv3x3", "declines")(x)


def _conv3x3_backward_cpp(grad_out: Tensor, weight: Tensor, upsample: bool = False) -> Tensor:
    """A convolution as well, by filters turned round; of an upsampled image, four copies of a pixel are added up."""
    grad = winograd.convolved(grad_out, weight, flip=True)
    grad = 4 * F.avg_pool2d(grad, 2) if upsample else grad
    return grad.contiguous(memory_format=_layout.of_convolution(grad_out, weight))


def _declines_backward(grad_out: Tensor, weight: Tensor, upsample: bool = False) -> str | None:
    return winograd.declines(grad_out, weight, winograd.ALONE, flip=True)


def _differentiate(op: Op) -> None:
    """A convolution by frozen filters, unnormed: linear, and its gradient to x an op of its own. Else that of its parts."""
    launch, generic = _gradient.dispatched(CONV3X3_BACKWARD), _gradient.Recomputed(_of_parts)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        generic.setup_context(ctx, inputs, output)
        _, weight, norm, _ = _bundle(*inputs)
        ctx.linear = norm is None and not weight.requires_grad

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.linear:
            return generic.backward(ctx, grad)
        inputs = generic.inputs_of(ctx)
        x, weight, _, (bias, temb, residual, gain, upsample) = _bundle(*inputs)
        wanted = _gradient.wanted(ctx, len(inputs))
        grad = grad if gain == 1 else gain * grad
        to_x = launch(grad.to(x.dtype), weight, upsample) if wanted[0] else None
        to_bias = grad.sum((0, 2, 3)).to(bias.dtype) if bias is not None and wanted[2] else None
        to_temb = grad.sum((2, 3)).sum_to_size(temb.shape).to(temb.dtype) if temb is not None and wanted[7] else None
        to_residual = grad.to(residual.dtype) if residual is not None and wanted[8] else None
        return (to_x, None, to_bias, *(None,) * 4, to_temb, to_residual, *(None,) * 4)[: len(ctx.needs_input_grad)]

    _gradient.register(op, backward, setup_context)


def _of_parts(*flat: Any) -> Tensor:
    return _conv3x3_torch(*_bundle(*flat))


def _differentiate_backward(op: Op) -> None:
    """Linear in grad_out, its gradient being the convolution again; to filters that want one, the reference's."""
    generic = _gradient.Recomputed(op.reference)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[1]:
            return generic.backward(ctx, grad)
        _, weight, upsample = generic.inputs_of(ctx)
        launch = _gradient.dispatched(CONV3X3)  # defined below
        return launch(grad, weight, upsample=upsample), *(None,) * (len(ctx.needs_input_grad) - 1)

    _gradient.register(op, backward, generic.setup_context)


def flops(x: list[int], weight: list[int], *others: Any, out_shape: Any = None, **_: Any) -> int:
    """Nine products an input channel, for each element of the result."""
    return 2 * 9 * weight[1] * math.prod(out_shape)


def _flops_backward(grad_out: list[int], weight: list[int], *others: Any, out_shape: Any = None, **_: Any) -> int:
    """As many as the convolution, before its upsampled pixels are added up."""
    return 2 * 9 * weight[1] * math.prod(grad_out)


CONV3X3_BACKWARD = define(
    "conv3x3_backward(Tensor grad_out, Tensor weight, bool upsample=False) -> Tensor",
    reference.conv3x3_backward,
    check=check_backward,
    gradient=_differentiate_backward,
    flops=_flops_backward,
    torch="its specification is PyTorch's own transposed convolution already",
    cpp=_extension.cpp(_conv3x3_backward_cpp, _declines_backward, judge="whole"),
    cuda=_NO_CUDA,
    triton=_CUDNN_BACKWARD,
)

CONV3X3 = define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias=None, Tensor? norm_weight=None, Tensor? norm_bias=None, Tensor? scale=None,"
    " Tensor? shift=None, Tensor? temb=None, Tensor? residual=None, int num_groups=1, float norm_eps=1e-5, float gain=1.0,"
    " bool upsample=False) -> Tensor",
    reference.conv3x3,
    bundle=_bundle,
    check=check,
    gradient=_differentiate,
    flops=flops,
    torch=Launcher(_conv3x3_torch, judge="whole"),
    cpp=_extension.cpp(_conv3x3_cpp, lambda x, weight, norm, around: winograd.declines(x, weight, around), judge="whole"),
    cuda=_NO_CUDA,
    triton=triton(_conv3x3_triton, _declines_triton),
)


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format in which networks run fastest on tensors like `x`: our kernels on CPUs read float32 channels_last.

    That is where they run a convolution as networks have them. RuntimeError where an engine is forced that runs none.
    """
    if x.device.type != "cpu":
        return torch.preserve_format
    if torch.compiler.is_compiling():  # who runs a call shows when it runs
        ours = x.dtype == torch.float32 and isinstance(CONV3X3.engines["cpp"], Launcher)
    else:
        ours = CONV3X3.resolve(*_typical(x.dtype))[0] == "cpp"
    return torch.channels_last if ours else torch.preserve_format


@cache
def _typical(dtype: torch.dtype) -> tuple[Images, Tensor]:
    """The images and the frozen filters of a convolution that no table gives to PyTorch."""
    with torch.inference_mode(False):  # whose tensors count no changes, and so are not taken for frozen
        return torch.zeros(1, 128, 32, 32, dtype=dtype, device="cpu"), torch.zeros(128, 128, 3, 3, dtype=dtype, device="cpu")
