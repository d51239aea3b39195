"""Tables of the lines of `python -m bench loop`, `ops`, `probe` and the checks, for GPUs and for CPUs.

As everywhere a ratio is of medians, within one run, and from the latest run that has both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.report.lines import Machine, by_machine
from purify_engine.markdown import table

NO_GPU = "Not measured yet: `make gpu` on a machine with a GPU writes it."
NO_CPU = "Not measured yet: `make bench` writes it."


def on_device(rows_of: Callable[[Machine], str], results: Path, *, on_gpu: bool, by_commit: bool | None = None) -> str:
    """The table of every machine with a GPU, by default one of every commit; or of every CPU."""
    split = on_gpu if by_commit is None else by_commit
    return by_machine(rows_of, results, on_gpu=on_gpu, otherwise=NO_GPU if on_gpu else NO_CPU, by_commit=split)


def steps(machine: Machine) -> str:
    """Guided steps and purifications beside their opponents."""
    rows = []
    for record in machine.latest("case", "variant", kind="loop"):
        about = {key: record[key] for key in ("network", "guide", "batch", "steps")}
        ratio = machine.times_as_fast(record["variant"], "eager fp32", **about)
        beside = "–" if ratio is None else f"{ratio.value:.2f}×"
        seconds, spread = (1e3 * record[key] / record["steps"] for key in ("median", "spread"))
        rate = record["flops"] / record["median"] / 1e12
        figures = f"{seconds:.3g} ± {spread:.2g}", f"{rate:.3g}", beside, f"{record['error']:.1e}"
        rows.append((record["case"], record["variant"], *figures))
    return table(("case", "variant", "ms a step", "TFLOP/s", "to eager fp32", "error"), rows, left=(0, 1)) if rows else ""


def ops(machine: Machine) -> str:
    """Every op on every engine."""
    rows = []
    for record in machine.latest("case", "engine", "cache", kind="op"):
        times = (f"{1e6 * record[key]:,.1f} µs" for key in ("median", "spread"))
        rows.append((record["case"], record["engine"], record["cache"], *times, f"{100 * record['roofline']:.0f} %"))
    return table(("case", "engine", "cache", "median", "spread", "of the roofline"), rows, left=(0, 1, 2)) if rows else ""


def probe(machine: Machine) -> str:
    """The ceilings, cuDNN's convolutions, launch gaps and kernel counts."""
    rows: list[tuple[str, str]] = []
    for record in machine.latest("kind", kind="ceilings"):
        rows += [(name, f"{value / 1e12:.3g} T/s") for name, value in record.items() if name.startswith(("copy", "matmul"))]
    for record in machine.latest("how", kind="gap"):
        rows.append((f"from kernel to kernel, {record['how']}", f"{1e6 * record['seconds_per_kernel']:.2f} µs"))
    for record in machine.latest("network", "batch", "how", kind="convs"):
        name = f"3x3 convolutions of {record['network']}, batch {record['batch']}, {record['how']}"
        rows.append((name, f"{1e3 * record['seconds']:.3g} ms, {record['flops'] / record['seconds'] / 1e12:.3g} TFLOP/s"))
    for record in machine.latest("network", "variant", kind="kernels"):
        rows.append((f"kernels a step, {record['network']}, {record['variant']}", str(record["count"])))
    for record in machine.latest("network", "batch", "variant", kind="unet"):
        name = f"U-Net of {record['network']}, batch {record['batch']}, {record['variant']}"
        rows.append((name, f"{1e3 * record['median']:.3g} ms"))
    return table(("measure", "value"), rows, left=(0,)) if rows else ""


def checks(machine: Machine) -> str:
    """How many checks hold, and every one that does not."""
    lines = machine.latest("check", kind="check")
    wrong = [f"- {record['check']}: {record['says']}" for record in lines if not record["ok"]]
    return "\n".join([f"{len(lines) - len(wrong)} of {len(lines)} checks hold.", *wrong]) if lines else ""


FIGURES: dict[str, Callable[[Path], str]] = {
    "ops": partial(on_device, ops, on_gpu=False),
    "cpu-steps": partial(on_device, steps, on_gpu=False),
    "gpu-steps": partial(on_device, steps, on_gpu=True),
    "gpu-ops": partial(on_device, ops, on_gpu=True),
    "gpu-probe": partial(on_device, probe, on_gpu=True),
    "gpu-checks": partial(on_device, checks, on_gpu=True, by_commit=False),  # a check is as it was found last
}
