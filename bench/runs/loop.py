"""Times guided steps and whole purifications: the engine beside its opponents, on the published networks with random weights.

    python -m bench loop [--network ddpm-cifar10] [--guide resnet18] [--batch 64] [--peers]

appends to bench/results/loop-MACHINE.jsonl. A step's time is a purification's of a few steps over their number: the forward
noise and the guide's target are in it. Every variant is held to float64 before it is timed, with the same noise in all; all
are timed in turn. The guide of ADM is a ResNet-18 at 256 pixels, since models/ has no ResNet-50: its share of a step is not
that of one at 224 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from bench.core.comparison import Finding, Variant, sound
from bench.core.run import Run, begin, parser
from bench.opponents.compiled import CompiledPurifier, compiled
from bench.opponents.diffusers_purifier import diffused
from bench.subjects.purification import Comparison, PurificationSetting, engine, images_for, step_flops
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.eager_baseline import BASELINES
from purify_engine.benchmark.harness import Clock, CudaClock, interleaved, wall_clock
from purify_engine.benchmark.machine import ceilings
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.purifier import Execution, GuidedPurifier
from purify_engine.types import Images

SECONDS, LEAST = 4.0, 3  # a setting, all variants together

# The most telling first: what is left when time runs out is said.
GPU_SETTINGS = (
    *(PurificationSetting("ddpm-cifar10", "resnet18", batch) for batch in (1, 64, 256)),
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
TOYS = dict(zip(NETWORKS, TOY_NETWORKS.values(), strict=True))

Make = Callable[[GuidedPurifier], Any]


def main(words: list[str]) -> int:
    options = parser("loop", __doc__)
    options.add_argument("--network", nargs="+", help="only these")
    options.add_argument("--guide", nargs="+", help="only these")
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    options.add_argument("--peers", action="store_true", help="also torch.compile, which takes minutes to compile, and diffusers")
    run, chosen = begin("loop", options, words)
    rates = ceilings(run.device, toy=run.toy)
    run.figure("  ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()), kind="ceilings", **rates)
    for setting in settings(run, chosen):
        if run.seconds_left < 0:
            run.note(str(setting), "not measured: no time left")
            continue
        measure(run, setting, variants(run, chosen.peers))
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    return run.close()


def settings(run: Run, chosen: Any) -> Iterator[PurificationSetting]:
    """The settings of this device that were asked for."""
    known = TOY_SETTINGS if run.toy else GPU_SETTINGS if run.device.type == "cuda" else CPU_SETTINGS
    for setting in known:
        asked = (chosen.network, setting.network), (chosen.guide, setting.guide), (chosen.batch, setting.batch)
        if all(names is None or own in names for names, own in asked):
            yield setting


def variants(run: Run, with_peers: bool) -> dict[str, Make]:
    """All that take part on this device. bf16 is no opponent on a CPU."""
    gpu = run.device.type == "cuda"
    executions: tuple[Execution, ...] = "graph", "loop"
    ours: dict[str, Make] = {f"engine {how}": partial(engine, execution=how, low=gpu) for how in executions}
    eager = {name: make for name, make in BASELINES.items() if gpu or "bf16" not in name}
    peers: dict[str, Make] = {"torch.compile": partial(compiled, run), "diffusers": diffused} if with_peers else {}
    return {**ours, **eager, **peers}


def measure(run: Run, setting: PurificationSetting, makers: dict[str, Make]) -> None:
    """Build every variant, compare all with float64, then time in turn those that agree."""
    network, guide = (TOYS[setting.network], TOY_GUIDE) if run.toy else (NETWORKS[setting.network], GUIDES[setting.guide])
    label = f"toy {setting}" if run.toy else str(setting)
    purifier = random_purifier(network, guide, setting.config, device=run.device, execution="loop")
    images = images_for(purifier, setting.batch)
    work = step_flops(purifier) * setting.steps * setting.batch
    comparison = Comparison(purifier, images)
    with torch.no_grad():
        agreeing = sound(run, label, {name: partial(built, run, make, comparison, purifier) for name, make in makers.items()})
        clock: Clock = CudaClock(cold=False) if run.device.type == "cuda" else wall_clock
        seconds, least = (0.0, 1) if run.toy else (SECONDS, LEAST)
        calls = {name: variant.call for name, variant in agreeing.items()}
        timings = interleaved(calls, clock, seconds=seconds, least=least, warm_up=1)
    for name, timing in timings.items():
        about = {"network": setting.network, "guide": setting.guide, "batch": setting.batch, "steps": setting.steps}
        facts = {"variant": name, "cache": "warm", "flops": work, "error": agreeing[name].error}
        speed = work / timing.median
        text = f"{label:<52} {name:<26} {duration(timing.median / setting.steps):>9} a step, {speed / 1e12:.3g} TFLOP/s"
        run.figure(text, kind="loop", case=label, **about, **facts, **timing.record())


def built(run: Run, make: Make, comparison: Comparison, purifier: GuidedPurifier) -> Variant:
    """One variant on the purifier's weights, and how it is compared."""
    variant, images = make(purifier), comparison.images
    return Variant(partial(variant, images), partial(compared, run, variant, comparison, images))


def compared(run: Run, variant: Any, comparison: Comparison, images: Images) -> Finding:
    """Its distance to float64, when it has also run at the batch and the steps that are timed."""
    finding = comparison.finding(variant)
    variant(images)  # allocates, compiles, captures; what does not fit shows here
    if run.device.type == "cuda" and isinstance(variant, CompiledPurifier):
        variant.confirm_graphs(run, images)
    return finding
