"""Everything to ask of a machine with a GPU, in parts that can be stopped at any moment and have lost nothing.

    make gpu [PART=1|2|3|NAME...] [RESUME=1] [RESULTS=folder]     or     PYTHONPATH=build/carry python3 -m bench gpu [PART]

Part 1, right and faster, six minutes at most on 16 cores and one GPU:
build      the extensions, for this Python
precompile every Triton kernel that the rest of the part launches, on all cores
ops        every kernel of every op against float64, outputs poisoned
cuda       the CUDA C++ kernels against their emulation, bit for bit
graph      captured graphs against the loop, bit for bit
gradient   the exact gradient against the CPU's
switches   guided steps with every faster way on, with all off, and with each one off; the final images and verdicts compared
profile    where a step's time goes, by groups of kernels
passes     norms and sums of large images beside a copy's rate

Part 2, opponents, six minutes at most:
kernels    those of guided steps as they are used
compiled   guided steps under each of torch.compile's modes, beside ours
opponents  the same by PyTorch as it ships, by published habits, and by diffusers
whole      whole purifications: DiffPure's loop beside ours, at as many steps and at few
adm        steps of ADM at 256 pixels
cold       from a cold process to the first purified batch
fp8        cuDNN's fp8 convolutions beside those in bf16

Part 3, `train` and `evaluate`: not built yet.
By name only: `probe` (the machine's ceilings, cuDNN's convolutions, launch gaps, kernel counts), `timings` (every op by itself),
`steps` (guided steps of all networks).

Each step is a module in processes of its own with its own time limit; the steps of a stage run side by side. Without a GPU all of
it is a dry run at toy size, whose lines go to a temporary folder. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench.core.run import RESULTS, commit
from bench.core.steps import Outcome, Step, carried_out
from bench.report.gpu import gpu_targets
from purify_engine.benchmark.harness import Records, read_records
from purify_engine.benchmark.machine import file_name, machine_name

Stage = tuple[Step, ...]

GUIDE = ("pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/ops/test_guide_on_gpu.py", "-k")
LOOP = "bench", "loop", "--network", "ddpm-cifar10", "--guide", "resnet18"
PASSES = "group_norm_silu", "sum_norm_silu", "residual_sum"
EAGER = "engine graph", "eager bf16 channels_last", "eager fp32", "naive loop", "diffusers"

PARTS: dict[str, tuple[Stage, ...]] = {
    "1": (
        (
            Step("build", ("setup", "build_ext", "--inplace"), 60, tool=True),
            Step("precompile", ("bench", "precompile"), 75),
        ),
        (
            Step("ops", ("bench", "check-ops", "--few-kernels"), 60, shards=8),
            Step("cuda", ("pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_cuda_on_gpu.py"), 60, tool=True),
            Step("guide", (*GUIDE, "not slower"), 60, tool=True),
            Step("graph", ("bench", "check-graph"), 75, shards=4),
            Step("gradient", ("bench", "check-gradient"), 60),
        ),
        (Step("switches", ("bench", "switches"), 150),),
        (Step("profile", ("bench", "profile"), 30),),
        (Step("passes", ("bench", "ops", "--op", *PASSES, "--bytes", "100e6", "--cache", "cold"), 30),),
    ),
    "2": (
        (
            Step("build", ("setup", "build_ext", "--inplace"), 60, tool=True),
            Step("kernels", ("bench", "precompile", "--as-used"), 60),
            Step("compiled", ("bench", "compiled"), 160),
        ),
        (Step("opponents", (*LOOP, "--steps", "10", "--variant", *EAGER), 80),),
        (Step("whole", ("bench", "whole"), 35),),
        (Step("adm", ("bench", "loop", "--network", "adm-imagenet256", "--batch", "8", "--variant", *EAGER[:2]), 35),),
        (Step("cold", ("bench", "cold-start"), 25),),
        (Step("fp8", ("bench", "fp8"), 25),),
    ),
}  # fmt: skip
BY_NAME: dict[str, Stage] = {
    "probe": (Step("probe", ("bench", "probe"), 300),),
    "guide-speed": (Step("guide-speed", (*GUIDE, "slower"), 90, tool=True),),
    "timings": (Step("timings", ("bench", "ops"), 110),),
    "steps": (Step("steps", ("bench", "loop"), 300),),
}
NOT_BUILT = {"3": ("train", "evaluate")}
NOT_BUILT_SAYS = "belongs to training and evaluation on a GPU: not built yet"


def main(words: list[str]) -> int:
    chosen = options().parse_args(words)
    has_gpu = torch.cuda.is_available()
    results = chosen.results if has_gpu else Path(tempfile.mkdtemp(prefix="purify-dry-run-"))
    if not has_gpu:
        print(f"PyTorch {torch.__version__} finds no GPU here: a dry run at toy size; its lines go to {results}", flush=True)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = machine_name("cuda" if has_gpu else "cpu")
    about = {"commit": commit(), "toy": not has_gpu}
    records = Records(results / f"gpu-{file_name(machine)}.jsonl", machine=machine, run=started)
    done = finished(records.path, **about) if chosen.resume else set()
    outcomes, began = list[Outcome](), time.monotonic()
    for stage in stages(chosen.part or ["1", "2", "3"]):
        for outcome in carried_out([step for step in stage if step.name not in done], results, dry=not has_gpu):
            step = outcome.step
            records(kind="step", step=step.name, status=outcome.status, seconds=outcome.seconds, limit=step.seconds, **about)
            outcomes.append(outcome)
    print("\nstep        seconds  verdict")
    for outcome in outcomes:
        print(f"{outcome.step.name:<11} {outcome.seconds:7.1f}  {outcome.verdict}  {' '.join(outcome.step.words)}")
    for name in sorted(done):
        print(f"{name:<11}          done before, for this commit on this machine")
    if has_gpu:
        print(f"\n{gpu_targets(results)}\n\nThe lines are in {results}; `make figures` makes tables of them.")
    else:
        print("No GPU was found and no GPU figure was made.")
    facts = {"machine": machine, **about, "seconds": round(time.monotonic() - began, 1), "skipped": sorted(done)}
    print(json.dumps(summary(outcomes, results, started, facts)), flush=True)
    return int(any(outcome.status for outcome in outcomes))


def options() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench gpu", description=__doc__, formatter_class=plain)
    parser.add_argument("part", nargs="*", choices=[[], *names()], help=f"of {', '.join(names())}; all parts by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON lines")
    parser.add_argument("--resume", action="store_true", help="leave out what went well before, for this commit on this machine")
    return parser


def names() -> list[str]:
    """What may be asked for: parts, and their steps one by one."""
    steps = [step.name for part in PARTS.values() for stage in part for step in stage]
    return [*PARTS, *NOT_BUILT, *steps, *BY_NAME, *(step for part in NOT_BUILT.values() for step in part)]


def stages(asked: list[str]) -> list[Stage]:
    """What is asked for, in order: whole parts with their stages, single steps each as a stage of its own."""
    single = {step.name: step for part in PARTS.values() for stage in part for step in stage}
    found = list[Stage]()
    for name in asked:
        if name in PARTS:
            found += PARTS[name]
        elif name in single:
            found.append((single[name],))
        elif name in BY_NAME:
            found.append(BY_NAME[name])
        else:
            print(f"\n== {name}: {', '.join(NOT_BUILT.get(name, (name,)))} {NOT_BUILT_SAYS}", flush=True)
    return found


def finished(path: Path, **about: Any) -> set[str]:
    """The steps that went well before, for this commit; none where the commit is not known, or differs from what is here."""
    known = str(about["commit"] or "+")
    lines = [] if known.endswith("+") or not path.exists() else read_records([path])
    last = {line["step"]: line["status"] for line in lines if line["kind"] == "step" and about.items() <= line.items()}
    return {step for step, status in last.items() if status == 0}


def summary(outcomes: list[Outcome], results: Path, started: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The last line: what ran, how it ended, which checks failed, and the headline figures of this run."""
    lines = [line for line in read_records(sorted(results.glob("*.jsonl"))) if line.get("run", "") >= started]
    ran = [{"step": each.step.name, "verdict": each.verdict, "seconds": round(each.seconds, 1)} for each in outcomes]
    failed = [line["check"] for line in lines if line["kind"] == "check" and not line["ok"]]
    headlines = {line["name"]: line["value"] for line in lines if line["kind"] == "headline"}
    checks = sum(line["kind"] == "check" for line in lines)
    return {**facts, "steps": ran, "checks": checks, "failed": failed[:20], "headlines": headlines}
