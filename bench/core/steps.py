"""Steps of a long command: each is a module in a process of its own, within its own time; those of a stage run side by side.

What a step prints is passed on, and what it measures it writes itself, line by line: one that is stopped has lost nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.run import ROOT

GRACE = 15.0  # seconds that a step is given to notice, by itself, that its time is over
TIMED_OUT = 124
PATIENCE = 4  # times the seconds in a dry run: on a machine whose speed is not the point
CACHE = ROOT / "build" / "triton"  # of compiled kernels, unless TRITON_CACHE_DIR says where
DRY = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # toys gain nothing by threads


@dataclass(frozen=True)
class Step:
    """`python -m WORDS`, and its limit in seconds; in `shards` processes that share its work, each given --shard K/N.

    A `tool` takes none of our options, writes no lines and needs a GPU. `rest` follows all options, behind a `--`.
    """

    name: str
    words: tuple[str, ...]
    seconds: float
    shards: int = 1
    tool: bool = False
    rest: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a step ended: the first exit status that is not 0, and the seconds it took."""

    step: Step
    status: int
    seconds: float

    @property
    def verdict(self) -> str:
        return {0: "ok", TIMED_OUT: "OUT OF TIME"}.get(self.status, f"FAILED (exit status {self.status})")


def carried_out(stage: Sequence[Step], results: Path, *, dry: bool) -> list[Outcome]:
    """Run the steps of a stage side by side. `dry`: at toy size on the CPU, tools left out."""
    started = time.monotonic()
    outcomes, running = [], list[tuple[Step, list[subprocess.Popen[bytes]]]]()
    chosen = [step for step in stage if not (dry and step.tool)]
    for step in stage:
        print(f"\n== {step.name}: {' '.join(step.words)}" + ("" if step in chosen else "\nleft out: it needs a GPU"), flush=True)
        if step not in chosen:
            outcomes.append(Outcome(step, 0, 0.0))
    processes = sum(_shards(step, dry=dry) for step in chosen)
    try:
        running += [(step, _begun(step, results, processes, dry=dry)) for step in chosen]
        waiting = dict(running)
        while waiting:
            for step, begun in list(waiting.items()):
                seconds = time.monotonic() - started
                late = seconds > limit(step, dry=dry) + GRACE
                if late or all(process.poll() is not None for process in begun):
                    outcomes.append(Outcome(step, _ended(step, begun), seconds))
                    del waiting[step]
            time.sleep(0.05)
    except BaseException:  # a signal for us is one for the steps, too
        for _, begun in running:
            for process in begun:
                process.kill()
        raise
    return sorted(outcomes, key=lambda outcome: stage.index(outcome.step))


def limit(step: Step, *, dry: bool) -> float:
    """The seconds that a step is told to take at most."""
    return PATIENCE * step.seconds if dry else step.seconds


def _shards(step: Step, *, dry: bool) -> int:
    return 1 if dry else step.shards


def _begun(step: Step, results: Path, processes: int, *, dry: bool) -> list[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", *step.words, *(("--toy", "--device", "cpu") if dry else ())]
    if not step.tool:
        words += ["--results", str(results), "--seconds", str(limit(step, dry=dry))]
    environment = {"TRITON_CACHE_DIR": str(CACHE), **os.environ, **(DRY if dry else {})}
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    shards = _shards(step, dry=dry)
    of = [["--shard", f"{shard}/{shards}"] if step.shards > 1 else [] for shard in range(shards)]
    rest = ["--", *step.rest] if step.rest else []
    return [subprocess.Popen([*words, *shard, *rest], cwd=ROOT, env=environment) for shard in of]


def _ended(step: Step, begun: list[subprocess.Popen[bytes]]) -> int:
    """The status of a step that is over, or whose time is."""
    late = [process for process in begun if process.poll() is None]
    for process in late:
        process.kill()
        process.wait()
    if late:
        print(f"{step.name}: out of time; what it had measured is kept", flush=True)
        return TIMED_OUT
    return next((process.returncode for process in begun if process.returncode), 0)
