"""How wrong a kernel may be: twice as wrong as honest PyTorch, plus one rounding. No tuned tolerances."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_within_yardstick(got: Tensor, honest: Tensor, truth: Tensor, factor: float = 2) -> None:
    """Hold a kernel's result `got` to `truth`, which is float64, by what `honest` PyTorch reaches in the kernel's precision.

    max |got - truth| <= factor * max |honest - truth| + eps * max |truth|. Where `got` is float64 itself the truth has no digits to spare:
    let `honest` be float32, and its error is scaled to float64's precision. A NaN anywhere is a failure, a wrong shape or dtype too.
    """
    assert got.shape == truth.shape == honest.shape, f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert not got.isnan().any(), f"{int(got.isnan().sum())} of {got.numel()} elements are NaN"
    if got.numel() == 0:
        return
    eps = torch.finfo(got.dtype).eps
    rounding = eps * _size(truth)
    allowed = factor * _size(honest.double() - truth) * eps / torch.finfo(honest.dtype).eps + rounding
    error = _size(got.double() - truth)
    assert error <= allowed, f"error {error:.3g} is beyond {allowed:.3g} ({factor} x honest PyTorch + one rounding)"


def _size(tensor: Tensor) -> float:
    return tensor.abs().max().item()
