"""Times guided steps and whole purifications: the engine beside its opponents, on the published networks with random weights.

    python -m bench loop [--network ddpm-cifar10] [--guide resnet18] [--batch 64] [--variant "engine graph"] [--peers]

appends to bench/results/loop-MACHINE.jsonl. A step's time is a purification's of a few steps over their number: the forward
noise and the guide's target are in it. Every variant is held to float64 before it is timed, with the same noise in all; all
are timed in turn. The guide of ADM is a ResNet-18 at 256 pixels, since models/ has no ResNet-50: its share of a step is not
that of one at 224 pixels. `--peers` adds torch.compile in its modes, minutes of compiling each, and diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.core.comparison import Variant, first_line, sound
from bench.core.compiler_modes import MODES, NAME
from bench.core.run import Run, begin, parser
from bench.core.turns import Turns
from bench.opponents.compiled import Compiled
from bench.opponents.compiled import options_of as options_of_mode
from bench.opponents.diffusers_purifier import diffused
from bench.subjects.purification import Comparison, PurificationSetting, engine, images_for, step_flops
from bench.subjects.timed_purifiers import compared, purifier_of
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.eager_baseline import BASELINES
from purify_engine.benchmark.harness import Clock, CudaClock, interleaved, wall_clock
from purify_engine.benchmark.machine import ceilings
from purify_engine.benchmark.networks import GUIDES, NETWORKS
from purify_engine.purifier import Execution, GuidedPurifier

SECONDS, LEAST = 2.0, 3  # a setting, all variants together
RESERVE = 60.0  # of the time of a run, kept from compiling for what is measured afterwards

# The most telling first: what is left when time runs out is said.
GPU_SETTINGS = (
    *(PurificationSetting("ddpm-cifar10", "resnet18", batch) for batch in (64, 1, 256)),
    PurificationSetting("ddpm-cifar10", "resnet18", 1, 100),
    PurificationSetting("ddpm-cifar10", "resnet18", 64, 100),
    *(PurificationSetting("ddpm-cifar10", "wrn-28-10", batch) for batch in (1, 64, 256)),
    *(PurificationSetting("ddpmpp-cifar10", "resnet18", batch) for batch in (1, 64, 256)),
    PurificationSetting("adm-imagenet256", "resnet18", 1, 4),
    PurificationSetting("adm-imagenet256", "resnet18", 8, 2),
    PurificationSetting("adm-imagenet256", "resnet18", 64, 2),
)
CPU_SETTINGS = tuple(PurificationSetting("ddpm-cifar10", guide, batch, 2) for guide in GUIDES for batch in (1, 8))
TOY_SETTINGS = tuple(PurificationSetting(network, "resnet18", 1, 2) for network in NETWORKS)  # their names, on toy networks

Make = Callable[[GuidedPurifier], Any]


def main(words: list[str]) -> int:
    options = parser("loop", __doc__)
    options.add_argument("--network", nargs="+", help="only these")
    options.add_argument("--guide", nargs="+", help="only these")
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    options.add_argument("--steps", nargs="+", type=int, help="only these")
    options.add_argument("--variant", nargs="+", help="only these, of the peers too")
    options.add_argument("--peers", action="store_true", help="also torch.compile, which takes minutes to compile, and diffusers")
    options.add_argument("--turns", type=Path, help="a folder that processes share which take turns at this device")
    options.add_argument("--place", type=int, default=0, help="which of them is this process, from 0")
    run, chosen = begin("loop", options, words)
    turns = Turns(chosen.turns, chosen.place)
    if chosen.turns is None:
        rates = ceilings(run.device, toy=run.toy)
        run.figure("  ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()), kind="ceilings", **rates)
    for setting in settings(run, chosen):
        if run.seconds_left < 0:
            run.note(str(setting), "not measured: no time left")
            continue
        measure(run, setting, variants(run, turns, peers=chosen.peers, only=chosen.variant), turns)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    return run.close()


def settings(run: Run, chosen: Any) -> Iterator[PurificationSetting]:
    """The settings of this device that were asked for."""
    known = TOY_SETTINGS if run.toy else GPU_SETTINGS if run.device.type == "cuda" else CPU_SETTINGS
    for setting in known:
        by = ("network", "guide") if run.toy else ("network", "guide", "batch", "steps")  # toys come in one size
        asked = ((getattr(chosen, name), getattr(setting, name)) for name in by)
        if all(names is None or own in names for names, own in asked):
            yield setting


def variants(run: Run, turns: Turns, *, peers: bool, only: list[str] | None = None) -> dict[str, Make]:
    """All that take part on this device: the peers too where asked for, or `only` some of all. bf16 is no opponent on a CPU."""
    gpu = run.device.type == "cuda"
    executions: tuple[Execution, ...] = "graph", "loop"
    ours: dict[str, Make] = {f"engine {how}": partial(engine, execution=how, low=gpu) for how in executions}
    modes = [mode for mode in MODES if only is None or f"{NAME} {mode}" in only]
    seconds = (run.seconds_left - (0.0 if run.toy else RESERVE)) / max(len(modes), 1)
    compilers = {f"{NAME} {mode}": Compiled(run, mode, turns, seconds) for mode in modes}
    known: dict[str, Make] = {**ours, **BASELINES, **compilers, "diffusers": diffused}
    if only is not None and (unknown := set(only) - set(known)):
        raise SystemExit(f"--variant must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    wanted = only or (known if peers else (*ours, *BASELINES))
    return {name: make for name, make in known.items() if name in wanted and (gpu or "bf16" not in name)}


def measure(run: Run, setting: PurificationSetting, makers: dict[str, Make], turns: Turns | None = None) -> None:
    """Build every variant, compare all with float64, then time in turn those that agree."""
    label = f"toy {setting}" if run.toy else str(setting)
    turns = turns or Turns()
    with turns.preparing():
        purifier = purifier_of(run, setting)
        images = images_for(purifier, setting.batch)
        work = step_flops(purifier) * setting.steps * setting.batch
        compilers = {name: make for name, make in makers.items() if isinstance(make, Compiled)}
        for make in compilers.values():
            make.prepare(purifier, images)
    if turns.shared and compilers and all(make.failed for make in compilers.values()):
        makers = dict(compilers)  # whose lines say why; the others would take time from the next process
    with turns.measuring(), torch.no_grad():
        comparison = Comparison(purifier, images)
        agreeing = sound(run, label, {name: partial(built, run, make, comparison, purifier) for name, make in makers.items()})
        clock: Clock = CudaClock(cold=False) if run.device.type == "cuda" else wall_clock
        seconds, least = (0.0, 1) if run.toy else (SECONDS, LEAST)
        calls = {name: variant.call for name, variant in agreeing.items()}
        try:
            timings = interleaved(calls, clock, seconds=seconds, least=least, warm_up=0)  # they ran when they were compared
        except RuntimeError as fault:  # after some, a GPU does nothing more for this process
            run.check(f"{label}: timed in turn", False, first_line(fault))
            return
    for name, timing in timings.items():
        about = {"network": setting.network, "guide": setting.guide, "batch": setting.batch, "steps": setting.steps}
        facts = {"variant": name, "cache": "warm", "flops": work, "error": agreeing[name].error, **options_of(makers[name])}
        speed = work / timing.median
        text = f"{label:<52} {name:<26} {duration(timing.median / setting.steps):>9} a step, {speed / 1e12:.3g} TFLOP/s"
        run.figure(text, kind="loop", case=label, **about, **facts, **timing.record())
        run.headline(f"{name}, ms a step, {label}", round(1e3 * timing.median / setting.steps, 3))


def options_of(make: Make) -> dict[str, Any]:
    """What a compiler was told, for its line."""
    return {"options": options_of_mode(make.mode)} if isinstance(make, Compiled) else {}


def built(run: Run, make: Make, comparison: Comparison, purifier: GuidedPurifier) -> Variant:
    """One variant on the purifier's weights, and how it is compared."""
    variant, images = make(purifier), comparison.images
    return Variant(partial(variant, images), partial(compared, run, variant, comparison, images))
