"""The ops: the same functions as in `purify_engine.reference`, run by the fastest engine this machine has.

`with ops.backend("reference"):` forces an engine; `_registry.py` says which there are and who runs what. A file an op: its
schema, what it refuses, its gradient, its cost, its yardstick, and for every engine its launcher or the reason for having none.
"""

from purify_engine.ops import switches
from purify_engine.ops._arguments import Around, Norm
from purify_engine.ops._bypass import is_forbidden as is_bypass_forbidden
from purify_engine.ops._bypass import is_observed, is_transformed, missing, through_dispatcher
from purify_engine.ops._capability import Capability, capability
from purify_engine.ops._extension import (
    addressed,
    instruction_set,
    instruction_sets,
    observe_launches,
    use_instruction_set,
)
from purify_engine.ops._packed import PackedWeights, TensorSample, TensorVersions, count_writes, is_frozen
from purify_engine.ops._registry import ENGINES, INTERPRETED, OPS, ORDER, Judge, Launcher, Op, backend, forced
from purify_engine.ops.affine_relu import affine_relu, affine_relu_backward
from purify_engine.ops.attention import attention, attention_backward
from purify_engine.ops.conv2d import conv1x1, conv2d
from purify_engine.ops.conv3x3 import conv3x3, conv3x3_backward, memory_format
from purify_engine.ops.conv3x3.relu import relu_conv3x3, relu_conv3x3_backward
from purify_engine.ops.conv_relu import conv_relu, conv_relu_is_fused, conv_relu_twice
from purify_engine.ops.group_norm_silu import group_norm_silu, group_norm_silu_backward, side_by_side
from purify_engine.ops.noise import philox, philox_normal
from purify_engine.ops.process import guided_step, q_sample
from purify_engine.ops.resampling import downsampled
from purify_engine.ops.residual_sum import residual_sum
from purify_engine.ops.sum_norm_silu import sum_norm_silu, sum_norm_silu_backward
from purify_engine.ops.to_images import to_images

__all__ = [
    "Around",
    "Capability",
    "ENGINES",
    "INTERPRETED",
    "Judge",
    "Launcher",
    "Norm",
    "OPS",
    "ORDER",
    "Op",
    "PackedWeights",
    "TensorSample",
    "TensorVersions",
    "addressed",
    "affine_relu",
    "affine_relu_backward",
    "attention",
    "attention_backward",
    "backend",
    "capability",
    "conv1x1",
    "conv2d",
    "conv3x3",
    "conv3x3_backward",
    "conv_relu",
    "conv_relu_is_fused",
    "conv_relu_twice",
    "count_writes",
    "downsampled",
    "forced",
    "group_norm_silu",
    "group_norm_silu_backward",
    "guided_step",
    "instruction_set",
    "instruction_sets",
    "is_bypass_forbidden",
    "is_frozen",
    "is_observed",
    "is_transformed",
    "memory_format",
    "missing",
    "observe_launches",
    "philox",
    "philox_normal",
    "q_sample",
    "relu_conv3x3",
    "relu_conv3x3_backward",
    "residual_sum",
    "side_by_side",
    "sum_norm_silu",
    "sum_norm_silu_backward",
    "switches",
    "through_dispatcher",
    "to_images",
    "use_instruction_set",
]
