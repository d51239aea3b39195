"""Guided steps under torch.compile, each mode and batch in a process of its own, beside the engine in that process.

    python -m bench compiled [--batch 64 1 256] [--mode max-autotune reduce-overhead]

All compile at once, for most of that is work of one processor; then each in its turn has the machine for itself and is timed
as by `python -m bench loop`. What is not compiled in time has a line that says so. Inductor keeps what it compiled in
build/inductor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from bench.core.compiler_modes import MODES, NAME
from bench.core.run import ROOT, Run, begin, parser

BATCHES = (64, 1, 256)  # the most telling first
GRACE = 10.0  # seconds to write the last lines in, before a process is ended
CACHE = ROOT / "build" / "inductor"


def main(words: list[str]) -> int:
    options = parser("compiled", __doc__)
    options.add_argument("--batch", nargs="+", type=int, default=list(BATCHES))
    options.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    run, chosen = begin("loop", options, words)
    batches = [1] if run.toy else chosen.batch
    wanted = [(batch, mode) for batch in batches for mode in chosen.mode]
    with tempfile.TemporaryDirectory(prefix="purify-turns-") as turns:
        places = {case: ["--turns", turns, "--place", str(place)] for place, case in enumerate(wanted)}
        started = {case: start(run, *case, place, len(wanted)) for case, place in places.items()}
        statuses = [awaited(run, case, process) for case, process in started.items()]
    return max([run.close(), *statuses])


def start(run: Run, batch: int, mode: str, turns: list[str], processes: int) -> subprocess.Popen[bytes]:
    """A process that compiles one mode for one batch, then times it in its turn."""
    what = ["--network", "ddpm-cifar10", "--guide", "resnet18", "--batch", str(batch), "--steps", "2" if run.toy else "10"]
    variants = ["--variant", f"{NAME} {mode}", "engine graph"]
    where = ["--device", str(run.device), "--results", str(run.records.path.parent), *turns]
    limits = ["--seconds", str(run.seconds_left), *(["--toy"] if run.toy else [])]
    workers = max(2, 2 * (os.cpu_count() or 2) // processes)
    own = {"TORCHINDUCTOR_CACHE_DIR": str(CACHE), "TORCHINDUCTOR_COMPILE_THREADS": str(workers), "PYTHONUNBUFFERED": "1"}
    words: Sequence[str] = [sys.executable, "-m", "bench", "loop", *what, *variants, *where, *limits]
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, **own})


def awaited(run: Run, case: tuple[int, str], process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that is ended where the time is over, and a line that says so."""
    batch, mode = case
    try:
        return process.wait(timeout=max(run.seconds_left + GRACE, 0.1))
    except subprocess.TimeoutExpired:
        run.note(f"{NAME} {mode}, batch {batch}", "not measured: it was ended when the time of all was over")
        return 0
    finally:
        process.kill()
        process.wait()
