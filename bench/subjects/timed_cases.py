"""The cases of ops that are timed: shapes of the benchmarked networks, on a GPU in the networks' own precision and layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from purify_engine.ops import OPS
from purify_engine.testing.cases import Case, cases

CIFAR_BATCHES, IMAGENET_BATCHES = (1, 64, 256), (1, 8)

CPU_CASES = (
    Case("philox", (16, 3 * 32 * 32)),
    Case("philox_normal", (16, 3 * 32 * 32), keywords={"dtype": torch.float32}),
    Case("q_sample", (16, 3, 32, 32)),
    Case("guided_step", (16, 3, 32, 32), variant="guided"),
    Case("group_norm_silu", (16, 128, 32, 32), num_groups=32),
    Case("group_norm_silu_backward", (16, 128, 32, 32), num_groups=32),
    Case("attention", (16, 1, 256, 256)),
    Case("attention_backward", (4, 1, 256, 256)),
    Case("conv3x3", (1, 128, 32, 32), variant="norm-bias-residual", num_groups=32),
    Case("conv3x3", (8, 256, 8, 8), variant="norm-bias-residual", num_groups=32),
    Case("conv3x3_backward", (8, 320, 16, 16)),
    Case("relu_conv3x3", (8, 320, 16, 16), variant="line-bias-residual"),
    Case("relu_conv3x3_backward", (8, 320, 16, 16), variant="line"),
    Case("to_images", (16, 3, 32, 32)),
)


def timed_cases(device: torch.device, *, toy: bool) -> list[Case]:
    """What to time on a device; `toy`: the smallest of each op."""
    if device.type == "cuda":
        return [*_cifar(), *_imagenet()]
    timed = [*CPU_CASES, *(_largest(op) for op in OPS if op not in {case.op for case in CPU_CASES})]
    return [_toy(case) for case in timed] if toy else timed


def _largest(op: str) -> Case:
    """For an op that no benchmarked network has: the largest of its cases."""
    return max((case for case in cases(op) if case.dtype == torch.float32), key=lambda case: math.prod(case.shape))


def _toy(case: Case) -> Case:
    shape = (2, *case.shape[1:]) if len(case.shape) == 2 else (1, *(min(size, 32) for size in case.shape[1:2]), 8, 8)
    return Case(case.op, shape, case.dtype, case.layout, case.variant, case.num_groups, case.keywords)


def _cifar() -> Iterator[Case]:
    """The DDPM of CIFAR-10 at 32 pixels."""
    network: dict[str, Any] = {"dtype": torch.bfloat16, "layout": "channels_last", "num_groups": 32}
    half = {"net_dtype": torch.bfloat16}
    for batch in CIFAR_BATCHES:
        yield Case("philox", (batch, 3 * 32 * 32))
        yield Case("philox_normal", (batch, 3 * 32 * 32), keywords={"dtype": torch.float32})
        yield Case("q_sample", (batch, 3, 32, 32), variant="net_bfloat16", keywords=half)
        yield Case("guided_step", (batch, 3, 32, 32), variant="guided-bfloat16-eps", keywords=half)
        yield Case("to_images", (batch, 3, 32, 32))
        for channels, size in ((128, 32), (256, 16)):
            yield Case("group_norm_silu", (batch, channels, size, size), **network)
            yield Case("group_norm_silu_backward", (batch, channels, size, size), **network)
            for added in ("bias-temb-only", "residual-bias", "skip"):  # second norms, first norms, the decoder
                yield Case("sum_norm_silu", (batch, channels, size, size), variant=added, **network)
            yield Case("residual_sum", (batch, channels, size, size), variant="residual-bias", **network)
        for channels, size in ((128, 32), (256, 16), (256, 8), (256, 4)):
            yield Case("conv3x3", (batch, channels, size, size), variant="norm-bias-residual", **network)
        for op in ("affine_relu", "affine_relu_backward"):  # of WRN-28-10, its guide
            yield Case(op, (batch, 160, 32, 32), torch.bfloat16, "channels_last", "residual")
        yield Case("attention", (batch, 1, 256, 256), torch.bfloat16)
        yield Case("attention_backward", (batch, 1, 256, 256), torch.bfloat16)


def _imagenet() -> Iterator[Case]:
    """The ADM of ImageNet at 256 pixels."""
    network: dict[str, Any] = {"dtype": torch.bfloat16, "layout": "channels_last", "num_groups": 32}
    for batch in IMAGENET_BATCHES:
        yield Case("guided_step", (batch, 3, 256, 256), variant="guided-bfloat16-eps", keywords={"net_dtype": torch.bfloat16})
        for channels, size in ((256, 256), (512, 64)):
            yield Case("group_norm_silu", (batch, channels, size, size), variant="scale-shift", **network)
        for channels, size in ((256, 256), (512, 64), (1024, 16)):
            yield Case("conv3x3", (batch, channels, size, size), variant="norm-scale-bias-residual", **network)
        yield Case("attention", (batch, 8, 1024, 64), torch.bfloat16)
