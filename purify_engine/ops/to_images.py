"""purify::to_images: model space to images (docs/math.md E9)."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.config import require
from purify_engine.ops import _check, _gradient
from purify_engine.ops._registry import IN_PYTORCH, call, define
from purify_engine.ops._triton import kernel, triton
from purify_engine.reference import process as reference
from purify_engine.types import Images

_ONE_CALL = "a few elementwise calls of PyTorch, once in a purification"


def to_images(x: Images, dtype: torch.dtype) -> Images:
    """Model space [-1, 1] to images: floats in [0, 1], or uint8 in [0, 255] (docs/math.md E9)."""
    return call(TO_IMAGES, x, dtype)


def _check_to_images(x: Tensor, dtype: torch.dtype) -> None:
    if not x.is_floating_point():
        _check.refuse("x", "float images", x)
    require(dtype.is_floating_point or dtype == torch.uint8, "dtype", "a floating point dtype or torch.uint8", dtype)


TO_IMAGES = define(
    "to_images(Tensor x, ScalarType dtype) -> Tensor",
    reference.to_images,
    check=_check_to_images,
    gradient=_gradient.by_reference,
    torch=IN_PYTORCH,
    cpp=_ONE_CALL,
    cuda=_ONE_CALL,
    triton=triton(kernel("to_images", "to_images")),
)
