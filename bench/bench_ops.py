"""Times every op on every engine that this device has, on shapes of the benchmarked networks.

    python -m bench.bench_ops     appends to bench/results/ops-MACHINE.jsonl

A line a case, engine and state of the cache: median and spread in seconds, and how near it comes to the roofline, the larger
of the bytes it must move over the copy's rate and its FLOPs over the matrix product's, both measured in the same run. On a
GPU the times are the device's alone; what launching costs is seen in bench_loop. Before anything is timed its result is
compared with float64.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.checks import EveryShape, declines, engines, moved, tiles_listed
from bench.run import Run, begin, parser
from purify_engine import ops
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.harness import Timing, clocks, interleaved
from purify_engine.benchmark.machine import ceilings
from purify_engine.ops.registry import OPS
from purify_engine.testing.agreement import as_tuple
from purify_engine.testing.cases import Case
from purify_engine.testing.costs import bytes_moved, flops

CIFAR_BATCHES, IMAGENET_BATCHES = (1, 64, 256), (1, 8)
SECONDS = 0.5  # a case and state of the cache, for all engines together

CPU_CASES = (
    Case("philox", (16, 3 * 32 * 32)),
    Case("philox_normal", (16, 3 * 32 * 32), keywords={"dtype": torch.float32}),
    Case("q_sample", (16, 3, 32, 32)),
    Case("guided_step", (16, 3, 32, 32), variant="guided"),
    Case("group_norm_silu", (16, 128, 32, 32), num_groups=32),
    Case("group_norm_silu_backward", (16, 128, 32, 32), num_groups=32),
    Case("attention", (16, 1, 256, 256)),
    Case("attention_backward", (4, 1, 256, 256)),
    Case("conv3x3", (1, 128, 32, 32), variant="norm-bias-residual", num_groups=32),
    Case("conv3x3", (8, 256, 8, 8), variant="norm-bias-residual", num_groups=32),
    Case("conv3x3_backward", (8, 320, 16, 16)),
    Case("relu_conv3x3", (8, 320, 16, 16), variant="line-bias-residual"),
    Case("relu_conv3x3_backward", (8, 320, 16, 16), variant="line"),
    Case("to_images", (16, 3, 32, 32)),
)


def main(words: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--op", help="only this op")
    run, chosen = begin("ops", options, words)
    torch.backends.cudnn.benchmark = True
    rates = ceilings(run.device, toy=run.toy)
    run.figure("  ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()), kind="ceilings", **rates)
    for case in cases(run):
        if chosen.op not in (None, case.op):
            continue
        if run.seconds_left < 0:
            run.note(f"{case.op} {case}", "not measured: no time left")
            continue
        measure(run, case, rates)
    return run.close()


def cases(run: Run) -> list[Case]:
    """What to time: on a GPU in the networks' own precision and layout; in a dry run the smallest of each op."""
    if run.device.type != "cuda":
        return [_toy(case) for case in CPU_CASES] if run.toy else list(CPU_CASES)
    return [*_cifar(), *_imagenet()]


def _toy(case: Case) -> Case:
    shape = (2, *case.shape[1:]) if len(case.shape) == 2 else (1, *(min(size, 32) for size in case.shape[1:2]), 8, 8)
    return Case(case.op, shape, case.dtype, case.layout, case.variant, case.num_groups, case.keywords)


def _cifar() -> Iterator[Case]:
    """The DDPM of CIFAR-10 at 32 pixels."""
    network: dict[str, Any] = {"dtype": torch.bfloat16, "layout": "channels_last", "num_groups": 32}
    half = {"net_dtype": torch.bfloat16}
    for batch in CIFAR_BATCHES:
        yield Case("philox", (batch, 3 * 32 * 32))
        yield Case("philox_normal", (batch, 3 * 32 * 32), keywords={"dtype": torch.float32})
        yield Case("q_sample", (batch, 3, 32, 32), variant="net_bfloat16", keywords=half)
        yield Case("guided_step", (batch, 3, 32, 32), variant="guided-bfloat16-eps", keywords=half)
        yield Case("to_images", (batch, 3, 32, 32))
        for channels, size in ((128, 32), (256, 16)):
            yield Case("group_norm_silu", (batch, channels, size, size), **network)
            yield Case("group_norm_silu_backward", (batch, channels, size, size), **network)
        for channels, size in ((128, 32), (256, 16), (256, 8), (256, 4)):
            yield Case("conv3x3", (batch, channels, size, size), variant="norm-bias-residual", **network)
        yield Case("attention", (batch, 1, 256, 256), torch.bfloat16)
        yield Case("attention_backward", (batch, 1, 256, 256), torch.bfloat16)


def _imagenet() -> Iterator[Case]:
    """The ADM of ImageNet at 256 pixels."""
    network: dict[str, Any] = {"dtype": torch.bfloat16, "layout": "channels_last", "num_groups": 32}
    for batch in IMAGENET_BATCHES:
        yield Case("guided_step", (batch, 3, 256, 256), variant="guided-bfloat16-eps", keywords={"net_dtype": torch.bfloat16})
        for channels, size in ((256, 256), (512, 64)):
            yield Case("group_norm_silu", (batch, channels, size, size), variant="scale-shift", **network)
        for channels, size in ((256, 256), (512, 64), (1024, 16)):
            yield Case("conv3x3", (batch, channels, size, size), variant="norm-scale-bias-residual", **network)
        yield Case("attention", (batch, 8, 1024, 64), torch.bfloat16)


def measure(run: Run, case: Case, rates: dict[str, float]) -> None:
    """Compare every engine with float64, then time all that agree in turn, with the cache cold and warm."""
    op, name = OPS[case.op], f"{case.op} {case}"
    arguments = tuple(moved(value, run.device) for value in case.arguments())
    calls = {"reference": partial(_call, op.name, "reference", arguments, case.keywords)}
    for engine in engines(run.device):
        if callable(op.engines[engine]) and not (run.toy and engine == "triton"):  # the interpreter's times mean nothing
            calls[engine] = partial(_call, op.name, engine, arguments, case.keywords)
    with torch.no_grad():
        errors = {engine: _error(run, name, engine, calls, arguments, case) for engine in calls}
        calls = {engine: call for engine, call in calls.items() if errors[engine] is not None}
        moves, work = bytes_moved(case), flops(case)
        least = max(moves / rates["copy"], work / rates.get(f"matmul {_name(case.dtype)}", rates["matmul float32"]))
        for cache, clock in clocks(run.device, queued=True).items():
            timings = interleaved(calls, clock, seconds=0 if run.toy else SECONDS, least=2 if run.toy else 10)
            for engine, timing in timings.items():
                facts = {"op": case.op, "case": name, "engine": engine, "cache": cache, "threads": torch.get_num_threads()}
                facts |= {"bytes": moves, "flops": work, "roofline": least / timing.median, "error": errors[engine]}
                run.figure(_text(name, engine, cache, timing, least), kind="op", **facts, **timing.record())


def _call(op: str, engine: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    with ops.backend(engine), tiles_listed(EveryShape()):
        return getattr(torch.ops.purify, op)(*arguments, **keywords)


def _error(run: Run, name: str, engine: str, calls: dict[str, Any], arguments: tuple[Any, ...], case: Case) -> float | None:
    """How far an engine is from float64, relatively; None where it leaves the case to another, or is plainly wrong."""
    try:
        got = as_tuple(calls[engine]())[0]
    except Exception as fault:
        if declines(fault):
            run.note(f"{name} {engine}", "left to another engine")
        else:
            run.check(f"{name} {engine}", False, f"{type(fault).__name__}: {str(fault).splitlines()[0][:200]}")
        return None
    honest = as_tuple(calls["reference"]())[0]
    if not got.is_floating_point():
        return 0.0 if _agrees(run, f"{name} {engine}", float((got != honest).sum()), 0.0) else None
    wide = tuple(value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in arguments)
    truth = as_tuple(OPS[case.op].engines["reference"](*wide, **_widened(case)))[0].double()  # type: ignore[operator]
    error, allowed = (float((result.double() - truth).norm() / truth.norm()) for result in (got, honest))
    rounding = torch.finfo(got.dtype).eps
    return error if _agrees(run, f"{name} {engine}", error, 2 * allowed + rounding) else None


def _agrees(run: Run, name: str, error: float, allowed: float) -> bool:
    if not error <= allowed:  # NaN is no agreement
        run.check(name, False, f"relative error {error:.3g} to float64, allowed {allowed:.3g}: not timed")
    return error <= allowed


def _widened(case: Case) -> dict[str, Any]:
    return {name: torch.float64 if name == "dtype" else value for name, value in case.keywords.items()}


def _text(name: str, engine: str, cache: str, timing: Timing, least: float) -> str:
    times = f"{duration(timing.median):>9} ± {duration(timing.spread)}"
    return f"{name:<64} {engine:<10} {cache} {times}, {least / timing.median:.0%} of the roofline"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
