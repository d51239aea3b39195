"""One case of an op on a device: its arguments there, a call of any engine, the truth, and whether results are right."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.core.comparison import AbsentError, Finding, compare, nearer_than
from purify_engine import ops
from purify_engine.kernels import _tiles
from purify_engine.ops import INTERPRETED, OPS, Op
from purify_engine.testing import extended
from purify_engine.testing.agreement import Judge, as_tuple, strides
from purify_engine.testing.cases import Case
from purify_engine.testing.magnitudes import magnitudes

DOUBLE = 1e-12  # relative, for float64 results of which no more exact truth is written down


def engines(device: torch.device) -> list[str]:
    """The engines of kernels that a device could run."""
    if device.type == "cuda":
        return ["triton", "cuda"]
    return ["cpp", "triton"] if INTERPRETED else ["cpp"]


class OpCase:
    """A case of `testing/cases.py` whose arguments are on a device. `op` takes the registered one's place, in tests."""

    def __init__(self, case: Case, device: torch.device, op: Op | None = None) -> None:
        self.case, self.device, self.op = case, device, op or OPS[case.op]
        self.function = op or getattr(torch.ops.purify, case.op)
        self.arguments = tuple(moved(value, device) for value in case.arguments())

    def call(self, engine: str) -> Any:
        """The op by an engine and no other; an `AbsentError` where that leaves the case to another."""
        try:
            with ops.backend(engine), tiles_listed(EveryShape()):
                return self.function(*self.arguments, **self.case.keywords)
        except RuntimeError as fault:
            if declines(fault):
                raise AbsentError("left to another engine") from fault
            raise

    def reference(self, *arguments: Any, **keywords: Any) -> tuple[Any, ...]:
        """The specification's results."""
        return as_tuple(self.op.reference(*arguments, **keywords))

    @cached_property
    def honest(self) -> tuple[Any, ...]:
        """What the specification gives in the case's own precision."""
        return self.reference(*self.arguments, **self.case.keywords)

    @cached_property
    def truth(self) -> tuple[Any, ...]:
        """The results with digits to spare: long double for float64, float64 for the rest."""
        if self.case.dtype == torch.float64:
            return as_tuple(getattr(extended, self.case.op)(*self.case.arguments(), **self.case.keywords))
        keywords = self.case.keywords | ({"dtype": torch.float64} if "dtype" in self.case.keywords else {})
        # The values that the kernel was given, and no others: rounded to the case's precision, then widened.
        arguments = tuple(_widened(value) for value in self.arguments)
        if self.case.op == "to_images":
            arguments = (arguments[0], torch.float64)
        return self.reference(*arguments, **keywords)

    @cached_property
    def sizes(self) -> tuple[Any, ...]:
        """The magnitudes of the results, None where an op needs none."""
        return magnitudes(self.op.name, self.case.arguments(), self.case.keywords) or (None,) * len(self.honest)

    def finding(self, engine: str, judge: Judge) -> Finding:
        """Compare every result of an engine: values by `judge`, integers exactly, and dtype, shape and strides."""
        results = zip(as_tuple(self.call(engine)), self.honest, strict=True)
        findings = [self._finding(place, *pair, judge) for place, pair in enumerate(results)]
        return next((finding for finding in findings if finding.fault), max(findings, key=lambda finding: finding.error))

    def _finding(self, place: int, got: Tensor, honest: Tensor, judge: Judge) -> Finding:
        if (got.dtype, got.shape) != (honest.dtype, honest.shape):
            return Finding(float("nan"), f"{got.dtype} {list(got.shape)}, expected {honest.dtype} {list(honest.shape)}")
        if strides(got) != strides(honest):
            return Finding(float("nan"), f"strides {strides(got)}, expected {strides(honest)}")
        if not got.is_floating_point():
            wrong = int((got != honest).sum())
            return Finding(0.0, f"{wrong} of {got.numel()} elements differ" if wrong else "")
        if self.case.dtype == torch.float64 and not hasattr(extended, self.case.op):
            return compare(got, honest, honest, nearer_than(DOUBLE))
        return compare(got, honest, self.truth[place], judge, self.sizes[place])


def declines(fault: Exception) -> bool:
    """Whether the registry says that a forced engine has nothing for a call, or for a part of it."""
    return isinstance(fault, RuntimeError) and bool(re.search("has no .* (kernel for these arguments|engine for)", str(fault)))


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN, or the largest integer: an element that a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filling = memory.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filling


@contextlib.contextmanager
def tiles_listed(wins: dict[Any, _tiles.ConvTile]) -> Iterator[None]:
    """`wins` in place of the measured table of the shapes that our convolution is chosen for."""
    before, _tiles.CONV3X3_WINS = _tiles.CONV3X3_WINS, wins
    try:
        yield
    finally:
        _tiles.CONV3X3_WINS = before


class EveryShape(dict[Any, _tiles.ConvTile]):
    """Our convolution wins everywhere, by the tile that `_tiles` guesses: to check and to time it where it is not chosen."""

    def __contains__(self, problem: object) -> bool:
        return True


def moved(value: Any, device: torch.device) -> Any:
    """A tensor on `device` with its strides, gaps and repetitions as they are, which `Tensor.to` would tidy up."""
    if not isinstance(value, Tensor) or value.device == device:
        return value
    storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(device)
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
