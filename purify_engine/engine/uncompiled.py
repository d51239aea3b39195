"""`torch.compiler.disable` without what it imports: half of the time that importing PyTorch takes, in every process."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

Called = TypeVar("Called", bound=Callable[..., Any])

COMPILER = "torch._dynamo"  # imported by `torch.compile`: before it is, nothing can be compiled


def uncompiled(reason: str) -> Callable[[Called], Called]:
    """A decorator: torch.compile leaves the function as it is, and says `reason` (from PyTorch 2.7 on) where that is refused.

    The compiler knows such a function by the attributes that `torch.compiler.disable` sets.
    """

    def decorated(function: Called) -> Called:
        @cache
        def disabled() -> Any:
            given = {"reason": reason} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
            return torch.compiler.disable(function, **given)

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return disabled()(*args, **kwargs) if COMPILER in sys.modules else function(*args, **kwargs)

        called._torchdynamo_disable = True  # type: ignore[attr-defined]
        called._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
        return called  # type: ignore[return-value]

    return decorated
