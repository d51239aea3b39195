"""Is every kernel right on this device? All ops on all engines against float64, their outputs poisoned; and their registration.

    python -m bench check-ops [--device cuda] [--shard 0/8] [--few-kernels]

A line a check, written at once to checks-MACHINE.jsonl; exit status 1 if any failed. Judged by the project's yardstick: at
most twice as wrong as honest PyTorch on this device in the same precision, against float64, plus one rounding. TF32 is off
for all of it.
"""

from __future__ import annotations

import torch

from bench.core.comparison import AbsentError, first_line
from bench.core.run import Run, begin, parser
from bench.subjects.checked_cases import ALL, Share, wanted
from bench.subjects.op_case import OpCase, engines, moved, poisoned
from purify_engine.ops import OPS, Op
from purify_engine.testing.agreement import judge_of
from purify_engine.testing.cases import cases

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def main(words: list[str]) -> int:
    options = parser("check-ops", __doc__)
    options.add_argument("--shard", default="0/1", help="which share of the cases, K/N")
    options.add_argument("--few-kernels", action="store_true", help="of Triton's cases those that share code")
    run, chosen = begin("checks", options, words)
    share = Share(*map(int, chosen.shard.split("/")))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for place, op in enumerate(OPS.values()):
        for engine in engines(run.device):
            if callable(op.engines[engine]):
                check_engine(run, op, engine, share, few_kernels=chosen.few_kernels)
            elif share.number == 0:
                run.note(f"{op.name} {engine}", str(op.engines[engine]))
        if place % share.of == share.number:
            check_registration(run, op)
    return run.close()


def check_engine(run: Run, op: Op, engine: str, share: Share = ALL, *, few_kernels: bool = False) -> None:
    """One op on one engine: how many cases agree, how many it leaves to the next engine, and the first that is wrong."""
    chosen = share.taken(wanted(op.name, engine, run, few_kernels=few_kernels))
    faults, declined, done = list[str](), 0, 0
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
