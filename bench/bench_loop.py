"""Times guided steps and whole purifications: the engine beside its opponents, on the published networks with random weights.

    python -m bench.bench_loop [--network ddpm-cifar10] [--guide resnet18] [--batch 64] [--peers]

appends to bench/results/loop-MACHINE.jsonl. A step's time is a purification's of a few steps over their number: the forward
noise and the guide's target are in it. Every variant is held to float64 before it is timed, with the same noise in all; all
are timed in turn. The guide of ADM is a ResNet-18 at 256 pixels, since models/ has no ResNet-50: its share of a step is not
that of one at 224 pixels.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import peers
from bench.run import Run, begin, parser
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.eager_baseline import BASELINES, EagerPurifier
from purify_engine.benchmark.harness import Clock, CudaClock, interleaved, wall_clock
from purify_engine.benchmark.machine import ceilings
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.config import PurifierConfig
from purify_engine.purifier import Execution, GuidedPurifier
from purify_engine.reference.philox import philox_normal
from purify_engine.testing.yardstick import assert_within_yardstick
from purify_engine.types import Images

SECONDS, LEAST = 4.0, 3  # a setting, all variants together
COMPARED_IMAGES, COMPARED_STEPS, OPPONENT = 4, 2, 10


@dataclass(frozen=True)
class Setting:
    """What is timed: the networks, the batch, and how many steps of DDPM in one call."""

    network: str
    guide: str
    batch: int
    steps: int = 10

    def __str__(self) -> str:
        return f"{self.network} + {self.guide}, batch {self.batch}, {self.steps} steps"

    @property
    def config(self) -> PurifierConfig:
        """DDPM over the first 100 timesteps, as DiffPure purifies CIFAR-10; `steps` of them."""
        return PurifierConfig(t_star=100, num_steps=self.steps, noise="fixed")


# The most telling first: what is left when time runs out is said.
GPU_SETTINGS = (
    *(Setting("ddpm-cifar10", "resnet18", batch) for batch in (1, 64, 256)),
    Setting("ddpm-cifar10", "resnet18", 1, 100),
    Setting("ddpm-cifar10", "resnet18", 64, 100),
    *(Setting("ddpm-cifar10", "wrn-28-10", batch) for batch in (1, 64, 256)),
    *(Setting("ddpmpp-cifar10", "resnet18", batch) for batch in (1, 64, 256)),
    Setting("adm-imagenet256", "resnet18", 1, 4),
    Setting("adm-imagenet256", "resnet18", 8, 2),
    Setting("adm-imagenet256", "resnet18", 64, 2),
)
CPU_SETTINGS = tuple(Setting("ddpm-cifar10", guide, batch, 2) for guide in GUIDES for batch in (1, 8))
TOY_SETTINGS = tuple(Setting(network, "resnet18", 1, 2) for network in NETWORKS)  # their names, on toy networks
TOYS = dict(zip(NETWORKS, TOY_NETWORKS.values(), strict=True))


def main(words: list[str] | None = None) -> int:
    options = parser(__doc__)
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
        measure(run, setting, variants(run, chosen.peers), rates)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    return run.close()


def settings(run: Run, chosen: Any) -> Iterator[Setting]:
    """The settings of this device that were asked for."""
    known = TOY_SETTINGS if run.toy else GPU_SETTINGS if run.device.type == "cuda" else CPU_SETTINGS
    for setting in known:
        asked = (chosen.network, setting.network), (chosen.guide, setting.guide), (chosen.batch, setting.batch)
        if all(names is None or own in names for names, own in asked):
            yield setting


Make = Callable[[GuidedPurifier], Any]


def variants(run: Run, with_peers: bool) -> dict[str, Make]:
    """Who takes part on this device. bf16 is no opponent on a CPU."""
    gpu = run.device.type == "cuda"
    executions: tuple[Execution, ...] = "graph", "loop"
    ours: dict[str, Make] = {f"engine {how}": partial(engine, execution=how, low=gpu) for how in executions}
    chosen = {name: make for name, make in BASELINES.items() if gpu or "bf16" not in name}
    return {**ours, **chosen, **(peers.variants(run) if with_peers else {})}


def engine(purifier: GuidedPurifier, execution: Execution, low: bool = False) -> GuidedPurifier:
    """The purifier itself on networks of its own, in bfloat16 and channels_last where `low`."""
    own = GuidedPurifier(*copy.deepcopy((purifier.denoiser, purifier.guide)), purifier.config, execution=execution)
    own = own.to(purifier.seed.device)
    return own.to(torch.bfloat16).to(memory_format=torch.channels_last) if low else own  # type: ignore[call-overload]


def measure(run: Run, setting: Setting, makers: dict[str, Make], rates: dict[str, float]) -> None:
    """Build every variant, compare all with float64, then time in turn those that agree."""
    network, guide = (TOYS[setting.network], TOY_GUIDE) if run.toy else (NETWORKS[setting.network], GUIDES[setting.guide])
    label = f"toy {setting}" if run.toy else str(setting)
    purifier = random_purifier(network, guide, setting.config, device=run.device, execution="loop")
    images = images_for(purifier, setting.batch)
    work = step_flops(purifier) * setting.steps * setting.batch
    compared = Comparison(purifier, images)
    calls: dict[str, Callable[[], object]] = {}
    for name, make in makers.items():
        try:
            variant = make(purifier)
            compared.check(run, f"{label}: {name}", name, variant)
            variant(images)  # allocates, compiles, captures; what does not fit shows here
            if run.device.type == "cuda" and isinstance(variant, peers.CompiledPurifier):
                variant.confirm_graphs(run, images)
            calls[name] = partial(variant, images)
        except torch.OutOfMemoryError:
            run.note(f"{label}: {name}", "not measured: out of memory")
        except peers.AbsentError as absent:
            run.note(f"{label}: {name}", f"not measured: {absent}")
        except Exception as fault:  # one that breaks is a failed check, and the others are measured
            run.check(f"{label}: {name}", False, f"{type(fault).__name__}: {str(fault)[:300]}")
    clock: Clock = CudaClock(cold=False) if run.device.type == "cuda" else wall_clock
    with torch.no_grad():
        seconds, least = (0.0, 1) if run.toy else (SECONDS, LEAST)
        timings = interleaved(calls, clock, seconds=seconds, least=least, warm_up=1)
    for name, timing in timings.items():
        about = {"network": setting.network, "guide": setting.guide, "batch": setting.batch, "steps": setting.steps}
        facts = {"variant": name, "cache": "warm", "flops": work, "error": compared.errors.get(name)}
        speed = work / timing.median
        text = f"{label:<52} {name:<26} {duration(timing.median / setting.steps):>9} a step, {speed / 1e12:.3g} TFLOP/s"
        run.figure(text, kind="loop", case=label, **about, **facts, **timing.record())


class Comparison:
    """Variants against the same walk in float64, at the batch that is timed, with the engine's own noise in all of them.

    Two steps, and the truth of a few images of the batch: noise belongs to the image's id, so they are the same in any batch. The
    honest error is eager PyTorch's in the variant's precision: the yardstick allows ours twice that. An opponent need only be the
    same function, and is allowed `OPPONENT` times as much.
    """

    def __init__(self, purifier: GuidedPurifier, images: Images) -> None:
        self.short = purifier.configured(num_steps=COMPARED_STEPS)
        self.images, self.few = images, images[:COMPARED_IMAGES]
        self.errors: dict[str, float] = {}
        self.honest: dict[torch.dtype, Images] = {}
        self.truth = self.purified(EagerPurifier(self.short, torch.float64), self.few.double())

    def check(self, run: Run, label: str, name: str, variant: Any) -> None:
        """Hold `variant` to the truth; one that is wrong is a failed check, and is timed all the same."""
        dtype = next(variant.parameters()).dtype
        if dtype not in self.honest:
            honest = EagerPurifier(self.short, dtype, channels_last=dtype == torch.bfloat16)
            self.honest[dtype] = self.purified(honest, self.few)
        ours = isinstance(variant, GuidedPurifier)
        short = variant.configured(num_steps=COMPARED_STEPS) if ours else variant.on_plan(self.short.plan())
        got = self.purified(short, self.images)[: len(self.few)]
        self.errors[name] = error = self._error(got)
        try:
            if ours:
                assert_within_yardstick(got, self.honest[dtype], self.truth)
            assert error <= OPPONENT * self._error(self.honest[dtype]), f"relative error {error:.3g} to float64"
        except AssertionError as fault:
            run.check(label, False, str(fault), error=error)

    def _error(self, result: Images) -> float:
        return float((result.double() - self.truth).norm() / self.truth.norm())

    def purified(self, variant: Any, images: Images) -> Images:
        """By a variant, with the engine's noise of seed and id."""
        ids, key = torch.arange(len(images), device=images.device), self.short.seed

        def noise(like: Images, step: int) -> Images:
            counter, numel = torch.tensor(step, device=like.device), like[0].numel()
            return philox_normal(key, ids, counter, numel, dtype=like.dtype).view_as(like)

        with torch.no_grad():
            return variant(images, ids=ids) if isinstance(variant, GuidedPurifier) else variant(images, noise)


def images_for(purifier: GuidedPurifier, batch: int) -> Images:
    """Random images of the network's size."""
    network, device = purifier.denoiser.unet.config, purifier.seed.device
    shape = batch, network.in_channels, network.image_size, network.image_size
    return torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(batch))


def step_flops(purifier: GuidedPurifier) -> int:
    """Of one guided step on one image: U-Net forward, guide forward, guide backward to the input."""
    plain = EagerPurifier(purifier)
    image = images_for(purifier, 1)
    target = plain.target(image)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.step(image, target, plain.row(0, image), lambda like, step: like, 0)
    return counter.get_total_flops()


if __name__ == "__main__":
    sys.exit(main())
