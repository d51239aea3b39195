"""Impossible arguments are refused in one sentence, before any kernel sees a pointer."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.testing.cases import Case

STEP = ("x_t", "eps", "grad", "rows", "step", "key", "ids")
NORM = ("x", "weight", "bias", "scale", "shift", "num_groups", "norm_eps")
IMAGES = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("x_t", IMAGES.half(), "x_t must be float32 or float64 images [B, C, H, W], got 'float16 [2, 3, 4, 4]'"),
        ("x_t", IMAGES[0], "x_t must be float32 or float64 images [B, C, H, W], got 'float32 [3, 4, 4]'"),
        ("eps", IMAGES[:, :2], "eps must be float [2, 3, 4, 4], got 'float32 [2, 2, 4, 4]'"),
        ("eps", IMAGES.int(), "eps must be float [2, 3, 4, 4], got 'int32 [2, 3, 4, 4]'"),
        ("grad", IMAGES[:1], "grad must be float [2, 3, 4, 4], got 'float32 [1, 3, 4, 4]'"),
        ("rows", torch.zeros(4, 3).double(), "rows must be float64 [N, 4], got 'float64 [4, 3]'"),
        ("rows", torch.zeros(4, 4), "rows must be float64 [N, 4], got 'float32 [4, 4]'"),
        ("step", torch.tensor([1]), "step must be int64 with 0 dimensions, got 'int64 [1]'"),
        ("key", torch.tensor(1, dtype=torch.int32), "key must be int64 [], or [2], one for each image, got 'int32 []'"),
        ("ids", torch.arange(3), "ids must be int64 [2], one for each image, got 'int64 [3]'"),
    ],
)
def test_guided_step_refuses(argument, value, sentence):
    arguments = dict(zip(STEP, Case("guided_step", (2, 3, 4, 4)).arguments(), strict=True)) | {argument: value}
    with pytest.raises(ValueError) as error:
        ops.guided_step(**arguments)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("x", torch.zeros(2, 4), "x must be float images [B, C, H, W], got 'float32 [2, 4]'"),
        ("num_groups", 3, "num_groups must be a divisor of the 4 channels, got 3"),
        ("num_groups", 0, "num_groups must be a divisor of the 4 channels, got 0"),
        ("weight", torch.zeros(5), "weight must be float [4], got 'float32 [5]'"),
        ("scale", torch.zeros(1, 4), "scale must be float [2, 4], got 'float32 [1, 4]'"),
    ],
)
def test_group_norm_silu_refuses(argument, value, sentence):
    case = Case("group_norm_silu", (2, 4, 3, 3), num_groups=2)
    arguments = dict(zip(NORM, case.arguments(), strict=False)) | {argument: value}
    with pytest.raises(ValueError) as error:
        ops.group_norm_silu(**arguments)
    assert str(error.value) == sentence


def test_the_other_ops_refuse():
    key, ids, step = torch.tensor(1), torch.arange(2), torch.tensor(0)
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="numel must be at least 0, got -1"):
        ops.philox(key, ids, step, -1)
    with pytest.raises(ValueError, match="dtype must be torch.float32 or torch.float64, got torch.float16"):
        ops.philox_normal(key, ids, step, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"marginal must be float64 \[2\], got 'float64 \[3\]'"):
        ops.q_sample(IMAGES, torch.zeros(3).double(), step, key, ids)
    with pytest.raises(ValueError, match="net_dtype must be a floating point dtype or None, got torch.int8"):
        ops.q_sample(IMAGES, torch.zeros(2).double(), step, key, ids, net_dtype=torch.int8)
    with pytest.raises(ValueError, match="v must be like k"):
        ops.attention(q, q, q[:, :, :2])
