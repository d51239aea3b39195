"""What an op is, and who runs a call of it: `Op.resolve` decides, for calls, layouts, `doctor`, bench and tests alike.

Silently the first engine of `ORDER` that takes the call; or the one that `backend` forces, which runs it or raises. An op has
for every engine a launcher, or the sentence that says why it does without one; a launcher may decline a call, with a sentence.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from purify_engine.config import require
from purify_engine.ops import _bypass, autocast

# reference: the specification. torch: PyTorch's own operations, where they are put together otherwise than in the specification.
# cpp, cuda, triton: our kernels.
ENGINES = ("reference", "torch", "cpp", "cuda", "triton")
ORDER = {"cpu": ("cpp", "torch", "reference"), "cuda": ("triton", "cuda", "torch", "reference")}
ELSEWHERE = ("torch", "reference")  # the order on any other device

IN_PYTORCH = "its specification is made of PyTorch's own operations already"  # why an op has no engine `torch`

# Triton's interpreter runs kernels on CPU tensors: slowly, for tests, and only where `backend("triton")` asks for it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# How a result is held to the truth (testing/agreement.py): by its worst element, or as a whole, for kernels that mix elements.
Judge = Literal["elementwise", "whole"]
Declines = Callable[..., "str | None"]


class _Thread(threading.local):
    forced: str | None = None  # the engine; read in every call, and cheaper here than as a default of `getattr`


_thread = _Thread()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one of `ENGINES` on every op called in this thread, or `"fused"`: any engine but the reference.

    A call that this engine does not run raises a RuntimeError with the reason, always. A backward pass takes the engine that is
    forced where it runs, not where its forward pass ran.
    """
    require(name in (*ENGINES, "fused"), "backend", f"one of {', '.join(ENGINES)}, fused", name)
    with _forcing(name):
        yield


def parts_of_torch() -> AbstractContextManager[None]:
    """For the parts that the engine `torch` puts together: they choose freely, since few have such an engine as well."""
    return _forcing(None) if forced() == "torch" else nullcontext()


@contextmanager
def _forcing(name: str | None) -> Iterator[None]:
    outer, _thread.forced = forced(), name
    try:
        yield
    finally:
        _thread.forced = outer


def forced() -> str | None:
    """The engine that this thread forces, or None."""
    return _thread.forced


@dataclass(frozen=True)
class Launcher:
    """How an engine runs a call, and why it declines one, launching nothing: both are functions of the op's arguments."""

    run: Callable[..., Any]
    declines: Declines | None = None
    judge: Judge | None = None  # where this engine is not held to the op's own yardstick

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


@dataclass(frozen=True)
class Op:
    """One name, many implementations: a launcher for each engine, or the reason why there is none.

    `bundle` makes of the schema's arguments those that `check` and all launchers but the specification take.
    """

    name: str
    engines: dict[str, Launcher | str]
    check: Callable[..., None]
    bundle: Callable[..., tuple[Any, ...]] | None = None
    judge: Judge = "elementwise"

    @property
    def reference(self) -> Callable[..., Any]:
        """The specification, a function of the schema's arguments."""
        launcher = self.engines["reference"]
        assert isinstance(launcher, Launcher)
        return launcher.run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The kernel that torch's dispatcher calls: who `resolve` says, with autocast off."""
        _, launch = self.resolve(*args, **kwargs)
        device = args[0].device.type
        if not autocast.is_on(device):  # entering the context costs more than a small op
            return launch()
        with autocast.off(device):
            return launch()

    def resolve(self, *args: Any, **kwargs: Any) -> tuple[str, Callable[[], Any]]:
        """Who runs this call, and what runs it.

        ValueError where an argument is impossible; RuntimeError with the reasons where the engine that is forced does not run it.
        """
        given, keywords = (args, kwargs) if self.bundle is None else (self.bundle(*args, **kwargs), {})
        self.check(*given, **keywords)
        device, engines = args[0].device.type, self.engines
        for engine in order(device):
            launcher = engines[engine]
            if isinstance(launcher, str):
                continue
            if engine == "reference":
                return engine, partial(launcher.run, *args, **kwargs)
            if launcher.declines is None or launcher.declines(*given, **keywords) is None:
                return engine, partial(launcher.run, *given, **keywords)
        raise RuntimeError(self._refusal(device, given, keywords))

    def judge_of(self, engine: str) -> Judge:
        """The yardstick for what an engine computes."""
        launcher = self.engines[engine]
        return (launcher.judge if isinstance(launcher, Launcher) else None) or self.judge

    def _refusal(self, device: str, given: tuple[Any, ...], keywords: dict[str, Any]) -> str:
        reasons, declined = "", False
        for engine in order(device):
            launcher = self.engines[engine]
            declined = declined or isinstance(launcher, Launcher)
            reason = launcher.declines(*given, **keywords) if isinstance(launcher, Launcher) and launcher.declines else launcher
            reasons += f"; {engine}: {reason}"
        if declined:
            return f"purify::{self.name} has no {forced()} kernel for these arguments on {device}{reasons}"
        return f"purify::{self.name} has no {forced()} engine for {device} tensors{reasons}"


def order(device: str) -> tuple[str, ...]:
    """The engines to ask on `device` ("cpu", "cuda", ...), in order."""
    engines, name = ORDER.get(device, ELSEWHERE), forced()
    if name is None:
        return engines
    if name == "fused":
        return tuple(engine for engine in engines if engine != "reference")
    if name in engines or (name == "triton" and device == "cpu" and INTERPRETED):
        return (name,)
    return ()


OPS: dict[str, Op] = {}


def call(op: Op, *args: Any, **kwargs: Any) -> Any:
    """`op` through PyTorch's dispatcher; straight to its engine where nothing needs to see it, which saves a small op's cost."""
    return (op if _bypass.is_allowed(args) else _dispatched(op))(*args, **kwargs)


def _dispatched(op: Op) -> Callable[..., Any]:
    return getattr(torch.ops.purify, op.name)


def define(
    schema: str,
    reference: Callable[..., Any],
    *,
    check: Callable[..., None],
    bundle: Callable[..., tuple[Any, ...]] | None = None,
    judge: Judge = "elementwise",
    flops: Callable[..., int] | None = None,
    gradient: Callable[[Op], None] | None = None,
    **engines: Launcher | str,
) -> Op:
    """Define `purify::<schema>`, with `reference` as the implementation everywhere and as the shape function.

    `engines` names all the others of `ENGINES`: a launcher, or the reason for having none. `check` refuses impossible arguments,
    `gradient` registers the op's (`_gradient.py`), `flops` counts its matrix products for PyTorch's counter, 2 a multiply-add.
    """
    name, parenthesis, rest = schema.partition("(")
    assert set(engines) == set(ENGINES) - {"reference"}, f"{name} must say a word about every engine"
    op = Op(name, {"reference": Launcher(reference), **engines}, check, bundle, judge)
    torch.library.define(f"purify::{name}", parenthesis + rest, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"purify::{name}", "CompositeExplicitAutograd", op)
    torch.library.register_fake(f"purify::{name}", reference)
    if flops is not None:
        register_flop_formula(_dispatched(op))(flops)
    if gradient is not None:
        gradient(op)
    OPS[name] = op
    return op


def is_recorded(values: Any) -> bool:
    """Whether autograd records a call on these."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)
