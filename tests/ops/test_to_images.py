"""purify::to_images: from model space back to images, as floats and as bytes."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.testing.cases import Case


def test_floats_are_clamped_to_the_range_of_images():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert ops.to_images(x, torch.float32).flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert ops.to_images(x, torch.float16).dtype == torch.float16


def test_bytes_are_rounded_to_the_nearest():
    x = (torch.arange(256) / 255 * 2 - 1).reshape(1, 1, 16, 16)
    assert ops.to_images(x, torch.uint8).flatten().tolist() == list(range(256))
    assert ops.to_images(x + 0.9 / 255, torch.uint8).flatten().tolist() == list(range(256))


def test_gradient_stops_where_the_range_ends():
    x = torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 1, 1, 3).requires_grad_()
    (grad,) = torch.autograd.grad(ops.to_images(x, torch.float32).sum(), x)
    assert grad.flatten().tolist() == [0, 0.5, 0]


def test_registration_is_sound():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    (x, dtype) = Case("to_images", (2, 3, 4, 5)).differentiable()
    torch.library.opcheck(torch.ops.purify.to_images.default, (x, dtype), test_utils=checks)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="dtype must be a floating point dtype or torch.uint8, got torch.int64"):
        ops.to_images(torch.zeros(1, 1, 1, 1), torch.int64)
