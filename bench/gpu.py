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

By name only: `probe` (the machine's ceilings, cuDNN's convolutions, launch gaps, kernel counts), `timings` (every op by itself),
`steps` (guided steps of all networks); and, ten minutes each at most, gone on with in the next run, `train` (--recipe, --data,
--output) and `evaluate` (--purifier, --data, --output), whose data and results travel in pieces (docs/performance.md).

Each step is a module in processes of its own with its own time limit; the steps of a stage run side by side. Without a GPU all of
it is a dry run at toy size, whose lines go to a temporary folder. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
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
    "train": (Step("train", ("bench", "train"), 540),),
    "evaluate": (Step("evaluate", ("bench", "evaluate"), 540),),
}
OPTIONS = {"train": ("recipe", "networks", "total", "data", "output"), "evaluate": ("purifier", "data", "output", "rest")}
TOY_SECONDS = 15  # of either, times the patience of a dry run


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
    for stage in stages(chosen.part or list(PARTS)):
        stage = tuple(told(step, chosen, dry=not has_gpu) for step in stage)
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
    about = parser.add_argument_group("train and evaluate")
    about.add_argument("--seconds", type=float, help="of either, all included; 540 by default")
    about.add_argument("--recipe", help="to train")
    about.add_argument("--networks", help="parts of the recipe, all by default")
    about.add_argument("--total", help="seconds of training of all runs together")
    about.add_argument("--purifier", help="to evaluate: an embedded name, or a folder")
    about.add_argument("--data", help="what is trained or evaluated on")
    about.add_argument("--output", help="folder of networks, or file of cells; an earlier run's is gone on with")
    about.add_argument("--rest", help="further options of `purify-engine evaluate`")
    return parser


def told(step: Step, chosen: argparse.Namespace, *, dry: bool) -> Step:
    """`step` with what the command line says of it. A dry run is of toys, whatever that says."""
    if step.name not in OPTIONS:
        return step
    if dry:
        return replace(step, seconds=TOY_SECONDS)
    words, rest = list(step.words), list[str]()
    for name in OPTIONS[step.name]:
        given = getattr(chosen, name)
        if given is not None:
            several = given.split() if name in ("networks", "rest") else [given]
            rest, words = (several, words) if name == "rest" else (rest, [*words, f"--{name}", *several])
    return replace(step, words=tuple(words), rest=tuple(rest), seconds=chosen.seconds or step.seconds)


def names() -> list[str]:
    """What may be asked for: parts, and their steps one by one."""
    steps = [step.name for part in PARTS.values() for stage in part for step in stage]
    return [*PARTS, *steps, *BY_NAME]


def stages(asked: list[str]) -> list[Stage]:
    """What is asked for, in order: whole parts with their stages, single steps each as a stage of its own."""
    single = {step.name: step for part in PARTS.values() for stage in part for step in stage}
    found = list[Stage]()
    for name in asked:
        if name in PARTS:
            found += PARTS[name]
        elif name in single:
            found.append((single[name],))
        else:
            found.append(BY_NAME[name])
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
