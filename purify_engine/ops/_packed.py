"""What was computed from tensors and kept, and when it is out of date: packed weights, and all that models/derived.py lists.

A tensor is known by (data_ptr, version, device, dtype). An optimizer step, `load_state_dict` or `.to` changes that; only
writing into `parameter.data` goes unseen, by PyTorch's version counter and so by us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from purify_engine.ops import _bypass


class TensorVersions:
    """Which tensors, at one moment. It keeps their memory alive: no address in it can come to mean another weight."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        tensors = list(tensors)
        self._key = _key_of(tensors)
        self._alive = [tensor.detach() for tensor in tensors]

    def still_of(self, tensors: Iterable[Tensor]) -> bool:
        """Whether they are what they were."""
        return self._key == _key_of(tensors)


class PackedWeights:
    """Weights in the order in which a kernel reads them: one packing of each kind, kept beside its weight and dropped with it."""

    def __init__(self) -> None:
        self._of: Any = WeakTensorKeyDictionary()  # weight -> {kind: (versions, details, packing)}

    def __len__(self) -> int:
        return len(self._of)

    def of(self, weight: Tensor, kind: object, pack: Callable[[], Tensor], details: object = None) -> Tensor:
        """`pack()` on first use, and again when `weight` has changed, or `details`, of which the last alone are kept."""
        kept = self._of.setdefault(weight, {})
        versions, made_for, packing = kept.get(kind, (None, None, None))
        if versions is None or made_for != details or not versions.still_of([weight]):
            packing = pack()
            kept[kind] = TensorVersions([weight]), details, packing
        return packing


def is_frozen(tensors: Iterable[Tensor]) -> bool:
    """Whether something may be derived from them and kept: no gradient is wanted, and every change is counted."""
    for tensor in tensors:  # noqa: SIM110  (no generator: this is asked for every frozen convolution)
        if tensor.requires_grad or tensor.is_inference():
            return False
    return True


def is_constant(weight: Tensor) -> bool:
    """Whether filters may be made of a weight and kept: nothing differentiates it, traces it, or stands for many of it."""
    return _bypass.is_plain(weight) and not _bypass.is_transformed() and is_frozen([weight])


def _key_of(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    return tuple([(t.data_ptr(), 0 if t.is_inference() else t._version, t.device, t.dtype) for t in tensors])
