"""Going past PyTorch's dispatcher, which costs more than a small op: when that is allowed, and how to forbid it.

Three things do so. An op goes straight to its engine (`_registry.call`). A U-Net's skip is read where it is, by a kernel and a
product of its own (`_skip.py`). A frozen convolution runs by packed weights, another operation than the one that was asked for
(`conv2d.py`). None of them may where something wants to see the operation: autograd, a mode, a transform, a tracer, a profiler,
a tensor subclass. PyTorch has no public way to ask for most of these: `PRIVATE` lists what is asked instead.

`PURIFY_ENGINE_BYPASS=0` in the environment, or `with ops.through_dispatcher():` forbids it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# All that is asked of PyTorch's private parts, below `torch`. Where a version lacks one, every call takes the dispatcher.
PRIVATE = (
    "_C._len_torch_dispatch_stack",  # modes
    "_C._functorch.peek_interpreter_stack",  # vmap, grad, jvp, functionalize
    "_C._get_tracing_state",  # torch.jit.trace
    "autograd._profiler_enabled",
)

_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_NUMBERS = frozenset({type(None), bool, int, float})  # what is no tensor, and most of the other arguments


class _Thread(threading.local):
    forbidden = os.environ.get("PURIFY_ENGINE_BYPASS", "1") == "0"


_thread = _Thread()


@contextmanager
def through_dispatcher() -> Iterator[None]:
    """Every op called in this thread goes through PyTorch's dispatcher: to find out whether going past it is at fault."""
    outer, _thread.forbidden = is_forbidden(), True
    try:
        yield
    finally:
        _thread.forbidden = outer


def is_forbidden() -> bool:
    """Whether the environment or this thread forbids going past the dispatcher."""
    return _thread.forbidden


def is_allowed(values: Iterable[object]) -> bool:
    """Whether a call on these values may go past the dispatcher: it is not forbidden, and nothing wants to see it."""
    recording = torch.is_grad_enabled()
    for value in values:
        kind = type(value)  # not by `is_plain`: this is asked for every argument of every op
        if kind in _PLAIN:
            if recording and value.requires_grad:  # type: ignore[attr-defined]
                return False
        elif kind not in _NUMBERS and isinstance(value, Tensor):
            return False
    return not (_thread.forbidden or is_observed())


def is_observed() -> bool:
    """Whether a mode, a transform, a tracer or a profiler wants to see every operation; True where PyTorch cannot be asked."""
    if torch.compiler.is_compiling():  # first: the questions below would break the graph that is being compiled
        return True
    try:
        return bool(torch._C._len_torch_dispatch_stack() or is_transformed() or torch.autograd._profiler_enabled())
    except AttributeError:
        return True


def is_transformed() -> bool:
    """Whether tensors may stand for others, in a transform or a tracer; True where PyTorch cannot be asked."""
    try:
        return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None
    except AttributeError:
        return True


def is_plain(value: Tensor) -> bool:
    """Whether a tensor is of PyTorch's own classes: a subclass may want to see what is done with it."""
    return type(value) in _PLAIN


def missing() -> tuple[str, ...]:
    """What of `PRIVATE` this version of PyTorch lacks."""
    return tuple(f"torch.{path}" for path in PRIVATE if _looked_up(path) is None)


def _looked_up(path: str) -> Any:
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
