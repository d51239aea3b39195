"""The layers that have kernels: GroupNorm + SiLU, attention, 3x3 convolution (docs/math.md E17, E18, E19)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_engine.types import Images


def is_channels_last(x: Tensor) -> bool:
    """Whether [B, C, H, W] is stored channels_last, and not contiguous as well (as with one channel, or one pixel)."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def in_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """`y` stored as `x` is: channels_last if `x` is that and nothing else, contiguous otherwise."""
    return y.contiguous(memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def _per_channel(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[C] or [B, C] as something that broadcasts over [B, C, H, W]."""
    return values.to(dtype)[..., None, None]


def group_norm_silu(
    x: Images,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
    skip: Images | None = None,
) -> Images:
    """GroupNorm (Wu & He 2018), then `* (1 + scale) + shift` where given, then SiLU unless `silu` is false.

    `weight` and `bias` are [C], `scale` and `shift` [B, C]. The result has the dtype and the memory format of `x`. The
    channels of a `skip` [B, C', H, W] follow those of x, and are normed with them.
    """
    x = x if skip is None else torch.cat([x, skip], dim=1)
    y = torch.group_norm(x, num_groups, weight.to(x.dtype), bias.to(x.dtype), norm_eps)
    if scale is not None:
        y = y * (1 + _per_channel(scale, x.dtype))
    if shift is not None:
        y = y + _per_channel(shift, x.dtype)
    return in_layout_of(x, F.silu(y) if silu else y)


def group_norm_silu_backward(
    grad_out: Images,
    x: Images,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradient of `group_norm_silu` at `x`: (grad_x, grad_weight, grad_bias, grad_scale, grad_shift).

    The gradient of a scale or shift that is not there is an empty tensor. Differentiable itself: its own gradient is autograd's.
    """
    dtype, spatial, group = x.dtype, (2, 3), (2, 3, 4)
    grouped = x.unflatten(1, (num_groups, -1))
    centred = grouped - grouped.mean(group, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(group, keepdim=True) + norm_eps)
    normed = (centred * rstd).flatten(1, 2)
    affine = normed * _per_channel(weight, dtype) + _per_channel(bias, dtype)
    gain = 1 if scale is None else 1 + _per_channel(scale, dtype)
    grad = grad_out.to(dtype)
    if silu:
        y = affine * gain if shift is None else affine * gain + _per_channel(shift, dtype)
        gate = torch.sigmoid(y)
        grad = grad * gate * (1 + y * (1 - gate))

    grad_scale = x.new_empty(0) if scale is None else (grad * affine).sum(spatial).to(scale.dtype)
    grad_shift = x.new_empty(0) if shift is None else grad.sum(spatial).to(shift.dtype)
    grad = grad * gain
    grad_weight = (grad * normed).sum((0, *spatial)).to(weight.dtype)
    grad_bias = grad.sum((0, *spatial)).to(bias.dtype)

    normed = centred * rstd
    towards_x = (grad * _per_channel(weight, dtype)).unflatten(1, (num_groups, -1))
    along = (towards_x * normed).mean(group, keepdim=True)
    grad_x = rstd * (towards_x - towards_x.mean(group, keepdim=True) - normed * along)
    return in_layout_of(x, grad_x.flatten(1, 2)), grad_weight, grad_bias, grad_scale, grad_shift


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over [B, heads, tokens, head_dim] (Vaswani et al. 2017).

    Stored [B, tokens, heads, head_dim], which is what channels_last images are: a U-Net reads it without a copy.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().transpose(1, 2)


def attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of `attention` at (q, k, v): (grad_q, grad_k, grad_v). Differentiable itself."""
    scale = 1 / math.sqrt(q.shape[-1])
    weights = torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1)
    towards = grad_out @ v.transpose(-2, -1)
    grad_scores = weights * (towards - (towards * weights).sum(-1, keepdim=True)) * scale
    return grad_scores @ k, grad_scores.transpose(-2, -1) @ q, weights.transpose(-2, -1) @ grad_out


def conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    temb: Tensor | None = None,
    residual: Images | None = None,
    num_groups: int = 1,
    norm_eps: float = 1e-5,
    gain: float = 1.0,
    upsample: bool = False,
) -> Images:
    """A 3x3 convolution, padding 1, with what a U-Net puts around it: gain (residual + conv(up(norm(x))) + bias + temb).

    x [B, C, H, W], `weight` [K, C, 3, 3], `bias` [K]. `norm_weight` to `shift` are the arguments of `group_norm_silu`; without
    them nothing is normed. `upsample` repeats every pixel 2x2 first. `temb` is [B, K] or [1, K], `residual` the result's shape.
    """
    if norm_weight is not None:
        assert norm_bias is not None
        x = group_norm_silu(x, norm_weight, norm_bias, scale, shift, num_groups, norm_eps)
    return convolved(x, weight, bias, temb, residual, gain, upsample)


def convolved(
    x: Images,
    weight: Tensor,
    bias: Tensor | None,
    temb: Tensor | None,
    residual: Images | None,
    gain: float,
    upsample: bool,
) -> Images:
    """`conv3x3` after its norm."""
    h = F.interpolate(x, scale_factor=2.0, mode="nearest") if upsample else x
    y = F.conv2d(h, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)
    return surrounded(y, temb, residual, gain, x.dtype)


def surrounded(y: Images, temb: Tensor | None, residual: Images | None, gain: float, dtype: torch.dtype) -> Images:
    """gain (residual + y + temb): what `convolved` does after its convolution, in the dtype of its images."""
    if temb is not None:
        y = y + _per_channel(temb, dtype)
    if residual is not None:
        y = residual.to(dtype) + y
    return y if gain == 1 else y * gain


def conv3x3_backward(grad_out: Images, weight: Tensor, upsample: bool = False) -> Images:
    """The gradient of `conv3x3`, without norm and gain, to its x: a convolution by filters turned round. Differentiable itself.

    grad_out [B, K, H, W], `weight` [K, C, 3, 3]; the result is [B, C, H, W], or half as high and wide with `upsample`.
    """
    return downsampled(F.conv_transpose2d(grad_out, weight.to(grad_out.dtype), padding=1), upsample)


def relu_conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    residual: Images | None = None,
) -> Images:
    """residual + conv(relu(slope x + offset)) + bias: a 3x3 convolution as a residual classifier has it, its batch norm a line.

    x [B, C, H, W], `weight` [K, C, 3, 3], `bias` [K]; `slope` and `offset` [C], or neither: relu(x); `residual` of the result's
    shape. What pads the image is zero behind the ReLU.
    """
    return convolved(F.relu(on_line(x, slope, offset)), weight, bias, None, residual, 1.0, False)


def relu_conv3x3_backward(
    grad_out: Images,
    x: Images,
    weight: Tensor,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
) -> Images:
    """The gradient of `relu_conv3x3` to its x, stored as x is. Differentiable itself."""
    return in_layout_of(x, behind_relu(conv3x3_backward(grad_out, weight), x, slope, offset))


def affine_relu(x: Images, slope: Tensor, offset: Tensor, residual: Images | None = None) -> tuple[Images, Images]:
    """(sum, relu(slope sum + offset)), sum = residual + x: between two blocks of a residual classifier, its batch norm a line.

    `slope` and `offset` are [C]. Both are stored as x is. Without a residual, the sum is x, and an empty tensor stands for it.
    """
    total = x if residual is None else in_layout_of(x, residual.to(x.dtype) + x)
    y = in_layout_of(x, F.relu(on_line(total, slope, offset)))
    return x.new_empty(0) if residual is None else total, y


def affine_relu_backward(grad_y: Images, y: Images, slope: Tensor, grad_sum: Images | None = None) -> Images:
    """The gradient of `affine_relu` to x, stored as y is, its second result. Differentiable itself."""
    grad = torch.where(y <= 0, 0, grad_y) * _per_channel(slope, grad_y.dtype)
    return in_layout_of(y, grad if grad_sum is None else grad_sum.to(grad.dtype) + grad)


def on_line(x: Images, slope: Tensor | None, offset: Tensor | None) -> Images:
    """slope x + offset in every channel; x itself without them."""
    if slope is None or offset is None:
        return x
    return torch.addcmul(_per_channel(offset, x.dtype), x, _per_channel(slope, x.dtype))


def behind_relu(grad: Images, x: Images, slope: Tensor | None, offset: Tensor | None) -> Images:
    """The gradient of relu(slope x + offset) to x, where it is `grad` to the ReLU's result."""
    grad = torch.where(on_line(x, slope, offset) <= 0, 0, grad)
    return grad if slope is None else grad * _per_channel(slope, grad.dtype)


def downsampled(grad: Images, upsample: bool) -> Images:
    """The gradient to what was upsampled, if it was: the sum over the four copies of a pixel."""
    return 4 * F.avg_pool2d(grad, 2) if upsample else grad
