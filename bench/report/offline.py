"""The table of `python -m bench offline`: what a run costs beside its purifier, and what threads do beside other work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.report.lines import Machine, Record, by_machine
from purify_engine.markdown import table

NOT_YET = "Not measured yet: `python -m bench offline` writes it."


def offline(results: Path) -> str:
    """Every figure of each machine's latest run."""
    return by_machine(_measured, results, on_gpu=False, otherwise=NOT_YET, kind="offline")


def _measured(machine: Machine) -> str:
    latest = machine.latest("part", "pixels", "threads", "waiting", "beside", kind="offline")
    rows = [row for record in latest if (row := _row(record))]
    return table(("what", "measured"), rows, left=(0, 1)) if rows else ""


def _row(record: Record) -> tuple[str, str] | None:
    if record["part"] == "files":
        what = f"{record['pixels']}×{record['pixels']} PNG files in and out, the purifier left out"
        return what, f"{record['rate']:,.0f} images/s, {record['processor_ms']:.2f} ms of processors an image"
    if record["part"] == "digits":
        what = f"the embedded digits, {record['threads']} threads"
        return what, f"{record['rate']:,.0f} images/s, {100 * record['over']:+.1f} % to a bare loop over the same batches"
    if record["part"] == "memory":
        grown = f"{record['grown'] / 2**20:+.1f} MiB from a fifth of them to the end"
        return f"memory over {record['images']:,} images", f"{record['held'][-1] / 2**20:,.0f} MiB, {grown}"
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads, waiting {WAITING[record['waiting']]}"
    return f"the embedded digits beside {record['beside']}, {threads}", f"{record['rate']:,.0f} images/s"


WAITING = {"default": "as OpenMP does by itself", "passive": "asleep, as the command's do"}
FIGURES: dict[str, Callable[[Path], str]] = {"offline": offline}
