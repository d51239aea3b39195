"""Is it right? Before anything is timed, its result is held to the same computation in float64.

The one rule: what is absent, breaks or is wrong gets a line that says so, and no timing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.core.run import Run
from purify_engine.benchmark.harness import Call
from purify_engine.testing.agreement import Judge
from purify_engine.testing.yardstick import Extended

OPPONENT = 10  # times as far from float64 as honest PyTorch: an opponent need only be the same function


class AbsentError(Exception):
    """Why a variant takes no part here. That is no fault."""


@dataclass(frozen=True)
class Finding:
    """How far a result is from float64, relatively, and what is wrong with it: nothing where `fault` is empty."""

    error: float
    fault: str = ""

    @property
    def says(self) -> str:
        return self.fault or f"relative error {self.error:.3g} to float64"


class Variant(NamedTuple):
    """What is timed, and how its result is compared beforehand."""

    call: Call
    compare: Callable[[], Finding]


class Sound(NamedTuple):
    """A call that may be timed, and the relative error of its result."""

    call: Call
    error: float


Name = TypeVar("Name")


def sound(run: Run, label: str, makers: Mapping[Name, Callable[[], Variant]]) -> dict[Name, Sound]:
    """Build every variant and compare it; those that may be timed. Each of the others is a failed check or a note."""
    agreeing = {}
    for name, make in makers.items():
        says = f"{label}: {name}"
        try:
            variant = make()
            finding = variant.compare()
        except AbsentError as absent:
            run.note(says, f"not measured: {absent}")
        except torch.OutOfMemoryError:
            run.note(says, "not measured: out of memory")
        except Exception as fault:  # one that breaks is a failed check, and the others are measured
            run.check(says, False, first_line(fault))
        else:
            run.check(says, not finding.fault, finding.says, error=finding.error)
            if not finding.fault:
                agreeing[name] = Sound(variant.call, finding.error)
    return agreeing


def compare(got: Tensor, honest: Tensor, truth: Tensor | Extended, judge: Judge, magnitude: Extended | None = None) -> Finding:
    """Hold a result to the `truth`, in float64 or beyond, by the error that `honest` PyTorch makes in the result's precision.

    magnitude: what the judge may need to know of the sizes that were added up (testing/magnitudes.py).
    """
    if tuple(got.shape) != tuple(truth.shape):
        return Finding(float("nan"), f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}")
    error = relative_error(got, truth)
    try:
        judge(got, honest, truth, magnitude)
    except AssertionError as fault:
        return Finding(error, str(fault))
    return Finding(error)


def within(times: float, *, slack: float = 0.0) -> Judge:
    """A judge: `times` the distance of honest PyTorch, plus one rounding; the distance being that of the whole result.

    ||got - truth|| <= times max(||honest - truth||, slack ||truth||) + eps ||truth||. slack: how far the truth itself goes,
    relatively, when its input is rounded, where that is more than a rounding. A NaN anywhere is a failure.
    """

    def judge(got: Tensor, honest: Tensor, truth: Tensor, magnitude: Any = None) -> None:
        size, error, honest_error = (float(x.norm()) for x in (truth, got.double() - truth, honest.double() - truth))
        allowed = times * max(honest_error, slack * size) + torch.finfo(got.dtype).eps * size
        relative = error / size if size else error
        assert error <= allowed, f"relative error {relative:.3g} to float64, allowed {allowed / size if size else allowed:.3g}"

    return judge


def nearer_than(limit: float) -> Judge:
    """A judge that asks honest PyTorch nothing: ||got - truth|| <= limit ||truth||."""

    def judge(got: Tensor, honest: Tensor, truth: Tensor, magnitude: Any = None) -> None:
        error = relative_error(got, truth)
        assert error <= limit, f"relative error {error:.3g}, allowed {limit:.3g}"

    return judge


def relative_error(got: Tensor, truth: Tensor | Extended) -> float:
    """||got - truth|| / ||truth||, in float64; ||got - truth|| where the truth is 0, or empty."""
    true = truth.double() if isinstance(truth, Tensor) else torch.from_numpy(truth.astype(np.float64)).to(got.device)
    error, size = float((got.double() - true).norm()), float(true.norm())
    return error / size if size else error


def difference(got: Tensor, expected: Tensor) -> str:
    """What keeps two results from being the same to the bit; nothing where they are. NaN equals nothing."""
    if (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return f"{got.dtype} {tuple(got.shape)}, expected {expected.dtype} {tuple(expected.shape)}"
    if got.equal(expected):
        return ""
    wrong = got != expected
    most = float((got.double() - expected.double()).abs().max())
    return f"{int(wrong.sum())} of {got.numel()} elements differ, by {most:.3g} at most"


def first_line(fault: BaseException) -> str:
    """What went wrong, in one line; one that ends in a colon is told with the next."""
    first, *others = [line.strip() for line in str(fault).splitlines() if line.strip()] or [""]
    said = f"{first} {others[0]}" if first.endswith(":") and others else first
    return f"{type(fault).__name__}: {said}"[:300]
