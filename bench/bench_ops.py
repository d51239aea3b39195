"""Times every op on every engine that this CPU has, on the shapes of a CIFAR-10 U-Net: `python -m bench.bench_ops`.

Writes bench/results/ops-MACHINE.jsonl, one line a case and engine: median and spread (interquartile range) in seconds.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from purify_engine import ops
from purify_engine.ops.registry import OPS
from purify_engine.testing.cases import Case

RESULTS = Path(__file__).parent / "results"
WARM_UP, REPEATS = 5, 50

CASES = (
    Case("philox", (16, 3 * 32 * 32)),
    Case("philox_normal", (16, 3 * 32 * 32), keywords={"dtype": torch.float32}),
    Case("q_sample", (16, 3, 32, 32)),
    Case("guided_step", (16, 3, 32, 32), variant="guided"),
    Case("group_norm_silu", (16, 128, 32, 32), num_groups=32),
    Case("group_norm_silu_backward", (16, 128, 32, 32), num_groups=32),
    Case("attention", (16, 1, 256, 256)),
)


def main() -> None:
    machine = machine_name()
    lines = []
    for case in CASES:
        for engine in ("reference", "cpp"):
            if callable(OPS[case.op].engines[engine]):
                median, spread = timed(case, engine)
                shape = "x".join(map(str, case.shape))
                record = {
                    "machine": machine,
                    "case": f"{case.op} {shape}",
                    "engine": engine,
                    "median": median,
                    "spread": spread,
                }
                lines.append(json.dumps({**record, "threads": torch.get_num_threads(), "torch": torch.__version__}))
                print(f"{record['case']:<40} {engine:<10} {1e6 * median:10.1f} µs ± {1e6 * spread:.1f}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", machine).strip("-").lower()
    (RESULTS / f"ops-{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def timed(case: Case, engine: str) -> tuple[float, float]:
    """(median, interquartile range) of a call's seconds."""
    op, arguments = OPS[case.op], case.arguments()
    with ops.backend(engine), torch.no_grad():
        seconds = [clocked(op, arguments, case.keywords) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    low, median, high = statistics.quantiles(seconds, n=4)
    return median, high - low


def clocked(op: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> float:
    started = time.perf_counter()
    op(*arguments, **keywords)
    return time.perf_counter() - started


def machine_name() -> str:
    """The processor as its maker calls it, and how many of its threads there are."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
