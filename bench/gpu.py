"""Everything to ask of a machine with a GPU, in one command that can be stopped at any moment and has lost nothing.

    make gpu [PART=probe|build|ops|graph|gradient|bench|peers]     or     PYTHONPATH=build/carry python3 -m bench gpu [PART]

probe      the machine's ceilings, cuDNN's convolutions, launch gaps, kernel counts, torch.compile alone
build      the extensions, for this Python
ops        every kernel of every op against float64, outputs poisoned; the CUDA C++ ones against their emulation bit for bit
graph      a captured graph against the loop, bit for bit
gradient   the exact gradient against the CPU's
bench      every op, then guided steps and whole purifications beside their opponents
peers      the same beside torch.compile and diffusers; compiling takes minutes

Each part is a few commands, each in a process of its own with its own time limit, eight minutes a part at most. Without a GPU all
of it is a dry run at toy size, whose lines go to a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.core.run import RESULTS, ROOT
from bench.report.gpu import gpu_targets

GRACE = 20.0  # seconds that a command is given to notice, by itself, that its time is over
TIMED_OUT = 124


@dataclass(frozen=True)
class Command:
    """A module with its words, and its limit in seconds; or a `tool`, which writes no lines and needs a GPU."""

    words: tuple[str, ...]
    seconds: float
    tool: bool = False


PARTS: dict[str, tuple[Command, ...]] = {
    "probe": (Command(("bench", "probe",), 460),),
    "build": (Command(("setup", "build_ext", "--inplace"), 400, tool=True),),
    "ops": (
        Command(("bench", "check-ops"), 320),
        Command(("pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_cuda_on_gpu.py"), 120, tool=True),
    ),
    "graph": (Command(("bench", "check-graph"), 300),),
    "gradient": (Command(("bench", "check-gradient"), 200),),
    "bench": (
        Command(("bench", "ops"), 110),
        Command(("bench", "loop", "--network", "ddpm-cifar10", "ddpmpp-cifar10"), 170),
        Command(("bench", "loop", "--network", "adm-imagenet256"), 130),
    ),
    "peers": (
        Command(("bench", "loop", "--network", "ddpm-cifar10", "--guide", "resnet18", "--batch", "1", "64", "--peers"), 460),
    ),
}


def main(words: list[str]) -> int:
    plain = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser("python -m bench gpu", description=__doc__, formatter_class=plain)
    options.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON lines")
    chosen = options.parse_args(words)
    parts = chosen.part or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        options.error(f"PART must be one of {', '.join(PARTS)}, got {' '.join(unknown)!r}")
    has_gpu = torch.cuda.is_available()
    results = chosen.results if has_gpu else Path(tempfile.mkdtemp(prefix="purify-dry-run-"))
    if not has_gpu:
        print(f"PyTorch {torch.__version__} finds no GPU here: a dry run at toy size; its lines go to {results}", flush=True)
    verdicts = []
    for part in parts:
        verdicts += [(part, command, *carried_out(command, results, dry=not has_gpu)) for command in PARTS[part]]
    print("\npart      seconds  verdict")
    for part, command, status, seconds in verdicts:
        says = {0: "ok", TIMED_OUT: "OUT OF TIME"}.get(status, f"FAILED (exit status {status})")
        print(f"{part:<9} {seconds:7.1f}  {says}  {' '.join(command.words)}")
    if has_gpu:
        print(f"\n{gpu_targets(results)}\n\nThe lines are in {results}; `make figures` makes tables of them.")
    else:
        print("No GPU was found and no GPU figure was made.")
    return max((status != 0 for _, _, status, _ in verdicts), default=False)


def carried_out(command: Command, results: Path, *, dry: bool) -> tuple[int, float]:
    """(exit status, seconds) of a command, its output passed on as it comes."""
    print(f"\n== {' '.join(command.words)}", flush=True)
    if dry and command.tool:
        print("left out: it needs a GPU")
        return 0, 0.0
    words = [*command.words, *(("--toy", "--device", "cpu") if dry else ())]
    limits = [] if command.tool else ["--results", str(results), "--seconds", str(command.seconds)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **({"TRITON_INTERPRET": "1"} if dry else {})}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words, *limits], cwd=ROOT, env=environment)
    try:
        status = process.wait(timeout=command.seconds + GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = TIMED_OUT
        print(f"out of time after {command.seconds + GRACE:.0f} s; what it had measured is kept", flush=True)
    except BaseException:  # a signal for us is one for the command, too
        process.kill()
        raise
    return status, time.monotonic() - started
