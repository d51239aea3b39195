"""The ops: the same functions as in `purify_engine.reference`, run by the fastest engine this machine has.

`with ops.backend("reference"):` forces an engine; `library.py` lists them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import composed, conv3x3_winograd, flops, prepacked  # noqa: F401  (flops tells PyTorch's counter)
from purify_engine.ops import library as _library  # noqa: F401  (defines torch.ops.purify)
from purify_engine.ops.registry import OPS, admits_cpp, backend, call, forced, is_observed
from purify_engine.ops.stamp import is_frozen
from purify_engine.reference import layers
from purify_engine.types import Ids, Images, Key, Marginal, Rows, Step

__all__ = [
    "attention",
    "attention_backward",
    "backend",
    "conv1x1",
    "conv2d",
    "conv3x3",
    "conv3x3_backward",
    "forced",
    "group_norm_silu",
    "group_norm_silu_backward",
    "guided_step",
    "is_observed",
    "memory_format",
    "philox",
    "philox_normal",
    "q_sample",
    "relu_conv3x3",
    "relu_conv3x3_backward",
    "to_images",
]


def philox(key: Key, ids: Ids, step: Step, numel: int) -> Tensor:
    """The random words of `numel` elements of each image: int64 [B, numel] in [0, 2**32) (docs/math.md E5)."""
    return call(OPS["philox"], key, ids, step, numel)


def philox_normal(key: Key, ids: Ids, step: Step, numel: int, *, dtype: torch.dtype) -> Tensor:
    """Standard normals of `numel` elements of each image: [B, numel] in float32 or float64 (docs/math.md E5)."""
    return call(OPS["philox_normal"], key, ids, step, numel, dtype=dtype)


def q_sample(
    x_start: Images, marginal: Marginal, step: Step, key: Key, ids: Ids, *, net_dtype: torch.dtype | None = None
) -> tuple[Images, Images]:
    """`x_start` noised to `marginal`: (x_t, x_net), where x_net is the channels_last copy in `net_dtype`, or x_t itself.

    `marginal` is float64 [2], (sqrt(alpha_bar), sqrt(1 - alpha_bar)); `step` is the counter word of the noise (docs/math.md E4).
    Differentiable in x_start.
    """
    x_t, x_net = call(OPS["q_sample"], x_start, marginal, step, key, ids, net_dtype=net_dtype)
    return x_t, x_t if net_dtype is None else x_net


def guided_step(
    x_t: Images,
    eps: Images,
    grad: Images | None,
    rows: Rows,
    step: Step,
    key: Key,
    ids: Ids,
    *,
    net_dtype: torch.dtype | None = None,
) -> tuple[Images, Images]:
    """Row `step` of the plan: (x_next, x_net), where x_net is the channels_last copy in `net_dtype`, or x_next itself.

    `rows` is float64 [N, 4], a row being (a, b, d, c) (docs/math.md E7); x_t is float32 or float64, eps and grad any float. A
    grad of None guides nowhere and costs nothing. Differentiable in x_t, eps and grad, any number of times.
    """
    x_next, x_net = call(OPS["guided_step"], x_t, eps, grad, rows, step, key, ids, net_dtype=net_dtype)
    return x_next, x_next if net_dtype is None else x_net


def group_norm_silu(
    x: Images,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> Images:
    """GroupNorm, then `* (1 + scale) + shift` where given ([B, C] each), then SiLU unless `silu` is false.

    The result has the dtype and the memory format of `x` [B, C, H, W]. Differentiable in every tensor, any number of times.
    """
    return call(OPS["group_norm_silu"], x, weight, bias, scale, shift, num_groups, norm_eps, silu)


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
    """The gradient of `group_norm_silu`: (grad_x, grad_weight, grad_bias, grad_scale, grad_shift); empty if not given."""
    return call(OPS["group_norm_silu_backward"], grad_out, x, weight, bias, scale, shift, num_groups, norm_eps, silu)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over [B, heads, tokens, head_dim]. Differentiable, any number of times."""
    return call(OPS["attention"], q, k, v)


def attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of `attention`: (grad_q, grad_k, grad_v)."""
    return call(OPS["attention_backward"], grad_out, q, k, v)


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
    """gain (residual + conv(up(norm(x))) + bias + temb): a 3x3 convolution with what surrounds it in a U-Net (docs/math.md E19).

    x [B, C, H, W], `weight` [K, C, 3, 3], `bias` [K]; `norm_weight` to `shift`, `num_groups` and `norm_eps` as for
    `group_norm_silu`, none where nothing is to be normed; `temb` [B or 1, K]; `residual` of the result's shape; `upsample`
    repeats every pixel 2x2 first.
    Differentiable in every tensor, any number of times; where autograd records, its parts run and nothing is computed twice.
    """
    tensors = (x, weight, bias, norm_weight, norm_bias, scale, shift, temb, residual)
    recorded = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    op = OPS["conv3x3"]
    engine = op.engines[op.choose(x.device.type)]
    if engine is composed.conv3x3 or (recorded and not (engine is conv3x3_winograd.conv3x3 and is_frozen([weight]))):
        op.check(*tensors, num_groups, norm_eps, gain, upsample)  # the dispatcher is spared the composition
        return composed.conv3x3(*tensors, num_groups, norm_eps, gain, upsample)
    if recorded and norm_weight is not None and norm_bias is not None:
        x = group_norm_silu(x, norm_weight, norm_bias, scale, shift, num_groups, norm_eps)
        tensors = (x, weight, bias, None, None, None, None, temb, residual)
    return call(OPS["conv3x3"], *tensors, num_groups, norm_eps, gain, upsample)


def conv3x3_backward(grad_out: Images, weight: Tensor, upsample: bool = False) -> Images:
    """The gradient of `conv3x3`, without norm and gain, to its x: [B, K, H, W], [K, C, 3, 3] -> [B, C, H, W] (docs/math.md E19).

    With `upsample` x was half as high and wide. Differentiable in both, any number of times.
    """
    return call(OPS["conv3x3_backward"], grad_out, weight, upsample)


def relu_conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    residual: Images | None = None,
) -> Images:
    """residual + conv(relu(slope x + offset)) + bias: a 3x3 convolution as a residual classifier has it (docs/math.md E19).

    x [B, C, H, W], `weight` [K, C, 3, 3], `bias` [K], `residual` of the result's shape; `slope` and `offset` [C], or neither.
    One kernel on CPUs, elsewhere its parts. Differentiable in every tensor, any number of times.
    """
    tensors = (x, weight, bias, slope, offset, residual)
    op = OPS["relu_conv3x3"]
    if x.device.type == "cpu" and admits_cpp() and callable(op.engines["cpp"]):
        return call(op, *tensors)
    op.check(*tensors)
    if slope is not None:  # under autocast a line is more precise than the image
        x = x.to(torch.promote_types(x.dtype, slope.dtype))
    return conv3x3(F.relu(layers.on_line(x, slope, offset)), weight, bias, residual=residual)


def relu_conv3x3_backward(
    grad_out: Images,
    x: Images,
    weight: Tensor,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
) -> Images:
    """The gradient of `relu_conv3x3` to its x: grad_out [B, K, H, W], the rest as there -> [B, C, H, W] (docs/math.md E19).

    Differentiable in every tensor, any number of times.
    """
    return call(OPS["relu_conv3x3_backward"], grad_out, x, weight, slope, offset)


def conv1x1(x: Images, weight: Tensor, bias: Tensor | None = None) -> Images:
    """A 1x1 convolution, [B, C, H, W] and [K, C, 1, 1] -> [B, K, H, W]; of channels_last images on a CPU, one matrix product.

    (PyTorch's own convolution of a single small image takes a slow path there.) Differentiable in every tensor.
    """
    if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def conv2d(
    x: Images, weight: Tensor, bias: Tensor | None = None, stride: tuple[int, ...] = (1, 1), padding: tuple[int, ...] = (0, 0)
) -> Images:
    """A convolution of any size and stride: PyTorch's, on CPUs by weights laid out beforehand where they are frozen.

    [B, C, H, W] and [K, C, R, S] -> [B, K, H', W']. Differentiable in every tensor, any number of times.
    """
    if weight.shape[2:] == (1, 1) and (stride, padding) == ((1, 1), (0, 0)):
        return conv1x1(x, weight, bias)
    return prepacked.conv2d(x, weight, bias, stride, padding)


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format in which networks run fastest on tensors like `x`: our kernels on CPUs read float32 channels_last."""
    ours = x.device.type == "cpu" and x.dtype == torch.float32 and OPS["conv3x3"].engines["cpp"] is conv3x3_winograd.conv3x3
    return torch.channels_last if ours else torch.preserve_format


def to_images(x: Images, dtype: torch.dtype) -> Images:
    """Model space [-1, 1] to images: floats in [0, 1], or uint8 in [0, 255] (docs/math.md E9)."""
    return call(OPS["to_images"], x, dtype)
