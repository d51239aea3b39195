"""The cases by which an engine of an op is checked: all, those that share code, or a few; and a process's share of them."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from typing import NamedTuple

import torch

from bench.core.run import Run
from bench.subjects.launches import sharing_code
from bench.subjects.op_case import OpCase
from purify_engine.devices import SIXTEEN_BITS
from purify_engine.testing.cases import Case, cases

ANY_FLOAT = (
    "group_norm_silu",
    "group_norm_silu_backward",
    "attention",
    "attention_backward",
    "conv3x3",
    "sum_norm_silu",
    "residual_sum",
    "affine_relu",
    "affine_relu_backward",
)


class Share(NamedTuple):
    """Which part of the cases a process checks, where several share the work."""

    number: int = 0
    of: int = 1

    def taken(self, known: list[Case]) -> list[Case]:
        """Every `of`-th of the cases, of all kinds: mixed, since kinds repeat in step."""
        return known if self.of == 1 else random.Random(0).sample(known, len(known))[self.number :: self.of]

    def __str__(self) -> str:
        return "" if self.of == 1 else f", share {self.number + 1} of {self.of}"


ALL = Share()


def wanted(op: str, engine: str, run: Run, *, few_kernels: bool = False) -> list[Case]:
    """All cases; in low precision too where an op takes any float. A dry run takes a few.

    few_kernels: of a kernel in Triton those that share code.
    """
    known = cases(op)
    if op in ANY_FLOAT and engine in ("triton", "cuda"):
        single = [case for case in known if case.dtype == torch.float32]
        known = known + [dataclasses.replace(case, dtype=dtype) for case in single for dtype in SIXTEEN_BITS]
    if run.toy:
        return _few(known, engine)
    if few_kernels and engine == "triton":
        return sharing_code(known, lambda case: _called(case, run.device), run.device)
    return known


def _called(case: Case, device: torch.device) -> None:
    # Left to another engine, or refused since what a part computed is not there: what was launched until then is noted.
    with contextlib.suppress(Exception), torch.no_grad():
        OpCase(case, device).call("triton")


def _few(known: list[Case], engine: str) -> list[Case]:
    if engine != "triton":
        return [case for case in known if case.dtype == torch.float32 and 0 not in case.shape][::29]
    small = sorted((case for case in known if 0 not in case.shape), key=lambda case: torch.Size(case.shape).numel())
    return [case for dtype in (torch.float32, torch.float16) for case in [one for one in small if one.dtype == dtype][2:4]]
