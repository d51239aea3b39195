"""Is every kernel right on this device? All ops on all engines against float64, their outputs poisoned; and their registration.

    python -m bench check-ops [--device cuda] [--shard 0/8]     a share of the cases, for processes that share a device

A line a check, written at once to checks-MACHINE.jsonl; exit status 1 if any failed. Judged by the project's yardstick: at
most twice as wrong as honest PyTorch on this device in the same precision, against float64, plus one rounding. TF32 is off
for all of it.
"""

from __future__ import annotations

import dataclasses
import random
from typing import NamedTuple

import torch

from bench.core.comparison import AbsentError, first_line
from bench.core.run import Run, begin, parser
from bench.subjects.op_case import OpCase, engines, moved, poisoned
from purify_engine.ops import OPS, Op
from purify_engine.testing.agreement import judge_of
from purify_engine.testing.cases import Case, cases

LOW_PRECISION = (torch.bfloat16, torch.float16)
ANY_FLOAT = (
    "group_norm_silu",
    "group_norm_silu_backward",
    "attention",
    "attention_backward",
    "conv3x3",
    "sum_norm_silu",
    "residual_sum",
)
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


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


def main(words: list[str]) -> int:
    options = parser("check-ops", __doc__)
    options.add_argument("--shard", default="0/1", help="which share of the cases, K/N")
    run, chosen = begin("checks", options, words)
    share = Share(*map(int, chosen.shard.split("/")))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for place, op in enumerate(OPS.values()):
        for engine in engines(run.device):
            if callable(op.engines[engine]):
                check_engine(run, op, engine, share)
            elif share.number == 0:
                run.note(f"{op.name} {engine}", str(op.engines[engine]))
        if place % share.of == share.number:
            check_registration(run, op)
    return run.close()


def check_engine(run: Run, op: Op, engine: str, share: Share = ALL) -> None:
    """One op on one engine: how many cases agree, how many it leaves to the next engine, and the first that is wrong."""
    chosen, faults, declined, done = share.taken(wanted(op.name, engine, run)), list[str](), 0, 0
    for case in chosen:
        if run.seconds_left < 0:
            break
        done += 1
        try:
            fault = disagreement(OpCase(case, run.device, None if op is OPS[op.name] else op), engine)
        except AbsentError:
            declined += 1
            continue
        if fault:
            faults.append(f"{case}: {fault}")
    says = [f"{done - declined - len(faults)} of {len(chosen)} cases agree, {declined} are left to another engine"]
    if faults:
        says.append(f"{len(faults)} wrong, first {faults[0]}")
    if done < len(chosen):
        says.append(f"no time for {len(chosen) - done}")
    ok = len(says) == 1 and declined < done
    facts = {"op": op.name, "engine": engine, "cases": len(chosen), "declined": declined, "wrong": faults[:20]}
    run.check(f"{op.name} {engine}{share}", ok, "; ".join(says), **facts)


def wanted(op: str, engine: str, run: Run) -> list[Case]:
    """All cases; in low precision too where an op takes any float. A dry run takes a few."""
    known = cases(op)
    if op in ANY_FLOAT and engine in ("triton", "cuda"):
        single = [case for case in known if case.dtype == torch.float32]
        known = known + [dataclasses.replace(case, dtype=dtype) for case in single for dtype in LOW_PRECISION]
    if not run.toy:
        return known
    if engine != "triton":
        return [case for case in known if case.dtype == torch.float32 and 0 not in case.shape][::29]
    small = sorted((case for case in known if 0 not in case.shape), key=lambda case: torch.Size(case.shape).numel())
    return [case for dtype in (torch.float32, torch.float16) for case in [one for one in small if one.dtype == dtype][2:4]]


def disagreement(subject: OpCase, engine: str) -> str:
    """What is wrong with an engine's results, computed into poisoned memory; nothing if all is right."""
    judge = judge_of(subject.op, engine)
    try:
        with poisoned(), torch.no_grad():
            return subject.finding(engine, judge).fault
    except AbsentError:
        raise
    except Exception as fault:  # whatever a kernel does wrong is one line here, and the other cases still run
        return first_line(fault)


def check_registration(run: Run, op: Op) -> None:
    """torch.library.opcheck, on the torch and the device that are here."""
    case = next(case for case in cases(op.name) if 0 not in case.shape and case.dtype == torch.float32)
    arguments = tuple(moved(value, run.device) for value in case.arguments())
    try:
        function = getattr(torch.ops.purify, op.name).default
        torch.library.opcheck(function, arguments, case.keywords, test_utils=OPCHECKS)
        run.check(f"{op.name} registration", True, f"opcheck on torch {torch.__version__}", op=op.name)
    except Exception as fault:
        run.check(f"{op.name} registration", False, first_line(fault), op=op.name)
