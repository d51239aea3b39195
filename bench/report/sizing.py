"""How many images an hour a purifier takes on a device, and what a million cost there: the sizing guide of docs/offline.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.report.cpu import HELD
from bench.report.lines import Machine, Record, machines
from purify_engine.markdown import table

NOT_YET = "Not measured yet: `make gpu` and `python -m bench cpu` write it."
STEPS = 10  # of a purification
GPU_HOUR, THREAD_HOUR = 4.0, 0.05  # US dollars for a GPU and for a thread of a CPU: assumptions, and the only place of them
HEADER = ("networks", "device", "batch", "images an hour", "hours a million", "US dollars a million")


def sizing(results: Path) -> str:
    """A row for each pair of networks and each device, by the largest batch that was measured; then the assumptions."""
    rows = [row for machine in machines(results) if not machine.name.endswith(HELD) for row in _rows(machine)]
    if not rows:
        return NOT_YET
    prices = f"{GPU_HOUR:.2f} US dollars an hour for a GPU and {THREAD_HOUR:.2f} for a thread of a CPU"
    said = f"At {STEPS} guided steps an image; other numbers of steps scale. Costs assume {prices}: multiply by your own."
    return table(HEADER, rows, left=(0, 1)) + f"\n\n{said}"


def _rows(machine: Machine) -> list[tuple[str, ...]]:
    """Of whole guided steps by this engine, the fastest way at the largest batch."""
    lines = [*machine.of(kind="loop"), *machine.of(kind="cpu", part="step")]
    ours = [line for line in lines if line["variant"].startswith("engine")]
    found: dict[str, Record] = {}
    for line in ours:
        networks = _networks(line)
        best = found.get(networks)
        if best is None or (line["batch"], line["run"], _rate(line)) > (best["batch"], best["run"], _rate(best)):
            found[networks] = line
    return [_row(machine, networks, line) for networks, line in found.items()]


def _row(machine: Machine, networks: str, line: Record) -> tuple[str, ...]:
    rate = 3600 * _rate(line)
    hours = 1e6 / rate
    price = GPU_HOUR if machine.on_gpu else THREAD_HOUR * line.get("threads", 1)
    return networks, machine.name, str(line["batch"]), f"{rate:,.0f}", f"{hours:,.3g}", f"{hours * price:,.2f}"


def _rate(line: Record) -> float:
    """Images a second at `STEPS` steps."""
    return float(line["batch"] * line["steps"] / line["median"] / STEPS)


def _networks(line: Record) -> str:
    return line["name"] if line["kind"] == "cpu" else f"{line['network']} + {line['guide']}"


FIGURES: dict[str, Callable[[Path], str]] = {"sizing": sizing}
