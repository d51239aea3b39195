"""Which engine runs an op: by device and silently, or the one that `backend` forces.

Every op has the reference. Each of the other engines is a launcher, a function of the reference's own signature, or the sentence
that says why the op does without it. A launcher that returns NotImplemented leaves the call to the next engine in order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purify_engine.config import require
from purify_engine.ops import autocast

ENGINES = ("reference", "cpp", "cuda", "triton")
# The first that an op has runs; on any other device, the reference.
ORDER = {"cpu": ("cpp", "reference"), "cuda": ("triton", "cuda", "reference")}

# Triton's interpreter runs kernels on CPU tensors: slowly, for tests, and only where `backend("triton")` asks for it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

Launcher = Callable[..., Any]

_thread = threading.local()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one of `ENGINES` on every op called in this thread, or `"fused"`: any engine but the reference.

    An op that has no such engine on its device raises a RuntimeError with the reason instead of running slowly. A backward pass
    takes the engine that is forced where it runs, not where its forward pass ran.
    """
    require(name in (*ENGINES, "fused"), "backend", f"one of {', '.join(ENGINES)}, fused", name)
    outer, _thread.forced = forced(), name
    try:
        yield
    finally:
        _thread.forced = outer


def forced() -> str | None:
    """The engine that this thread forces, or None."""
    return getattr(_thread, "forced", None)


def admits_cpp() -> bool:
    """Whether nothing is forced that keeps CPU tensors from the C++ room."""
    return forced() in (None, "cpp", "fused")


@dataclass(frozen=True)
class Op:
    """One name, many implementations: a launcher for each engine, or the reason why there is none."""

    name: str
    engines: dict[str, Launcher | str]
    check: Callable[..., None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The kernel that torch's dispatcher calls. Every engine is entered through this one check, with autocast off."""
        self.check(*args, **kwargs)
        device = args[0].device.type
        if not autocast.is_on(device):  # entering the context costs more than a small op
            return self._launch(device, args, kwargs)
        with autocast.off(device):
            return self._launch(device, args, kwargs)

    def _launch(self, device: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for engine in self._candidates(device):
            launch = self.engines[engine]
            assert callable(launch)
            result = launch(*args, **kwargs)
            if result is not NotImplemented:
                return result
        raise RuntimeError(f"purify::{self.name} has no {forced()} kernel for these arguments on {device}")

    def choose(self, device: str) -> str:
        """The engine to run on `device` ("cpu", "cuda", ...): the forced one, else the first of `ORDER`."""
        return self._candidates(device)[0]

    def _candidates(self, device: str) -> list[str]:
        """The engines to ask, in order."""
        order, name = ORDER.get(device, ("reference",)), forced()
        if name == "fused":
            order = tuple(engine for engine in order if engine != "reference")
        elif name == "triton" and device == "cpu" and INTERPRETED:
            order = ("triton",)
        elif name is not None:
            order = (name,) if name in order else ()
        found = [engine for engine in order if callable(self.engines[engine])]
        if not found:
            raise RuntimeError(f"purify::{self.name} has no {name} engine for {device} tensors{self._reasons(order)}")
        return found

    def _reasons(self, order: tuple[str, ...]) -> str:
        return "".join(f"; {engine}: {self.engines[engine]}" for engine in order)


OPS: dict[str, Op] = {}


def call(op: Op, *args: Any, **kwargs: Any) -> Any:
    """`op` through PyTorch's dispatcher; straight to its engine where nobody looks on, which saves what a small op costs."""
    return (_dispatched(op) if _is_watched(args) else op)(*args, **kwargs)


def _dispatched(op: Op) -> Launcher:
    return getattr(torch.ops.purify, op.name)


def _is_watched(args: tuple[Any, ...]) -> bool:
    """Whether autograd, a mode, a transform, a tracer, a profiler or a tensor subclass wants to see a call."""
    recorded = torch.is_grad_enabled()
    for value in args:
        if isinstance(value, Tensor) and (not is_plain(value) or (recorded and value.requires_grad)):
            return True
    return is_observed()


def is_observed() -> bool:
    """Whether a mode, a transform, a tracer or a profiler wants to see every operation."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or torch.compiler.is_compiling()
    )


def is_plain(value: Tensor) -> bool:
    """Whether a tensor is of PyTorch's own classes: a subclass may want to see what is done with it."""
    return type(value) in (Tensor, torch.nn.Parameter)


def define(schema: str, reference: Launcher, *, check: Callable[..., None], **engines: Launcher | str) -> Op:
    """Define `purify::<schema>`, with `reference` as the implementation everywhere and as the shape function.

    `engines` names all the others of `ENGINES`: a launcher, or the reason for having none. `check` refuses impossible arguments.
    """
    name, parenthesis, rest = schema.partition("(")
    assert set(engines) == set(ENGINES) - {"reference"}, f"{name} must say a word about every engine"
    op = Op(name, {"reference": reference, **engines}, check)
    torch.library.define(f"purify::{name}", parenthesis + rest, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"purify::{name}", "CompositeExplicitAutograd", op)
    torch.library.register_fake(f"purify::{name}", reference)
    OPS[name] = op
    return op
