"""The C++ extensions: loading one, and launching the CPU's kernels, which are handed bare pointers.

A launcher makes its inputs contiguous and of one dtype, allocates what the kernel fills, and gives the result the layout that the
reference would have. The arguments were checked before.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from purify_engine.ops._registry import Declines, Judge, Launcher

INTERFACE = 6  # of the extension that these launchers know how to call

Observer = Callable[[Callable[..., None], tuple[Any, ...]], None]


class _Thread(threading.local):
    observer: Observer | None = None  # of this thread's launches


_thread = _Thread()


def load(name: str, interface: int) -> ModuleType | None:
    """The extension `purify_engine.<name>`, or None where it was never built.

    ImportError where it does not load, or was built for other launchers than these, which know `interface`.
    """
    module = f"purify_engine.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    repair = "rebuild it with `pip install -e .`, or delete the file to do without"
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is there but does not load ({error}); {repair}") from error
    if getattr(loaded, "INTERFACE", None) != interface:
        raise ImportError(f"{module} was built for another version of purify_engine; {repair}")
    return loaded


extension: Any = load("_C", INTERFACE)  # None where it was never built


def cpp(run: Callable[..., Any], declines: Declines | None = None, judge: Judge | None = None) -> Launcher | str:
    """A launcher of kernels of the extension, where it is built."""
    if extension is None:
        return "purify_engine._C is not built; build it with `pip install -e .` and a C++ compiler"
    return Launcher(run, declines, judge)


def instruction_set() -> str | None:
    """What the kernels run on ("avx512", "avx2", "portable"); None without the extension."""
    return None if extension is None else extension.instruction_set()


def instruction_sets() -> tuple[str, ...]:
    """What they could run on, on this CPU, best first."""
    return () if extension is None else tuple(extension.instruction_sets())


def use_instruction_set(name: str) -> None:
    """Run on this one of `instruction_sets()` from now on, in the whole process."""
    extension.use_instruction_set(name)


def launch(kernel: str, *arguments: Any) -> None:
    """Run a kernel. Where it takes addresses, also inside of tuples, it is given tensors, or None for address 0."""
    function = getattr(extension, kernel)
    function(*addressed(arguments))
    if _thread.observer is not None:
        _thread.observer(function, arguments)


def addressed(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, every tensor replaced by the address of its first element."""
    return tuple([_address(value) for value in arguments])


def _address(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if value is None:
        return 0
    return addressed(value) if isinstance(value, tuple) else value


@contextmanager
def observe_launches(observer: Observer) -> Iterator[None]:
    """Tell `observer` of every launch in this thread: (function of the extension, arguments of `launch`), after it ran."""
    outer, _thread.observer = _thread.observer, observer
    try:
        yield
    finally:
        _thread.observer = outer


def are_launches_observed() -> bool:
    """Whether this thread's launches are being observed."""
    return _thread.observer is not None


def empty(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The one place where launchers allocate what kernels fill: a test poisons it here."""
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=layout)  # whatever the default device is


def computed_in(x: Tensor) -> torch.dtype:
    """The precision in which kernels compute on tensors like `x`."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def named(op: str, dtype: torch.dtype) -> str:
    """The kernel of an op for a precision."""
    return f"{op}_{str(dtype).removeprefix('torch.')}"


def dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, in this precision."""
    return in_dtype(tensor, dtype).contiguous()


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In this precision. Asking first: `to` takes a microsecond and a half to find that nothing is to be done."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
