"""purify::group_norm_silu and its gradient: GroupNorm, a scale and shift by the time embedding, SiLU (docs/math.md E17)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.ops import _check, _cuda, _extension, _gradient, switches
from purify_engine.ops._arguments import Norm
from purify_engine.ops._layout import in_layout_of, is_channels_last
from purify_engine.ops._registry import IN_PYTORCH, Op, call, define
from purify_engine.ops._skip import are_read_apart, joined
from purify_engine.ops._triton import kernel, triton
from purify_engine.reference import layers as reference
from purify_engine.types import Images

_MOST_CHANNELS = 256  # of a group that CUDA C++ reads in channels_last: a block spans a pixel of it


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
    """GroupNorm, then `* (1 + scale) + shift` where given ([B, C] each), then SiLU unless `silu` is false.

    The result has the dtype and the memory format of `x` [B, C, H, W]; the channels of a `skip` [B, C', H, W] follow those of x.
    Differentiable in every tensor, any number of times.
    """
    return call(GROUP_NORM_SILU, x, weight, bias, scale, shift, num_groups, norm_eps, silu, skip)


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
    return call(GROUP_NORM_SILU_BACKWARD, grad_out, x, weight, bias, scale, shift, num_groups, norm_eps, silu)


def side_by_side(x: Images, skip: Images, norm: Norm) -> tuple[Images, Images | None]:
    """`x` and its `skip` where `norm` and `conv1x1` read the two where they are; else their `torch.cat`, and None.

    So that what several layers read is written together once, or never.
    """
    if are_read_apart(x, skip) and GROUP_NORM_SILU.resolve(x, *norm, True, skip)[0] == "cpp":
        return x, skip
    return joined(x, skip), None


def _bundle(x: Tensor, *others: Any) -> tuple[Tensor, Norm, bool, Tensor | None]:
    """(x, norm, silu, skip)."""
    if len(others) < 8:
        others += (True, None)[len(others) - 6 :]
    weight, bias, scale, shift, num_groups, norm_eps, silu, skip = others
    return x, Norm(weight, bias, scale, shift, num_groups, norm_eps), silu, skip


def _bundle_backward(grad_out: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Norm, bool]:
    return grad_out, x, Norm(*others[:6]), others[6] if len(others) > 6 else True


def check(
    x: Tensor, norm: Norm, silu: bool = True, skip: Tensor | None = None, names: tuple[str, str] = ("weight", "bias")
) -> None:
    """x [B, C, H, W], skip [B, C', H, W], weight and bias [C + C'], scale and shift [B, C + C'], in whole groups."""
    _check.images("x", x)
    batch, channels, height, width = x.shape
    if skip is not None:
        _check.like("skip", skip, x, (batch, skip.shape[1] if skip.dim() > 1 else 0, height, width))
        channels += skip.shape[1]
    _check.norm(x, batch, channels, norm, names)


def _check_backward(grad_out: Tensor, x: Tensor, norm: Norm, silu: bool) -> None:
    check(x, norm)
    _check.like("grad_out", grad_out, x, x.shape)


def group_norm_silu_cpp(x: Tensor, norm: Norm, silu: bool = True, skip: Tensor | None = None) -> Tensor:
    """Channels_last images as they are in float32 and bfloat16, and a skip where it is."""
    if _is_read_as_it_is(x) and (skip is None or skip.dtype == x.dtype and _is_read_as_it_is(skip)):
        return group_norm_silu_nhwc(x, norm, silu, skip)
    if skip is not None:
        return group_norm_silu_cpp(joined(x, skip), norm, silu)
    images = _extension.dense(x, _extension.computed_in(x))
    y = _extension.empty(x.shape, images.dtype)
    _extension.launch(_extension.named("group_norm_silu", y.dtype), y, _arguments_cpp(images, norm, silu))
    return in_layout_of(x, _extension.in_dtype(y, x.dtype))


def _is_read_as_it_is(image: Tensor) -> bool:
    return image.dtype in (torch.float32, torch.bfloat16) and is_channels_last(image)


def group_norm_silu_nhwc(x: Tensor, norm: Norm, silu: bool, skip: Tensor | None) -> Tensor:
    """Of channels_last images in float32 or bfloat16."""
    batch, own, height, width = x.shape
    channels = own if skip is None else own + skip.shape[1]
    y = _extension.empty((batch, channels, height, width), x.dtype, torch.channels_last)
    images = x.contiguous(memory_format=torch.channels_last)
    skip = None if skip is None else skip.contiguous(memory_format=torch.channels_last)
    arguments = _arguments_cpp(images, norm, silu, channels)
    _extension.launch(_extension.named("group_norm_silu_nhwc", x.dtype), y, arguments, skip, own)
    return y


def group_norm_silu_backward_cpp(
    grad_out: Tensor, x: Tensor, norm: Norm, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Channels_last images as they are in float32 and bfloat16."""
    dtype, layout, op = _extension.computed_in(x), torch.contiguous_format, "group_norm_silu_backward"
    stored = dtype
    if _is_read_as_it_is(x):
        stored, layout, op = x.dtype, torch.channels_last, "group_norm_silu_nhwc_backward"
    grad_out, images = (_extension.in_dtype(given, stored).contiguous(memory_format=layout) for given in (grad_out, x))
    grad_x = _extension.empty(x.shape, stored, layout)
    grads = [None if tensor is None else _extension.empty(tensor.shape, dtype) for tensor in norm.tensors]
    _extension.launch(_extension.named(op, stored), grad_x, *grads, grad_out, _arguments_cpp(images, norm, silu))
    like_inputs = (
        x.new_empty(0) if grad is None else _extension.in_dtype(grad, tensor.dtype)  # type: ignore[union-attr]
        for grad, tensor in zip(grads, norm.tensors, strict=True)
    )
    return in_layout_of(x, _extension.in_dtype(grad_x, x.dtype)), *like_inputs  # type: ignore[return-value]


def _arguments_cpp(images: Tensor, norm: Norm, silu: bool, channels: int | None = None) -> tuple[Any, ...]:
    """The arguments of both directions; `images` as the kernel reads them, `channels` where they have not all of them."""
    dtype = _extension.computed_in(images)
    *tensors, num_groups, norm_eps = norm
    dense = [None if tensor is None else _extension.dense(tensor, dtype) for tensor in tensors]
    batch, own, height, width = images.shape
    sizes = batch, channels or own, height * width
    return images, *dense, *sizes, num_groups, norm_eps, silu, torch.get_num_threads()


def group_norm_silu_cuda(x: Tensor, norm: Norm, silu: bool = True, skip: Tensor | None = None) -> Tensor:
    x = joined(x, skip)
    given = _NormCuda(x, norm, silu)
    y = given.empty_images()
    if x.numel():
        arguments = given.arguments(y)
        workspace = given.workspace(_cuda.extension.group_norm_silu_workspace(arguments))
        _cuda.launch("group_norm_silu", x.device, y.data_ptr(), workspace.data_ptr(), arguments)
    return in_layout_of(x, y)


def group_norm_silu_backward_cuda(
    grad_out: Tensor, x: Tensor, norm: Norm, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = _NormCuda(x, norm, silu)
    grad_out = grad_out.to(x.dtype).contiguous(memory_format=given.format)
    grad_x = given.empty_images()
    grads = [x.new_empty(0) if tensor is None else _cuda.empty(tensor.shape, tensor.dtype, x.device) for tensor in norm.tensors]
    if x.numel():
        arguments = given.arguments(grad_x, grad_out)
        workspace = given.workspace(_cuda.extension.group_norm_silu_backward_workspace(arguments))
        targets = (grad_x.data_ptr(), *(_cuda.channels(tensor) for tensor in grads))
        _cuda.launch("group_norm_silu_backward", x.device, targets, workspace.data_ptr(), grad_out.data_ptr(), arguments)
    else:
        grads = [torch.zeros_like(grad) for grad in grads]
    return in_layout_of(x, grad_x), *grads  # type: ignore[return-value]


class _NormCuda:
    """The arguments of both directions for the CUDA extension: x in its own dtype, the rest in that or in the arithmetic's."""

    def __init__(self, x: Tensor, norm: Norm, silu: bool) -> None:
        batch, channels, *pixels = x.shape
        native = is_channels_last(x) and channels // norm.num_groups <= _MOST_CHANNELS
        self.format = torch.channels_last if native else torch.contiguous_format
        self.work = _extension.computed_in(x)
        self._x = x.contiguous(memory_format=self.format)
        self._affine = [None if tensor is None else self._readable(tensor) for tensor in norm.tensors]
        self._rest = (batch, channels, torch.Size(pixels).numel(), norm.num_groups, norm.norm_eps, silu)

    def _readable(self, tensor: Tensor) -> Tensor:
        """Numbers that lie side by side within an image, in a dtype that the kernels read."""
        tensor = tensor if tensor.dtype in (self._x.dtype, self.work) else tensor.to(self.work)
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

    def empty_images(self) -> Tensor:
        return _cuda.empty(self._x.shape, self._x.dtype, self._x.device, self.format)

    def workspace(self, size: int) -> Tensor:
        """Memory of this many bytes."""
        return _cuda.empty(((size + 7) // 8,), torch.int64, self._x.device)

    def arguments(self, *others: Tensor) -> tuple[Any, ...]:
        """What the extension takes for a norm; `others` are the images besides x that the kernels touch."""
        aligned = not any(images.data_ptr() % 16 for images in (self._x, *others))
        return (_cuda.images(self._x), *(_cuda.channels(tensor) for tensor in self._affine), *self._rest, aligned)


def _declines_cuda(x: Tensor, norm: Norm, silu: bool, skip: Tensor | None = None) -> str | None:
    if not all(tensor is None or tensor.dtype in _cuda.CODES for tensor in (x, skip, *norm.tensors)):
        return _cuda.OTHER_FLOATS
    elements = (len(norm.weight) // norm.num_groups) * x.shape[2:].numel()
    return None if elements < _cuda.MOST_ELEMENTS else _cuda.TOO_LARGE


def _group_norm_silu_triton(x: Tensor, norm: Norm, silu: bool = True, skip: Tensor | None = None) -> Tensor:
    if switches.runs("lean_norm", x):
        _, y = kernel("sum_norm_silu", "sum_norm_silu")(x, None, None, None, 1.0, skip, norm, silu, False)
        return y
    return kernel("group_norm_silu", "group_norm_silu")(joined(x, skip), norm, silu)


def _differentiate(op: Op) -> None:
    """The gradient is an op of its own, of x and its skip in one tensor."""
    launch = _gradient.dispatched(GROUP_NORM_SILU_BACKWARD)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, norm, silu, skip = _bundle(*inputs)
        ctx.settings = norm.num_groups, norm.norm_eps, silu
        ctx.save_for_backward(x, *norm.tensors, skip)

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors, skip = ctx.saved_tensors
        grad_x, *grads = launch(grad_out, joined(x, skip), *tensors, *ctx.settings)
        own, other = (grad_x, None) if skip is None else (grad_x[:, : x.shape[1]], grad_x[:, x.shape[1] :])
        count = len(ctx.needs_input_grad)
        found = (own, *grads, None, None, None, other)[:count]
        return tuple(grad if wanted else None for grad, wanted in zip(found, ctx.needs_input_grad, strict=True))

    _gradient.register(op, backward, setup_context)


GROUP_NORM_SILU_BACKWARD = define(
    "group_norm_silu_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift,"
    " int num_groups, float norm_eps, bool silu=True) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.group_norm_silu_backward,
    bundle=_bundle_backward,
    check=_check_backward,
    gradient=_gradient.by_reference,
    torch=IN_PYTORCH,
    cpp=_extension.cpp(group_norm_silu_backward_cpp),
    cuda=_cuda.cuda(group_norm_silu_backward_cuda, lambda grad_out, *given: _declines_cuda(*given)),
    triton=triton(kernel("group_norm_silu", "group_norm_silu_backward")),
)

GROUP_NORM_SILU = define(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int num_groups, float norm_eps,"
    " bool silu=True, Tensor? skip=None) -> Tensor",
    reference.group_norm_silu,
    bundle=_bundle,
    check=check,
    gradient=_differentiate,
    torch=IN_PYTORCH,
    cpp=_extension.cpp(group_norm_silu_cpp),
    cuda=_cuda.cuda(group_norm_silu_cuda, _declines_cuda),
    triton=triton(_group_norm_silu_triton),
)
