"""Tables of what only GPUs have: compilers, whole purifications, cold starts, fp8, switches, groups of kernels, earlier days.

As everywhere a ratio is of medians, within one run, and from the latest run that has both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.report.gpu import COMPILERS, DIFFPURE, ENGINE, OURS, step_lines
from bench.report.lines import Interval, Machine, Record
from bench.report.sentences import span_of
from bench.report.tables import on_device
from purify_engine.markdown import table

WORTH = 1.25  # times as fast as bf16, from which fp8 would be built
STAGES = ("import", "load", "first batch", "second batch")
BF16 = "bf16 cuDNN"


def compilers(machine: Machine) -> str:
    """torch.compile in each mode beside the engine, in one process a row."""
    rows = []
    for record in machine.latest("case", "variant", kind="loop"):
        if record["variant"] in COMPILERS:
            about = {key: record[key] for key in ("network", "guide", "batch", "steps")}
            pair = machine.together((ENGINE, record["variant"]), **about)
            ours = "–" if pair is None else milliseconds(pair[0], pair[0]["steps"])
            options = ", ".join(f"{name}={value}" for name, value in record["options"].items())
            figures = milliseconds(record, record["steps"]), ours, ratio(pair)
            rows.append((record["case"], record["variant"], *figures, options))
    header = ("case", "variant", "ms a step", "engine, same run", "engine to it", "its options")
    return table(header, rows, left=(0, 1, 5)) if rows else ""


def whole(machine: Machine) -> str:
    """Whole purifications beside DiffPure's own loop."""
    rows = []
    for record in machine.latest("variant", "batch", kind="whole"):
        pair = machine.together((record["variant"], DIFFPURE), kind="whole", network=record["network"])
        rows.append((record["variant"], str(record["batch"]), milliseconds(record, 1), ratio(pair)))
    return table(("purified by", "batch", "ms a batch", "to DiffPure's loop"), rows, left=(0,)) if rows else ""


def cold(machine: Machine) -> str:
    """From a cold process to its second batch."""
    rows = []
    for record in machine.latest("batch", "compiled", kind="cold start"):
        seconds = (f"{record[stage]:.2f}" for stage in STAGES)
        rows.append((str(record["batch"]), str(record["compiled"]), *seconds, f"{record['wait']:.2f}"))
    header = ("batch", "kernels compiled in it", *(f"{stage}, s" for stage in STAGES), "to the first batch, s")
    return table(header, rows) if rows else ""


def fp8(machine: Machine) -> str:
    """fp8's convolutions and matrix products beside bf16's convolutions, and what that decides."""
    lines = machine.latest("case", "variant", kind="fp8")
    rows, best = [], []
    for record in lines:
        pair = machine.together((record["variant"], BF16), kind="fp8", case=record["case"])
        rate = record["flops"] / record["median"] / 1e12
        rows.append((record["case"], record["variant"], f"{1e6 * record['median']:.1f}", f"{rate:.4g}", ratio(pair)))
        if pair and record["variant"].startswith("fp8 cuDNN"):
            best.append(Interval.of(pair[1]).over(Interval.of(pair[0])).value)
    if not rows:
        return ""
    return f"{_worth(best)}\n\n{table(('3x3 convolution', 'variant', 'µs', 'TFLOP/s', f'to {BF16}'), rows, left=(0, 1))}"


def _worth(best: list[float]) -> str:
    """Whether fp8 is worth building, by the ratios of all shapes."""
    if not best:
        return "cuDNN's fp8 convolutions are not measured, so fp8 is not built."
    verdict = "worth building" if max(best) >= WORTH else "not built"
    return f"fp8 would be built from {WORTH}× on; cuDNN's reach {min(best):.2f}× to {max(best):.2f}×: {verdict}."


def switches(machine: Machine) -> str:
    """What each way brings: milliseconds a step that it saves, and what the quartiles leave open."""
    gains: dict[str, dict[str, str]] = {}
    beside: dict[tuple[str, str], Record] = {}  # the last line with all ways on: those that follow are of its turns
    for record in machine.of(kind="switch"):
        place = record["run"], record["case"]
        name, _, state = record["variant"].rpartition(" ")
        if record["variant"] == OURS:
            beside[place] = record
        elif record["measure"] == "single" and place in beside:
            gains.setdefault(name, {})[record["case"]] = _saved(record, beside[place], off=state == "off")
    cases = list(dict.fromkeys(case for by_case in gains.values() for case in by_case))
    rows = [(name, *(by_case.get(case, "–") for case in cases)) for name, by_case in gains.items()]
    return table(("saves, ms a step", *cases), rows, left=(0,)) if rows else ""


def _saved(other: Record, ours: Record, *, off: bool) -> str:
    """How much longer a step takes without a way; of one that is off by default, without it minus with it."""
    longer, shorter = (other, ours) if off else (ours, other)
    scale = 1e3 / ours["steps"]
    low, value, high = (scale * (longer[a] - shorter[b]) for a, b in (("q25", "q75"), ("median", "median"), ("q75", "q25")))
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def ways(machine: Machine) -> str:
    """All ways on beside all off: steps, the gradient, the loop without graphs."""
    rows = []
    for record in machine.latest("case", "measure", "variant", kind="switch"):
        about = {"kind": "switch", "case": record["case"], "measure": record["measure"]}
        if record["measure"] != "single":
            off = record["variant"].replace(OURS, "all off")
            off = off if "all off" in off else record["variant"].split(",")[0] + ", all off"
            rows.append((record["case"], record["variant"], milliseconds(record, record["steps"]),
                         ratio(machine.together((record["variant"], off), **about))))  # fmt: skip
    return table(("case", "variant", "ms a step", "to all off"), rows, left=(0, 1)) if rows else ""


def images(machine: Machine) -> str:
    """What the ways do to final images, and to verdicts on them."""
    rows = []
    for record in machine.latest("case", "variant", kind="images"):
        agreeing = f"{record['agreeing']} of {record['batch']}"
        rows.append((record["case"], record["variant"], f"{record['psnr']:.1f}", agreeing))
    return table(("case", "variant", "dB to float32", "verdicts the same"), rows, left=(0, 1)) if rows else ""


def kernels(machine: Machine) -> str:
    """Where a step goes: launches and milliseconds by groups of kernels, of each batch."""
    every = machine.latest("network", "guide", "batch", "group", kind="profile")
    last = {(line["network"], line["guide"], line["batch"]): line["run"] for line in sorted(every, key=lambda line: line["run"])}
    lines = [line for line in every if line["run"] == last[line["network"], line["guide"], line["batch"]]]  # of one run a case
    cases = list(dict.fromkeys((line["network"], line["guide"], line["batch"]) for line in lines))
    cells = {(line["group"], (line["network"], line["guide"], line["batch"])): line for line in lines}
    rows = []
    for group in sorted(dict.fromkeys(line["group"] for line in lines), key=lambda group: group == "all"):  # which comes last
        found = (cells.get((group, case)) for case in cases)
        rows.append((group, *("–" if line is None else f"{line['launches']:.0f}: {1e3 * line['seconds']:.3g}" for line in found)))
    header = ("launches: ms a step", *(f"{network} + {guide}, batch {batch}" for network, guide, batch in cases))
    return table(header, rows, left=(0,)) if rows else ""


def history(machine: Machine) -> str:
    """The engine's step of every day and commit that was measured."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for line in sorted((line for batch in (1, 64, 256) for line in step_lines(machine, batch)), key=lambda line: line["run"]):
        when = line["run"][:10], machine.commit(line["run"]) or "–"
        found.setdefault(when, {})[line["batch"]] = milliseconds(line, line["steps"])
    rows = [(*when, *(by_batch.get(batch, "–") for batch in (1, 64, 256))) for when, by_batch in found.items()]
    return table(("day", "commit", "ms a step, batch 1", "batch 64", "batch 256"), rows, left=(0, 1)) if rows else ""


def milliseconds(record: Record, parts: int) -> str:
    """Median and spread of one of so many equal parts."""
    median, spread = (1e3 * record[key] / parts for key in ("median", "spread"))
    return f"{median:.3g} ± {spread:.2g}"


def ratio(pair: list[Record] | None) -> str:
    """How many times as fast the first is, with what the quartiles leave open."""
    if pair is None:
        return "–"
    value = Interval.of(pair[1]).over(Interval.of(pair[0]))
    return f"{value.value:.2f}× ({span_of(value)})"


_TABLES: dict[str, Callable[[Machine], Any]] = {
    "compilers": compilers,
    "whole": whole,
    "cold": cold,
    "fp8": fp8,
    "switches": switches,
    "ways": ways,
    "images": images,
    "kernels": kernels,
}
FIGURES: dict[str, Callable[[Path], str]] = {
    **{f"gpu-{name}": partial(on_device, rows_of, on_gpu=True) for name, rows_of in _TABLES.items()},
    "gpu-history": partial(on_device, history, on_gpu=True, by_commit=False),
}
