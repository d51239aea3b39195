"""PyTorch's autocast on devices of every kind. Some have none, as meta, and PyTorch raises where one asks about it there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

ALWAYS = ("cpu", "cuda")  # have it in every version of PyTorch; not asked about, since each op would pay for the question


def is_on(device_type: str) -> bool:
    """Whether autocast is active here on devices of a kind ("cpu", "cuda", "meta", ...)."""
    return _exists(device_type) and torch.is_autocast_enabled(device_type)


def off(device_type: str) -> AbstractContextManager[object]:
    """A context in which autocast is not active."""
    return torch.autocast(device_type, enabled=False) if _exists(device_type) else nullcontext()


def as_here(device_type: str) -> Callable[[], AbstractContextManager[object]]:
    """A maker of contexts in which autocast is as it is in this call: for what is computed again later."""
    if not _exists(device_type):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return functools.partial(
        torch.autocast, device_type, dtype=dtype, enabled=enabled, cache_enabled=torch.is_autocast_cache_enabled()
    )


def _exists(device_type: str) -> bool:
    return device_type in ALWAYS or bool(torch.amp.is_autocast_available(device_type))
