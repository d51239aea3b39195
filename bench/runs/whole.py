"""Whole purifications: DiffPure's own loop beside the engine, at as many steps and at few.

    python -m bench whole

appends to bench/results/loop-MACHINE.jsonl. DiffPure (Nie et al. 2022) walks 100 steps without a guide, with the habits of
published code; guidance lets the engine walk fewer. How many keep the accuracy is for an evaluation to say, not for this: the
number stands in the variant's name.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.core.comparison import Variant, sound
from bench.core.run import Run, begin, parser
from bench.subjects.purification import Comparison, PurificationSetting, engine, images_for
from bench.subjects.timed_purifiers import compared, purifier_of
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.eager_baseline import NaiveLoop
from purify_engine.benchmark.harness import Clock, CudaClock, interleaved, wall_clock
from purify_engine.purifier import GuidedPurifier

NETWORK, GUIDE, BATCH = "ddpm-cifar10", "resnet18", 64
MANY, FEW = 100, 10  # steps
SECONDS, LEAST = 4.0, 3


class Whole(NamedTuple):
    """One way to purify: by whose loop, guided or not, in how many steps."""

    by: str
    guided: bool
    steps: int

    def __str__(self) -> str:
        return f"{self.by}, {'guided' if self.guided else 'unguided'}, {self.steps} steps"


def ways(many: int, few: int) -> tuple[Whole, ...]:
    """DiffPure's own, the same walk as ours by its habits, and ours."""
    naive = Whole("DiffPure's loop", False, many), Whole("naive loop", True, many)
    return *naive, Whole("engine", True, many), Whole("engine", True, few)


def main(words: list[str]) -> int:
    run, _ = begin("loop", parser("whole", __doc__), words)
    many, few, batch = (4, 2, 2) if run.toy else (MANY, FEW, BATCH)
    guided = purifier_of(run, PurificationSetting(NETWORK, GUIDE, batch, many))
    images = images_for(guided, batch)
    purifiers = {True: guided, False: guided.configured(guidance=dataclasses.replace(guided.config.guidance, scale=0.0))}
    with torch.no_grad():
        comparisons = {is_guided: Comparison(purifier, images) for is_guided, purifier in purifiers.items()}
        wanted = {way: partial(built, run, way, purifiers[way.guided], comparisons[way.guided]) for way in ways(many, few)}
        calls = {way: agreed.call for way, agreed in sound(run, "whole", wanted).items()}
        clock: Clock = CudaClock(cold=False) if run.device.type == "cuda" else wall_clock
        seconds, least = (0.0, 1) if run.toy else (SECONDS, LEAST)
        by_name = {str(way): call for way, call in calls.items()}
        timings = interleaved(by_name, clock, seconds=seconds, least=least, warm_up=0)  # they ran when they were compared
    for way in calls:
        timing = timings[str(way)]
        about = {"network": NETWORK, "guide": GUIDE, "batch": batch, "steps": way.steps, "by": way.by, "guided": way.guided}
        run.figure(f"{way}, batch {batch}: {duration(timing.median)}", kind="whole", variant=str(way), **about, **timing.record())
        run.headline(f"{way}, s for {batch} images", round(timing.median, 4))
    return run.close()


def built(run: Run, way: Whole, purifier: GuidedPurifier, comparison: Comparison) -> Variant:
    """The variant, and how it is compared."""
    configured, images = purifier.configured(num_steps=way.steps), comparison.images
    ours = way.by == "engine"
    variant: Any = engine(configured, "graph", low=run.device.type == "cuda") if ours else NaiveLoop(configured)
    return Variant(partial(variant, images), partial(compared, run, variant, comparison, images))
