"""The fastest purifier on a CPU: the engine beside eager PyTorch, torch.compile with freezing, ONNX Runtime and OpenVINO.

    python -m bench cpu [--part unet layers memory] [--threads 1 2] [--avx2] [--batch 1 4] [--variant engine OpenVINO]

appends to bench/results/cpu-MACHINE.jsonl. Networks are the published ones with random weights, the same for all, in float32.
Before anything is timed its result is compared with float64: ours may be `OURS` times as far from it as eager PyTorch, an
opponent `OPPONENT` times, and what is further is not timed. Variants are timed in turn, a large matrix product with them: its
rate is the peak that shares are taken of, as it was just then. Before each call there is a rest in which the threads of the
variant before it stop spinning: libgomp's do so for milliseconds, and two cores have none to spare.

The single convolutions of part `layers` are timed cold, against oneDNN with prepacked weights; `core.clocks.ColdClock` says
how. Part `memory` runs each variant in a process of its own. Part `beside` times a host's own work instead, after a U-Net: see
`subjects/host_work.py`. torch.compile takes part at the batches `COMPILED` alone: it compiles for minutes at each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.core import instruction_sets, process_memory
from bench.core.clocks import REST, rested
from bench.core.comparison import OPPONENT, AbsentError, Finding, Variant, compare, sound, within
from bench.core.run import Run, begin, parser
from bench.subjects import host_work
from bench.subjects.cpu import HONEST, OURS, Entry, Setting, Subject, subject
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.harness import Timing, interleaved, wall_clock
from purify_engine.benchmark.machine import ceilings

SECONDS, LEAST = 6.0, 3  # a setting, all variants together
PEAK = "matmul"
PARTS = ("unet", "guide", "step", "layers", "memory", "beside")
CIFAR, GUIDES = "ddpm-cifar10", ("wrn-28-10", "resnet18")
COMPILED = (1, 8)
# (batch, pixels, layer): the gates of at least 16 px, then of 8 px
LAYERS = (
    (1, 32, "128->128"), (1, 16, "256->256"), (1, 16, "512->256"), (8, 32, "128->128"), (8, 16, "256->256"),
    (1, 8, "256->256"), (1, 8, "640->640"), (8, 8, "256->256"), (8, 8, "640->640"),
)  # fmt: skip
UNET = (*((batch, 32) for batch in (1, 8, 4, 16)), (1, 48), (1, 64))  # (batch, pixels)


def main(words: list[str]) -> int:
    options = parser("cpu", __doc__)
    options.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="only these")
    options.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="how many compute; each gives figures of its own")
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    options.add_argument("--variant", nargs="+", help=f"only these, and {HONEST}")
    options.add_argument("--avx2", action="store_true", help="hold all variants to AVX2; what cannot be held is left out")
    options.add_argument("--memory", metavar="SETTING", help=argparse.SUPPRESS)
    chosen = options.parse_args(words)
    if chosen.avx2 or instruction_sets.is_held():
        instruction_sets.hold("cpu", words)
    if chosen.memory:
        print(json.dumps(held(Setting(**json.loads(chosen.memory)), chosen.variant[0], toy=chosen.toy)))
        return 0
    before = torch.get_num_threads()
    torch.set_num_threads(max(chosen.threads))  # the machine is named by the most that compute
    run, _ = begin("cpu", options, words, suffix=instruction_sets.SAYS if instruction_sets.is_held() else "")
    try:
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            measure_all(run, threads, chosen)
    finally:
        torch.set_num_threads(before)
    return run.close()


def measure_all(run: Run, threads: int, chosen: Any) -> None:
    """Everything asked for, on so many threads."""
    rates = ceilings("cpu", toy=run.toy)
    # The load says whether others computed, too: OpenMP's threads wait for one another, and suffer most.
    about = {"threads": threads, "isa": torch.backends.cpu.get_cpu_capability(), "load": os.getloadavg()[0]}
    run.figure(f"{threads} threads: " + "  ".join(f"{k} {v:.3g}/s" for k, v in rates.items()), kind="ceilings", **about, **rates)
    for setting in settings(run, threads, chosen):
        if run.seconds_left < 0:
            run.note(str(setting), "not measured: no time left")
        elif setting.part == "memory":
            measure_memory(run, setting, chosen.variant)
        elif setting.part == "beside":
            measure_host_work(run, setting)
        else:
            measure(run, setting, subject(setting, toy=run.toy), chosen.variant)


def settings(run: Run, threads: int, chosen: Any) -> Iterator[Setting]:
    """What was asked for, the most telling first."""
    known = {
        "unet": [(CIFAR, batch, pixels) for batch, pixels in _with_batches(UNET, chosen.batch)],
        "guide": [(f"{name}{what}", batch, 32) for what in (", d/dx", "") for name in GUIDES for batch in chosen.batch or (1, 8)],
        "step": [(f"{CIFAR} + {guide}", batch, 32) for guide in GUIDES for batch in chosen.batch or (1, 8)],
        "layers": [(name, batch, px) for batch, px, name in LAYERS if chosen.batch is None or batch in chosen.batch],
        "memory": [(CIFAR, batch, 32) for batch in chosen.batch or (1, 8)],
        "beside": [(CIFAR, batch, 32) for batch in chosen.batch or (1,)],
    }
    for part in chosen.part:
        asked = [Setting(part, *what, threads) for what in known[part]]
        yield from toys(asked) if run.toy else asked


def _with_batches(places: tuple[tuple[int, int], ...], batches: list[int] | None) -> list[tuple[int, int]]:
    """(batch, pixels) of the U-Net for the batches asked for; larger images come at batch 1."""
    if batches is None:
        return list(places)
    return [(batch, 32) for batch in batches] + [place for place in places if place[1] > 32 and place[0] in batches]


def toys(asked: list[Setting]) -> Iterator[Setting]:
    """The first and the last, on the smallest networks, one of them with two images."""
    for batch, setting in ((1, asked[0]), (2, asked[-1])):
        yield replace(setting, batch=batch, pixels=8, name="8->16" if setting.part == "layers" else setting.name)


def measure(run: Run, setting: Setting, asked: Subject, only: list[str] | None = None) -> None:
    """Build all variants, compare them with float64, then time in turn those that agree."""
    label = f"toy {setting}" if run.toy else str(setting)
    for name, why in asked.absent.items():
        run.note(f"{label}: {name}", why)
    with torch.no_grad():
        agreeing = sound(run, label, entries(asked, wanted(run, label, setting, asked, only)))
        calls: dict[str, Callable[[], object]] = {name: variant.call for name, variant in agreeing.items()}
        clock = asked.clock if run.toy or asked.clock is not wall_clock else rested
        seconds, least = (0.0, 1) if run.toy else (SECONDS, LEAST)
        side = 64 if run.toy else 1024
        timings = interleaved(calls | {PEAK: matmul(side)}, clock, seconds=seconds, least=least, warm_up=1)
    peak = 2 * side**3 / timings.pop(PEAK).median
    for name, timing in timings.items():
        write(run, label, setting, asked, name, timing, agreeing[name].error, peak)


def entries(asked: Subject, names: list[str]) -> dict[str, Callable[[], Variant]]:
    """How to build each variant and compare it with float64, by the error of the honest one, which stands first."""
    truth, slack = cache(asked.truth), cache(asked.slack)
    honest: list[Tensor] = []

    def finding(name: str, entry: Entry) -> Finding:
        got, like = entry.result()[: len(truth())], truth()[: entry.images]
        if name == HONEST:
            honest.append(got)
        judge = within(OURS if name.startswith("engine") else OPPONENT, slack=slack())
        return compare(got, honest[0][: len(like)], like, judge)

    def built(name: str) -> Variant:
        if name != HONEST and not honest:
            raise AbsentError(f"{HONEST} gave no result to compare by")
        entry = asked.makers[name]()
        return Variant(entry.call, partial(finding, name, entry))

    return {name: partial(built, name) for name in names}


def matmul(side: int) -> Callable[[], object]:
    """A matrix product that comes near the processor's peak."""
    left, right = torch.randn(2, side, side).unbind()
    return lambda: left @ right


def wanted(run: Run, label: str, setting: Setting, asked: Subject, only: list[str] | None) -> list[str]:
    """The names of those that take part: the honest one always, and first."""
    names = [HONEST, *(name for name in asked.makers if name != HONEST and (only is None or name in only))]
    if instruction_sets.is_held():
        names = [name for name in names if name not in instruction_sets.CANNOT_BE_HELD]
    compiled = [name for name in names if name.startswith("torch.compile")]
    if run.toy or (setting.batch in COMPILED and setting.pixels == 32):
        return names
    for name in compiled:
        where = " and ".join(map(str, COMPILED))
        run.note(f"{label}: {name}", f"not measured: it compiles for minutes, so only at 32 px and batch {where}")
    return [name for name in names if name not in compiled]


def write(
    run: Run, label: str, setting: Setting, asked: Subject, name: str, timing: Timing, error: float, peak: float
) -> None:
    """One line. `share` is of the `peak`, FLOP/s, and may pass 1 where an algorithm multiplies less."""
    rate = asked.flops / timing.median
    facts = {"variant": name, "steps": asked.per, "cache": "warm" if asked.clock is wall_clock else "cold", "error": error}
    facts |= {"flops": asked.flops, "gflops": rate / 1e9, "share": rate / peak, "peak": peak}
    text = f"{label:<56} {name:<22} {duration(timing.median / asked.per):>9}, {rate / 1e9:.4g} GFLOP/s, {rate / peak:.0%} of peak"
    run.figure(text, kind="cpu", case=label, **vars(setting), **facts, **timing.record())


def measure_memory(run: Run, setting: Setting, only: list[str] | None) -> None:
    """What the U-Net takes in each engine, every one in a fresh process."""
    place = json.dumps(vars(replace(setting, part="unet")))
    for name in wanted(run, str(setting), setting, subject(replace(setting, part="unet"), toy=True), only):
        words = [sys.executable, "-m", "bench", "cpu", "--memory", place, "--variant", name, *(["--toy"] if run.toy else [])]
        limit = max(1.0, min(run.seconds_left, 900.0))
        environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=limit, env=environment, check=False)
        except subprocess.TimeoutExpired:
            run.note(f"{setting}: {name}", f"not measured: not done after {limit:.0f} s")
            continue
        bytes_taken = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"absent": done.stderr[-200:]}
        if "absent" in bytes_taken:
            run.note(f"{setting}: {name}", f"not measured: {bytes_taken['absent']}")
            continue
        peak, resident = (bytes_taken[key] / 2**20 for key in ("peak", "resident"))
        text = f"{setting}  {name:<22} {peak:.0f} MiB at its peak, {resident:.0f} MiB between calls"
        run.figure(text, kind="memory", **vars(setting), variant=name, **bytes_taken)


def measure_host_work(run: Run, setting: Setting) -> None:
    """A host's own work alone, and after calls of the U-Net, eager and by the engine, once both agree with float64: in turn."""
    label = f"toy {setting}" if run.toy else str(setting)
    asked = subject(replace(setting, part="unet"), toy=run.toy)
    with torch.no_grad():
        agreeing = sound(run, label, entries(asked, [HONEST, "engine"]))
        calls = {name: variant.call for name, variant in agreeing.items()}
        for host, work in host_work.works(toy=run.toy).items():
            clock = host_work.right_after(work, rest=0.0 if run.toy else REST)
            rounds = host_work.TOY_ROUNDS if run.toy else host_work.ROUNDS
            timings = interleaved({host_work.ALONE: work, **calls}, clock, seconds=0.0, least=rounds, warm_up=1)
            for after, timing in timings.items():
                text = f"{label:<56} {host:<32} after {after:<12} {duration(timing.median):>9}"
                run.figure(text, kind="beside", case=label, **vars(setting), host=host, after=after, **timing.record())


def held(setting: Setting, variant: str, *, toy: bool) -> dict[str, Any]:
    """Bytes that this process grows by for one engine: at its peak during calls, and between them.

    The same is built at toy size first, so that libraries, exporters and compilers are loaded; and what building took is given
    back to the system before the peak counts.
    """
    torch.set_num_threads(setting.threads)
    try:
        with torch.no_grad():
            _built_alone(replace(setting, pixels=8, batch=1), variant, toy=True).call()
            before = process_memory.settled()
            call = _built_alone(setting, variant, toy=toy).call
            call()
            process_memory.settled()
            process_memory.forget_peak()
            for _ in range(3):
                call()
            peak = process_memory.peak()
            return {"peak": peak - before, "resident": process_memory.settled() - before}
    except AbsentError as absent:
        return {"absent": str(absent)}


def _built_alone(setting: Setting, variant: str, *, toy: bool) -> Entry:
    """One variant; what it does not hold itself is let go with the subject."""
    return subject(setting, toy=toy).makers[variant]()
