"""What was computed from tensors and kept, and when it is out of date: packed weights, and all that models/derived.py lists.

A tensor is known by (data_ptr, version, device, dtype). An optimizer step, `load_state_dict` or `.to` changes that. Writing into
`parameter.data`, or into memory shared with NumPy, does not: PyTorch's version counters do not see it. `TensorSample` does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from purify_engine.ops import _bypass

RUN = 128  # elements of each tensor in a sample: a write to a whole tensor changes them, at the cost of a few cache lines


_COUNTED = operator.attrgetter("_version", "device", "dtype")


class TensorVersions:
    """Which tensors, at one moment. It keeps their memory alive: no address in it can come to mean another weight."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        tensors = list(tensors)
        self._key = _key_of(tensors)
        self._alive = [tensor.detach() for tensor in tensors]

    def still_of(self, tensors: Iterable[Tensor]) -> bool:
        """Whether they are what they were."""
        return self._key == _key_of(tensors)


class TensorSample:
    """A run of elements out of the middle of every tensor, to be compared with what is there later.

    A write that leaves all of them as they were is not seen: one to a single filter of many, or to a few entries.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._runs: dict[torch.device, list[Tensor]] = {}
        for tensor in filter(_is_readable, tensors):
            self._runs.setdefault(tensor.device, []).append(_run(tensor))
        self._kept = {device: torch.cat(runs) for device, runs in self._runs.items()}

    def differs(self) -> list[bool | Tensor]:
        """For each device, whether something else is there by now; elsewhere than on CPUs as a tensor, to be read at the end."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return []  # nothing may be read back then
        return [_differ(torch.cat(runs), self._kept[device]) for device, runs in self._runs.items()]


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


def count_writes(tensors: Iterable[Tensor]) -> None:
    """Tell PyTorch's version counters that they were written to, and so all that was derived from them."""
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def is_frozen(tensors: Iterable[Tensor]) -> bool:
    """Whether something may be derived from them and kept: no gradient is wanted, and every change is counted."""
    for tensor in tensors:  # noqa: SIM110  (no generator: this is asked for every frozen convolution)
        if tensor.requires_grad or tensor.is_inference():
            return False
    return True


def is_constant(weight: Tensor) -> bool:
    """Whether filters may be made of a weight and kept: nothing differentiates it, traces it, or stands for many of it."""
    return _bypass.is_plain(weight) and not _bypass.is_transformed() and is_frozen([weight])


def _is_readable(tensor: Tensor) -> bool:
    """Whether it has memory, whose changes something else than its version has to tell."""
    if not _bypass.is_plain(tensor) or tensor.is_inference() or tensor.is_quantized:
        return False
    return tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.numel() > 0


def _run(tensor: Tensor) -> Tensor:
    """Bytes out of the middle of its memory, a view; so that NaN equals NaN, and one comparison serves all dtypes."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        length = min(RUN, tensor.numel())
        begin = (tensor.numel() - length) // 2
    else:
        length, begin = 1, sum(size // 2 * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((length,), (1,), int(tensor.storage_offset()) + begin).view(torch.uint8)


def _differ(now: Tensor, then: Tensor) -> bool | Tensor:
    return not torch.equal(now, then) if now.device.type == "cpu" else (now != then).any()


def _key_of(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    tensors = list(tensors)
    try:
        return tuple(map(Tensor.data_ptr, tensors)), tuple(map(_COUNTED, tensors))
    except RuntimeError:  # inference tensors have no version
        return tuple([(t.data_ptr(), 0 if t.is_inference() else t._version, t.device, t.dtype) for t in tensors])
