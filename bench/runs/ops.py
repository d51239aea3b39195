"""Times every op on every engine that this device has, on shapes of the benchmarked networks.

    python -m bench ops [--op conv3x3] [--bytes 64e6] [--cache cold]     appends to bench/results/ops-MACHINE.jsonl

A line a case, engine and state of the cache: median and spread in seconds, and how near it comes to the roofline, the larger
of the bytes it must move over the copy's rate and its FLOPs over the matrix product's, both measured in the same run. On a
GPU the times are the device's alone; what launching costs is seen in `python -m bench loop`. Before anything is timed its
result is compared with float64.
"""

from __future__ import annotations

from functools import partial

import torch

from bench.core.comparison import Finding, Variant, sound, within
from bench.core.run import Run, begin, parser
from bench.subjects.op_case import OpCase, engines
from bench.subjects.timed_cases import timed_cases
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.harness import Timing, clocks, interleaved
from purify_engine.benchmark.machine import ceilings
from purify_engine.testing.cases import Case
from purify_engine.testing.costs import bytes_moved, flops

SECONDS = 0.5  # a case and state of the cache, for all engines together
OURS = 2  # times as far from float64 as the specification in the same precision


def main(words: list[str]) -> int:
    options = parser("ops", __doc__)
    options.add_argument("--op", nargs="+", help="only these ops")
    options.add_argument("--bytes", type=float, default=0, help="only cases that move at least so many")
    options.add_argument("--cache", nargs="+", choices=("cold", "warm"), help="only in this state of the cache")
    run, chosen = begin("ops", options, words)
    torch.backends.cudnn.benchmark = True
    rates = ceilings(run.device, toy=run.toy)
    run.figure("  ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()), kind="ceilings", **rates)
    for case in timed_cases(run.device, toy=run.toy):
        if (chosen.op and case.op not in chosen.op) or (bytes_moved(case) < chosen.bytes and not run.toy):
            continue
        if run.seconds_left < 0:
            run.note(f"{case.op} {case}", "not measured: no time left")
            continue
        measure(run, case, rates, chosen.cache)
    return run.close()


def measure(run: Run, case: Case, rates: dict[str, float], states: list[str] | None = None) -> None:
    """Compare every engine with float64, then time all that agree in turn, with the cache cold and warm."""
    name, subject = f"{case.op} {case}", OpCase(case, run.device)
    with torch.no_grad():
        agreeing = sound(run, name, {engine: partial(variant, subject, engine) for engine in chosen_engines(run, subject)})
        moves, work = bytes_moved(case), flops(case)
        least = max(moves / rates["copy"], work / rates.get(f"matmul {_name(case.dtype)}", rates["matmul float32"]))
        known = clocks(run.device, queued=True)
        for cache, clock in known.items():
            if states and cache not in states and len(known) > 1:  # a CPU's is always warm
                continue
            calls = {engine: agreed.call for engine, agreed in agreeing.items()}
            timings = interleaved(calls, clock, seconds=0 if run.toy else SECONDS, least=2 if run.toy else 10)
            for engine, timing in timings.items():
                facts = {"op": case.op, "case": name, "engine": engine, "cache": cache, "threads": torch.get_num_threads()}
                facts |= {"bytes": moves, "flops": work, "roofline": least / timing.median, "error": agreeing[engine].error}
                run.figure(_text(name, engine, cache, timing, least), kind="op", **facts, **timing.record())


def chosen_engines(run: Run, subject: OpCase) -> list[str]:
    """The reference, and the engines that have a kernel. A dry run leaves Triton out: the interpreter's times mean nothing."""
    kernels = [engine for engine in engines(run.device) if callable(subject.op.engines[engine])]
    return ["reference", *(engine for engine in kernels if not (run.toy and engine == "triton"))]


def variant(subject: OpCase, engine: str) -> Variant:
    """The case on one engine."""

    def finding() -> Finding:
        return subject.finding(engine, within(OURS))

    return Variant(partial(subject.call, engine), finding)


def _text(name: str, engine: str, cache: str, timing: Timing, least: float) -> str:
    times = f"{duration(timing.median):>9} ± {duration(timing.spread)}"
    return f"{name:<64} {engine:<10} {cache} {times}, {least / timing.median:.0%} of the roofline"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
