"""How wrong a kernel may be: twice as wrong as honest PyTorch, plus one rounding. No tuned tolerances."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_within_yardstick(got: Tensor, honest: Tensor, truth: Tensor, factor: float = 2) -> None:
    """Hold a kernel's result `got` to `truth`, which is float64, by what `honest` PyTorch reaches in the kernel's precision.

    max |got - truth| <= factor * max |honest - truth| + eps * max |truth|. A NaN anywhere is a failure, a wrong shape too.

    Where `got` is float64, `truth` has no digits to spare. Then let `honest` be float32: its error, scaled to float64, and a
    rounding are granted for `truth` too. Fewer than 16 different numbers may be right by luck: for them the factor is doubled.
    """
    assert got.shape == truth.shape == honest.shape, f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert not got.isnan().any(), f"{int(got.isnan().sum())} of {got.numel()} elements are NaN"
    if got.numel() == 0:
        return
    eps, honest_eps = torch.finfo(got.dtype).eps, torch.finfo(honest.dtype).eps
    roundings = 1 if got.dtype == honest.dtype else 2
    granted = (factor + roundings - 1) * (2 if truth.unique().numel() < 16 else 1)
    allowed = granted * _size(honest.double() - truth) * eps / honest_eps + roundings * eps * _size(truth)
    error = _size(got.double() - truth)
    assert error <= allowed, f"error {error:.3g} is beyond {allowed:.3g} ({granted} x honest PyTorch + rounding)"


def _size(tensor: Tensor) -> float:
    return tensor.abs().max().item()
