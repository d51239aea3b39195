"""Every op of the project: its schema, its specification, and who runs it. Read this first.

`purify::<name>` is defined once, here. The reference runs everywhere; an engine that an op does without says why.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from purify_engine.ops import checks, composed, conv3x3_winograd, cpp, cuda
from purify_engine.ops.gradients import (
    differentiate_by_op,
    differentiate_by_reference,
    differentiate_conv3x3,
    differentiate_conv3x3_backward,
    differentiate_guided_step,
    differentiate_q_sample,
    differentiate_relu_conv3x3,
    differentiate_relu_conv3x3_backward,
)
from purify_engine.ops.registry import Launcher, define, forced
from purify_engine.reference import layers, philox, process

_NO_CUDA = "CUDA C++ has the ops without which the loop cannot run; the matrix kernels are Triton's, or PyTorch's own"
_TWO_PRODUCTS = "its matrix products are oneDNN's already, and the softmax between them is 1 % of a U-Net on a CPU"
_CUDNN_BACKWARD = "cuDNN computes it; autograd reaches it through PyTorch's own convolution"
_APART = "line, ReLU and `conv3x3` are run apart there"
_ONE_CALL = "a few elementwise calls of PyTorch, once in a purification"


def _cpp(launcher: Launcher) -> Launcher | str:
    return launcher if cpp.room else "purify_engine._C is not built; build it with `pip install -e .` and a C++ compiler"


def _cuda(launcher: Launcher) -> Launcher | str:
    return launcher if cuda.room else "purify_engine._cuda is not built; build it with `pip install -e .` where there is nvcc"


def _triton(stem: str, name: str | None = None, unforced: str | None = None) -> Launcher | str:
    """The host function `name` of `kernels/<stem>.py`, or `unforced` where nobody insists; the first call enters the room."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` brings it"

    def launch(*args: Any, **kwargs: Any) -> Any:
        chosen = unforced if unforced and forced() != "triton" else name or stem
        return getattr(importlib.import_module(f"purify_engine.kernels.{stem}"), chosen)(*args, **kwargs)

    return launch


philox_words = define(
    "philox(Tensor key, Tensor ids, Tensor step, SymInt numel) -> Tensor",
    philox.philox,
    check=checks.noise,
    cpp=_cpp(cpp.philox),
    cuda=_cuda(cuda.philox),
    triton=_triton("philox"),
)

philox_normal = define(
    "philox_normal(Tensor key, Tensor ids, Tensor step, SymInt numel, *, ScalarType dtype) -> Tensor",
    philox.philox_normal,
    check=checks.noise,
    cpp=_cpp(cpp.philox_normal),
    cuda=_cuda(cuda.philox_normal),
    triton=_triton("philox", "philox_normal"),
)

q_sample = define(
    "q_sample(Tensor x_start, Tensor marginal, Tensor step, Tensor key, Tensor ids, *, ScalarType? net_dtype=None)"
    " -> (Tensor, Tensor)",
    process.q_sample,
    check=checks.q_sample,
    cpp=_cpp(cpp.q_sample),
    cuda=_cuda(cuda.q_sample),
    triton=_triton("q_sample"),
)
differentiate_q_sample(q_sample)

guided_step = define(
    "guided_step(Tensor x_t, Tensor eps, Tensor? grad, Tensor rows, Tensor step, Tensor key, Tensor ids, *,"
    " ScalarType? net_dtype=None) -> (Tensor, Tensor)",
    process.guided_step,
    check=checks.guided_step,
    cpp=_cpp(cpp.guided_step),
    cuda=_cuda(cuda.guided_step),
    triton=_triton("guided_step"),
)
differentiate_guided_step(guided_step)

group_norm_silu_backward = define(
    "group_norm_silu_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift,"
    " int num_groups, float norm_eps, bool silu=True) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    layers.group_norm_silu_backward,
    check=checks.group_norm_silu_backward,
    cpp=_cpp(cpp.group_norm_silu_backward),
    cuda=_cuda(cuda.group_norm_silu_backward),
    triton=_triton("group_norm_silu", "group_norm_silu_backward"),
)
differentiate_by_reference(group_norm_silu_backward)

group_norm_silu = define(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int num_groups, float norm_eps,"
    " bool silu=True) -> Tensor",
    layers.group_norm_silu,
    check=checks.group_norm_silu,
    cpp=_cpp(cpp.group_norm_silu),
    cuda=_cuda(cuda.group_norm_silu),
    triton=_triton("group_norm_silu"),
)
differentiate_by_op(group_norm_silu, group_norm_silu_backward)

attention_backward = define(
    "attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)",
    layers.attention_backward,
    check=checks.attention_backward,
    cpp=_TWO_PRODUCTS,
    cuda=_NO_CUDA,
    triton=_triton("attention", "attention_backward"),
)
differentiate_by_reference(attention_backward)

attention = define(
    "attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    layers.attention,
    check=checks.attention,
    cpp=_TWO_PRODUCTS,
    cuda=_NO_CUDA,
    triton=_triton("attention"),
)
differentiate_by_op(attention, attention_backward)

conv3x3_backward = define(
    "conv3x3_backward(Tensor grad_out, Tensor weight, bool upsample=False) -> Tensor",
    layers.conv3x3_backward,
    check=checks.conv3x3_backward,
    cpp=_cpp(conv3x3_winograd.conv3x3_backward),
    cuda=_NO_CUDA,
    triton=_CUDNN_BACKWARD,
)

conv3x3 = define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias=None, Tensor? norm_weight=None, Tensor? norm_bias=None, Tensor? scale=None,"
    " Tensor? shift=None, Tensor? temb=None, Tensor? residual=None, int num_groups=1, float norm_eps=1e-5, float gain=1.0,"
    " bool upsample=False) -> Tensor",
    layers.conv3x3,
    check=checks.conv3x3,
    cpp=conv3x3_winograd.conv3x3 if cpp.room else composed.conv3x3,
    cuda=composed.conv3x3,
    triton=_triton("conv3x3", unforced="conv3x3_where_it_wins"),
)
differentiate_conv3x3(conv3x3, conv3x3_backward, composed.conv3x3)
differentiate_conv3x3_backward(conv3x3_backward, conv3x3)

relu_conv3x3_backward = define(
    "relu_conv3x3_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor? slope=None, Tensor? offset=None) -> Tensor",
    layers.relu_conv3x3_backward,
    check=checks.relu_conv3x3_backward,
    cpp=_cpp(conv3x3_winograd.relu_conv3x3_backward),
    cuda=_APART,
    triton=_APART,
)

relu_conv3x3 = define(
    "relu_conv3x3(Tensor x, Tensor weight, Tensor? bias=None, Tensor? slope=None, Tensor? offset=None, Tensor? residual=None)"
    " -> Tensor",
    layers.relu_conv3x3,
    check=checks.relu_conv3x3,
    cpp=_cpp(conv3x3_winograd.relu_conv3x3),
    cuda=_APART,
    triton=_APART,
)
differentiate_relu_conv3x3(relu_conv3x3, relu_conv3x3_backward)
differentiate_relu_conv3x3_backward(relu_conv3x3_backward, conv3x3)

to_images = define(
    "to_images(Tensor x, ScalarType dtype) -> Tensor",
    process.to_images,
    check=checks.to_images,
    cpp=_ONE_CALL,
    cuda=_ONE_CALL,
    triton=_triton("to_images"),
)
differentiate_by_reference(to_images)
