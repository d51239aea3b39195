"""How wrong a kernel may be: twice as wrong as honest PyTorch, plus one rounding. No tuned tolerances."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Extended = np.ndarray  # of np.longdouble: 64 bits of mantissa on x86, and what there is elsewhere


def assert_within_yardstick(got: Tensor, honest: Tensor, truth: Tensor | Extended, magnitude: Extended | None = None) -> None:
    """Hold a kernel's result `got` to `truth` by the error that `honest` PyTorch makes in the kernel's precision.

    max |got - truth| <= 2 max |honest - truth| + eps max |truth|. A NaN anywhere is a failure, a wrong shape too. The truth
    must have digits to spare: float64 for what is less precise, for float64 itself `testing/extended.py`. With a `magnitude` of
    the truth's shape (testing/magnitudes.py), every element is allowed eps times its own in place of eps max |truth|, and a
    rounding of itself.
    """
    shape = tuple(truth.shape)
    assert tuple(got.shape) == tuple(honest.shape) == shape, f"shape {tuple(got.shape)}, expected {shape}"
    assert not got.isnan().any(), f"{int(got.isnan().sum())} of {got.numel()} elements are NaN"
    if got.numel() == 0:
        return
    true = extended(truth)
    size = np.full(shape, _size(true)) if magnitude is None else np.maximum(extended(magnitude), np.abs(true))
    assert size.shape == shape, f"magnitude of shape {size.shape}, expected {shape}"
    allowed = 2 * _size(extended(honest) - true) + torch.finfo(got.dtype).eps * size
    error = np.abs(extended(got) - true)
    worst = np.unravel_index((error - allowed).argmax(), shape)
    says = f"error {float(error[worst]):.3g} is beyond {float(allowed[worst]):.3g} (2 x honest PyTorch + one rounding)"
    assert error[worst] <= allowed[worst], says


def assert_as_good_as_direct(got: Tensor, honest: Tensor, truth: Tensor | Extended, magnitude: Extended | None = None) -> None:
    """The yardstick of Winograd's filtering: the whole result at most 4 times as wrong as direct convolution's, and 1e-5.

    ||got - truth|| <= 4 ||honest - truth|| + eps ||truth||, and <= 1e-5 ||truth||. Every result mixes a tile's inputs, so single
    ones may be further off than honest PyTorch's, by luck or by zeros it skips. A `magnitude` takes the place of the truth on the
    right.
    """
    assert not got.isnan().any(), f"{int(got.isnan().sum())} of {got.numel()} elements are NaN"
    if got.numel() == 0:
        return
    true = extended(truth)
    measured = (extended(got) - true, extended(honest) - true, true if magnitude is None else extended(magnitude))
    error, honest_error, size = (float(np.linalg.norm(values)) for values in measured)
    allowed = min(4 * honest_error + torch.finfo(got.dtype).eps * size, 1e-5 * size)
    assert error <= allowed, f"error {error:.3g} is beyond {allowed:.3g} (4 x direct convolution, and 1e-5)"


def extended(values: Tensor | Extended) -> Extended:
    """The same numbers with numpy's longest mantissa."""
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.longdouble)


def _size(values: Extended) -> float:
    return float(np.abs(values).max())
