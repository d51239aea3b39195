"""Every condition on the arguments of every op, broken alone: kernels read bare pointers, and each half of an `or` guards one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from purify_engine import ops
from purify_engine.testing.cases import Case
from tests.ops.against_reference import as_called

GOOD = {
    "philox": Case("philox", (2, 5)),
    "philox_normal": Case("philox_normal", (2, 5), keywords={"dtype": torch.float32}),
    "q_sample": Case("q_sample", (2, 3, 4, 6)),
    "guided_step": Case("guided_step", (2, 3, 4, 6)),
    "group_norm_silu": Case("group_norm_silu", (2, 4, 3, 5), variant="scale-shift", num_groups=2),
    "group_norm_silu_backward": Case("group_norm_silu_backward", (2, 4, 3, 5), variant="scale-shift", num_groups=2),
    "attention": Case("attention", (2, 3, 4, 5)),
    "attention_backward": Case("attention_backward", (2, 3, 4, 5)),
    "conv3x3": Case("conv3x3", (2, 4, 3, 5), variant="norm-scale-bias-temb-residual-gain", num_groups=2),
    "conv3x3_backward": Case("conv3x3_backward", (2, 4, 3, 5), variant="up"),
    "relu_conv3x3": Case("relu_conv3x3", (2, 4, 3, 5), variant="line-bias-residual"),
    "relu_conv3x3_backward": Case("relu_conv3x3_backward", (2, 4, 3, 5), variant="line"),
    "sum_norm_silu": Case("sum_norm_silu", (2, 4, 3, 5), variant="residual-bias-temb-skip-scale-shift-gain", num_groups=2),
    "sum_norm_silu_backward": Case("sum_norm_silu_backward", (2, 4, 3, 5), variant="residual-scale-shift", num_groups=2),
    "residual_sum": Case("residual_sum", (2, 4, 3, 5), variant="residual-bias-gain"),
    "affine_relu": Case("affine_relu", (2, 4, 3, 5), variant="residual"),
    "affine_relu_backward": Case("affine_relu_backward", (2, 4, 3, 5), variant="residual"),
    "to_images": Case("to_images", (2, 3, 4, 6)),
}


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def doubles(*shape: int) -> torch.Tensor:
    return floats(*shape, dtype=torch.float64)


NOISE: list[tuple[dict[str, Any], str]] = [
    ({"key": ints().int()}, "key"),
    ({"key": ints(1)}, "key"),
    ({"key": floats()}, "key"),
    ({"step": ints().int()}, "step"),
    ({"step": ints(1)}, "step"),
    ({"ids": ints(2).int()}, "ids"),
    ({"ids": ints(2, 1)}, "ids"),
]
IDS_OF_IMAGES: list[tuple[dict[str, Any], str]] = [({"ids": ints(3)}, "ids"), ({"ids": ints(1)}, "ids")]
NORM: list[tuple[dict[str, Any], str]] = [
    ({"weight": floats(5)}, "weight"),
    ({"weight": ints(4)}, "weight"),
    ({"bias": floats(3)}, "bias"),
    ({"bias": ints(4)}, "bias"),
    ({"scale": floats(1, 4)}, "scale"),
    ({"scale": floats(2, 5)}, "scale"),
    ({"scale": ints(2, 4)}, "scale"),
    ({"shift": floats(1, 4)}, "shift"),
    ({"shift": floats(2, 5)}, "shift"),
    ({"num_groups": 3}, "num_groups"),
    ({"num_groups": 0}, "num_groups"),
    ({"num_groups": -2}, "num_groups"),
    ({"x": ints(2, 4, 3, 5)}, "x"),
    ({"x": floats(2, 4, 15)}, "x"),
]
ATTENTION: list[tuple[dict[str, Any], str]] = [
    ({"q": floats(2, 3, 20)}, "q"),
    ({"q": ints(2, 3, 4, 5)}, "q"),
    ({"k": doubles(2, 3, 4, 5)}, "k"),
    ({"k": floats(2, 3, 20)}, "k"),
    ({"k": floats(1, 3, 4, 5), "v": floats(1, 3, 4, 5)}, "k"),
    ({"k": floats(2, 1, 4, 5), "v": floats(2, 1, 4, 5)}, "k"),
    ({"k": floats(2, 3, 4, 6), "v": floats(2, 3, 4, 6)}, "k"),
    ({"v": doubles(2, 3, 4, 5)}, "v"),
    ({"v": floats(2, 3, 5, 5)}, "v"),
]
LINE: list[tuple[dict[str, Any], str]] = [
    ({"slope": None}, "offset"),
    ({"offset": None}, "offset"),
    ({"slope": floats(5)}, "slope"),
    ({"slope": ints(4)}, "slope"),
    ({"offset": floats(3)}, "offset"),
    ({"offset": ints(4)}, "offset"),
]
SUM: list[tuple[dict[str, Any], str]] = [
    ({"x": ints(2, 4, 3, 5)}, "x"),
    ({"x": floats(2, 4, 15)}, "x"),
    ({"bias": floats(5)}, "bias"),
    ({"bias": ints(4)}, "bias"),
    ({"residual": floats(2, 4, 5, 3)}, "residual"),
    ({"residual": floats(1, 4, 3, 5)}, "residual"),
    ({"residual": ints(2, 4, 3, 5)}, "residual"),
]
BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "philox": [*NOISE, ({"numel": -1}, "numel")],
    "philox_normal": [*NOISE, ({"numel": -1}, "numel"), ({"dtype": torch.float16}, "dtype"), ({"dtype": torch.int64}, "dtype")],
    "q_sample": [
        *NOISE,
        *IDS_OF_IMAGES,
        ({"marginal": floats(2)}, "marginal"),
        ({"marginal": doubles(3)}, "marginal"),
        ({"marginal": doubles(2, 1)}, "marginal"),
        ({"x_start": floats(2, 3, 4, 6, dtype=torch.float16)}, "x_start"),
        ({"x_start": floats(2, 3, 24)}, "x_start"),
        ({"net_dtype": torch.int8}, "net_dtype"),
    ],
    "guided_step": [
        *NOISE,
        *IDS_OF_IMAGES,
        ({"rows": floats(4, 4)}, "rows"),
        ({"rows": doubles(4)}, "rows"),
        ({"rows": doubles(4, 3)}, "rows"),
        ({"rows": doubles(4, 5)}, "rows"),
        ({"x_t": floats(2, 3, 4, 6, dtype=torch.bfloat16)}, "x_t"),
        ({"x_t": floats(2, 3, 24)}, "x_t"),
        ({"eps": floats(2, 3, 6, 4)}, "eps"),
        ({"eps": ints(2, 3, 4, 6)}, "eps"),
        ({"grad": floats(2, 1, 4, 6)}, "grad"),
        ({"grad": ints(2, 3, 4, 6)}, "grad"),
        ({"net_dtype": torch.int8}, "net_dtype"),
    ],
    "group_norm_silu": NORM,
    "group_norm_silu_backward": [
        *NORM,
        ({"grad_out": floats(2, 4, 5, 3)}, "grad_out"),
        ({"grad_out": ints(2, 4, 3, 5)}, "grad_out"),
    ],
    "attention": ATTENTION,
    "attention_backward": [
        *ATTENTION,
        ({"grad_out": floats(2, 3, 5, 4)}, "grad_out"),
        ({"grad_out": ints(2, 3, 4, 5)}, "grad_out"),
    ],
    "conv3x3": [
        *[(bad, name) for bad, name in NORM if name in ("scale", "shift", "num_groups", "x")],
        ({"weight": floats(4, 4, 9)}, "weight"),
        ({"weight": ints(4, 4, 3, 3)}, "weight"),
        ({"weight": floats(4, 5, 3, 3)}, "weight"),
        ({"weight": floats(4, 4, 1, 3)}, "weight"),
        ({"weight": floats(4, 4, 3, 1)}, "weight"),
        ({"norm_weight": None}, "norm_bias"),
        ({"norm_bias": None}, "norm_bias"),
        ({"norm_weight": floats(5)}, "norm_weight"),
        ({"norm_bias": floats(5)}, "norm_bias"),
        ({"bias": floats(5)}, "bias"),
        ({"bias": ints(4)}, "bias"),
        ({"temb": floats(2, 5)}, "temb"),
        ({"temb": floats(1, 5)}, "temb"),
        ({"temb": floats(3, 4)}, "temb"),
        ({"temb": ints(2, 4)}, "temb"),
        ({"residual": floats(2, 4, 5, 3)}, "residual"),
        ({"residual": floats(1, 4, 3, 5)}, "residual"),
        ({"residual": ints(2, 4, 3, 5)}, "residual"),
        ({"upsample": True}, "residual"),
    ],
    "conv3x3_backward": [
        ({"grad_out": ints(2, 4, 6, 10)}, "grad_out"),
        ({"grad_out": floats(2, 4, 60)}, "grad_out"),
        ({"grad_out": floats(2, 4, 5, 10)}, "grad_out"),
        ({"grad_out": floats(2, 4, 6, 9)}, "grad_out"),
        ({"weight": floats(5, 8, 3, 3)}, "weight"),
        ({"weight": floats(4, 8, 1, 3)}, "weight"),
        ({"weight": floats(4, 8, 3, 1)}, "weight"),
        ({"weight": floats(4, 8, 9)}, "weight"),
        ({"weight": ints(4, 8, 3, 3)}, "weight"),
    ],
    "relu_conv3x3": [
        *LINE,
        ({"x": ints(2, 4, 3, 5)}, "x"),
        ({"x": floats(2, 4, 15)}, "x"),
        ({"weight": floats(4, 5, 3, 3)}, "weight"),
        ({"weight": floats(4, 4, 3, 1)}, "weight"),
        ({"weight": ints(4, 4, 3, 3)}, "weight"),
        ({"bias": floats(5)}, "bias"),
        ({"residual": floats(2, 4, 5, 3)}, "residual"),
    ],
    "relu_conv3x3_backward": [
        *LINE,
        ({"grad_out": floats(2, 9, 3, 5)}, "weight"),
        ({"grad_out": floats(2, 8, 5, 3)}, "x"),
        ({"grad_out": ints(2, 8, 3, 5)}, "grad_out"),
        ({"x": floats(1, 4, 3, 5)}, "x"),
        ({"x": floats(2, 5, 3, 5)}, "x"),
        ({"x": ints(2, 4, 3, 5)}, "x"),
        ({"weight": floats(8, 4, 1, 3)}, "weight"),
    ],
    "residual_sum": SUM,
    "sum_norm_silu_backward": [
        ({"grad_y": ints(2, 4, 3, 5)}, "grad_y"),
        ({"grad_y": floats(2, 4, 5, 3)}, "grad_y"),
        ({"total": ints(2, 4, 3, 5)}, "total"),
        ({"total": floats(2, 4, 15)}, "total"),
        ({"grad_sum": ints(2, 4, 3, 5)}, "grad_sum"),
        ({"grad_sum": floats(1, 4, 3, 5)}, "grad_sum"),
        ({"weight": floats(5)}, "weight"),
        ({"norm_bias": floats(5)}, "norm_bias"),
        ({"scale": floats(1, 4)}, "scale"),
        ({"shift": floats(2, 5)}, "shift"),
        ({"num_groups": 3}, "num_groups"),
    ],
    "sum_norm_silu": [
        *SUM,
        ({"temb": floats(2, 5)}, "temb"),
        ({"temb": floats(1, 5)}, "temb"),
        ({"temb": floats(3, 4)}, "temb"),
        ({"temb": ints(2, 4)}, "temb"),
        ({"skip": floats(2, 2, 5, 3)}, "skip"),
        ({"skip": floats(1, 2, 3, 5)}, "skip"),
        ({"skip": floats(2, 2, 15)}, "skip"),
        ({"skip": floats(2)}, "skip"),
        ({"skip": ints(2, 2, 3, 5)}, "skip"),
        ({"skip": None}, "weight"),
        ({"weight": floats(4)}, "weight"),
        ({"norm_bias": floats(4)}, "norm_bias"),
        ({"scale": floats(1, 6)}, "scale"),
        ({"shift": floats(2, 4)}, "shift"),
        ({"num_groups": 4}, "num_groups"),
        ({"num_groups": 0}, "num_groups"),
    ],
    "affine_relu": [
        ({"x": ints(2, 4, 3, 5)}, "x"),
        ({"x": floats(2, 4, 15)}, "x"),
        ({"slope": floats(5)}, "slope"),
        ({"slope": ints(4)}, "slope"),
        ({"offset": floats(5)}, "offset"),
        ({"offset": ints(4)}, "offset"),
        ({"residual": floats(2, 4, 5, 3)}, "residual"),
        ({"residual": ints(2, 4, 3, 5)}, "residual"),
    ],
    "affine_relu_backward": [
        ({"y": ints(2, 4, 3, 5)}, "y"),
        ({"y": floats(2, 4, 15)}, "y"),
        ({"grad_y": floats(2, 4, 5, 3)}, "grad_y"),
        ({"grad_y": ints(2, 4, 3, 5)}, "grad_y"),
        ({"slope": floats(5)}, "slope"),
        ({"slope": ints(4)}, "slope"),
        ({"grad_sum": floats(2, 4, 5, 3)}, "grad_sum"),
        ({"grad_sum": ints(2, 4, 3, 5)}, "grad_sum"),
    ],
    "to_images": [({"x": ints(2, 3, 4, 6)}, "x"), ({"dtype": torch.int32}, "dtype"), ({"dtype": torch.int8}, "dtype")],
}


def function(op: str) -> Callable[..., Any]:
    return as_called if op == "conv3x3" else getattr(ops, op)


def arguments(op: str) -> dict[str, Any]:
    names = inspect.signature(function(op)).parameters
    return {**dict(zip(names, GOOD[op].arguments(), strict=False)), **GOOD[op].keywords}


@pytest.mark.parametrize("op", GOOD)
def test_good_arguments_are_taken(op):
    function(op)(**arguments(op))


@pytest.mark.parametrize(("op", "bad", "named"), [(op, bad, named) for op in BAD for bad, named in BAD[op]])
def test_an_argument_that_is_wrong_alone_is_refused_by_its_name(op, bad, named):
    with pytest.raises(ValueError, match=f"^{named} must be ") as error:
        function(op)(**{**arguments(op), **bad})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("op", [op for op in GOOD if op not in ("philox", "philox_normal")])
def test_every_tensor_must_be_where_the_images_are(op):
    given = arguments(op)
    first = next(iter(given))
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and name != first:
            with pytest.raises(ValueError, match=r"must be on (cpu|meta)"):
                function(op)(**{**given, name: value.to("meta")})
