"""Every op of the project: its schema, its specification, and who runs it. Read this first.

`purify::<name>` is defined once, here. The reference runs everywhere; an engine that an op does without says why.
"""

from __future__ import annotations

from purify_engine.ops import checks, cpp
from purify_engine.ops.gradients import (
    differentiate_by_reference,
    differentiate_group_norm_silu,
    differentiate_guided_step,
    differentiate_q_sample,
)
from purify_engine.ops.registry import Launcher, define
from purify_engine.reference import layers, philox, process

_NO_GPU = {
    "triton": "this release has no Triton kernels: on a GPU the reference runs",
    "cuda": "this release has no CUDA kernels: on a GPU the reference runs",
}


def _cpp(launcher: Launcher) -> Launcher | str:
    return launcher if cpp.room else "purify_engine._C is not built; build it with `pip install -e .` and a C++ compiler"


philox_words = define(
    "philox(Tensor key, Tensor ids, Tensor step, SymInt numel) -> Tensor",
    philox.philox,
    check=checks.noise,
    cpp=_cpp(cpp.philox),
    **_NO_GPU,
)

philox_normal = define(
    "philox_normal(Tensor key, Tensor ids, Tensor step, SymInt numel, *, ScalarType dtype) -> Tensor",
    philox.philox_normal,
    check=checks.noise,
    cpp=_cpp(cpp.philox_normal),
    **_NO_GPU,
)

q_sample = define(
    "q_sample(Tensor x_start, Tensor marginal, Tensor step, Tensor key, Tensor ids, *, ScalarType? net_dtype=None)"
    " -> (Tensor, Tensor)",
    process.q_sample,
    check=checks.q_sample,
    cpp=_cpp(cpp.q_sample),
    **_NO_GPU,
)
differentiate_q_sample(q_sample)

guided_step = define(
    "guided_step(Tensor x_t, Tensor eps, Tensor? grad, Tensor rows, Tensor step, Tensor key, Tensor ids, *,"
    " ScalarType? net_dtype=None) -> (Tensor, Tensor)",
    process.guided_step,
    check=checks.guided_step,
    cpp=_cpp(cpp.guided_step),
    **_NO_GPU,
)
differentiate_guided_step(guided_step)

group_norm_silu_backward = define(
    "group_norm_silu_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift,"
    " int num_groups, float norm_eps, bool silu=True) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    layers.group_norm_silu_backward,
    check=checks.group_norm_silu_backward,
    cpp=_cpp(cpp.group_norm_silu_backward),
    **_NO_GPU,
)
differentiate_by_reference(group_norm_silu_backward)

group_norm_silu = define(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int num_groups, float norm_eps,"
    " bool silu=True) -> Tensor",
    layers.group_norm_silu,
    check=checks.group_norm_silu,
    cpp=_cpp(cpp.group_norm_silu),
    **_NO_GPU,
)
differentiate_group_norm_silu(group_norm_silu, group_norm_silu_backward)

attention = define(
    "attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    layers.attention,
    check=checks.attention,
    cpp="its two matrix products are oneDNN's already, and the softmax between them is 1 % of a U-Net on a CPU",
    **_NO_GPU,
)
differentiate_by_reference(attention)
