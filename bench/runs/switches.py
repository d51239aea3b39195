"""What each faster way on GPUs brings, and does to images: guided steps with all of them, with none, and with each one off.

    python -m bench switches [--batch 64]     appends to bench/results/switches-MACHINE.jsonl

Captured calls of ten steps in bfloat16 and channels_last, replayed in turn, on photographs. The most telling first: all on beside
all off at every batch, and what becomes of the final image and of a classifier's verdict on it; then each way off by itself; the
gradient; the loop without graphs. In a dry run no way is taken, since all of them want a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.core.comparison import first_line
from bench.core.run import Run, begin, parser
from bench.subjects.final_images import compare_final_images, purified
from bench.subjects.photographs import photographs
from bench.subjects.purification import PurificationSetting, engine
from bench.subjects.timed_purifiers import purifier_of
from purify_engine import ops
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.harness import Clock, CudaClock, Timing, interleaved, wall_clock
from purify_engine.ops import switches
from purify_engine.ops.switches import SWITCHES
from purify_engine.purifier import Execution, GuidedPurifier
from purify_engine.types import Images

SECONDS = {"whole": 2.0, "single": 2.0, "gradient": 3.0, "loop": 1.5}  # of timing, for all that are timed in turn
CAPTURE = 6.0  # seconds that must be left for another measurement to begin: it is captured and checked before it is timed
AT_ONCE = 4  # graphs that are kept at once beside the one with all ways on, for the memory's sake
GRADIENT_STEPS = 3
PER_IMAGE = {"adm-imagenet256": 3e9}  # bytes that the graphs of one measurement take; of the others:
PER_CIFAR_IMAGE = 8e7

ON = {name: switch.default for name, switch in SWITCHES.items()}
OFF = dict.fromkeys(SWITCHES, False)
ONLY_FOR = {"affine_relu": "wrn-28-10", "pixel_key": "pixel"}  # ways that no other guide takes

CIFAR = tuple(PurificationSetting("ddpm-cifar10", "resnet18", batch) for batch in (256, 64, 1))
OTHERS = (
    PurificationSetting("ddpm-cifar10", "wrn-28-10", 64),
    PurificationSetting("ddpmpp-cifar10", "resnet18", 64),
    PurificationSetting("adm-imagenet256", "resnet18", 8, 2),
)


class Subject(NamedTuple):
    """A purifier in float32, its copy in bfloat16 on a GPU, and photographs."""

    setting: PurificationSetting
    single: GuidedPurifier
    low: GuidedPurifier
    images: Images
    facts: dict[str, Any]
    label: str

    @property
    def name(self) -> str:
        return f"{self.setting.network}+{self.setting.guide} B={self.setting.batch}"


def main(words: list[str]) -> int:
    options = parser("switches", __doc__)
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    run, chosen = begin("switches", options, words)
    known = (*CIFAR[1:], OTHERS[0]) if run.toy else (*CIFAR, *OTHERS)
    settings = [setting for setting in known if chosen.batch is None or setting.batch in chosen.batch]
    plans: list[tuple[Callable[[Run, Subject], None], PurificationSetting]] = [
        *((whole, setting) for setting in settings if setting in CIFAR),
        *((gradient, setting) for setting in settings if setting == CIFAR[1]),
        *((one_by_one, setting) for setting in settings if setting in CIFAR),
        *((loop, setting) for setting in settings if setting == CIFAR[2]),
        *((both, setting) for setting in settings if setting in OTHERS),
    ]
    with torch.autograd.set_multithreading_enabled(False):  # the switches of this thread are then those of backward passes too
        for measure, setting in plans:
            one(run, measure, setting)
    return run.close()


def one(run: Run, measure: Callable[[Run, Subject], None], setting: PurificationSetting) -> None:
    """One measurement, or a line that says why not."""
    if run.seconds_left < CAPTURE:
        run.note(f"{measure.__name__} {setting}", "not measured: no time left")
    elif reason := too_large(run, setting):
        run.note(f"{measure.__name__} {setting}", f"not measured: {reason}")
    else:
        measure(run, subject(run, setting))
        tidy(run)


def too_large(run: Run, setting: PurificationSetting) -> str:
    """Why a setting is not for this GPU; nothing where it is."""
    if run.device.type != "cuda":
        return ""
    if torch.cuda.get_device_capability(run.device) < (8, 0):
        return "this GPU has no bfloat16"
    free, needed = torch.cuda.mem_get_info(run.device)[0], setting.batch * PER_IMAGE.get(setting.network, PER_CIFAR_IMAGE)
    return f"it takes about {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free" if needed > free else ""


def subject(run: Run, setting: PurificationSetting) -> Subject:
    gpu = run.device.type == "cuda"
    single = purifier_of(run, setting)
    images, which = photographs(2 if run.toy else setting.batch, single.denoiser.unet.config.image_size)
    facts = {"network": setting.network, "guide": setting.guide, "batch": setting.batch, "steps": setting.steps, "inputs": which}
    low = engine(single, "graph" if gpu else "loop", low=gpu)
    return Subject(setting, single, low, images.to(run.device), facts, f"toy {setting}" if run.toy else str(setting))


def taken(purifier: GuidedPurifier, state: Mapping[str, bool], work: Callable[[GuidedPurifier], Tensor]) -> Callable[[], Tensor]:
    """`work` on a sibling with graphs of its own, by the ways of one state of the switches."""
    own = purifier.configured()

    def call() -> Tensor:
        with switches.switched(**state), algorithms_of(state):
            return work(own)

    return call


@contextmanager
def algorithms_of(state: Mapping[str, bool]) -> Iterator[None]:
    """Let cuDNN's choice with and without a longer search be kept apart.

    PyTorch remembers the algorithm of each convolution by a key that holds whether TF32 is allowed, but not how long the search
    was; and in bfloat16 TF32 changes nothing else.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, state["benchmark_limit"]
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def whole(run: Run, about: Subject) -> None:
    """All ways on beside all off: time, and the final images of both beside float32's."""
    work = partial(purified, images=about.images)
    calls = {"all on": taken(about.low, ON, work), "all off": taken(about.low, OFF, work)}
    ready = runnable(run, about, calls)
    for name, timing in timed(run, about, ready, "whole").items():
        run.headline(f"{name}, ms a step, {about.name}", round(1e3 * timing.median / about.setting.steps, 3))
    if set(ready) == set(calls):
        compare_final_images(run, about.label, about.single, about.images, ready, **about.facts)


def one_by_one(run: Run, about: Subject) -> None:
    """Each way the other way round, beside all as they are: few at once, each few with all on beside them."""
    work = partial(purified, images=about.images)
    names = [name for name in SWITCHES if ONLY_FOR.get(name, about.setting.guide) == about.setting.guide]
    for first in range(0, len(names), AT_ONCE):
        few = names[first : first + AT_ONCE]
        if run.seconds_left < CAPTURE or (run.toy and first and about.setting != CIFAR[1]):
            run.note(f"one_by_one {about.label}: {', '.join(names[first:])}", "not measured: no time left")
            return
        states = {f"{name} {'off' if ON[name] else 'on'}": {**ON, name: not ON[name]} for name in few}
        calls = {"all on": taken(about.low, ON, work)}
        calls |= {name: taken(about.low, state, work) for name, state in states.items()}
        timings = timed(run, about, runnable(run, about, calls), "single")
        for name, timing in timings.items():
            if name != "all on" and "all on" in timings:
                differs = 1e3 * (timing.median - timings["all on"].median) / about.setting.steps
                run.headline(f"{name}, ms a step more, {about.name}", round(differs, 4))
        del calls, timings
        tidy(run)


def both(run: Run, about: Subject) -> None:
    """All on beside all off, then one by one while there is time."""
    whole(run, about)
    tidy(run)
    one_by_one(run, about)


def gradient(run: Run, about: Subject) -> None:
    """The exact gradient of a purification, captured, by all ways and by none, beside the loop on PyTorch's own operations."""
    toward = torch.rand(about.images.shape, generator=torch.Generator().manual_seed(1)).to(about.images)
    work = partial(differentiated, images=about.images, toward=toward)
    low, looped = (each.configured(num_steps=GRADIENT_STEPS) for each in (about.low, as_loop(about.low)))

    def in_pytorch() -> Tensor:
        with ops.backend("reference"):
            return work(looped)

    calls = {"gradient, all on": taken(low, ON, work), "gradient, all off": taken(low, OFF, work)}
    calls["gradient, PyTorch's operations"] = taken(looped, OFF, lambda _: in_pytorch())
    timings = timed(run, about, runnable(run, about, calls), "gradient", steps=GRADIENT_STEPS)
    for name, timing in timings.items():
        run.headline(f"{name}, ms a step, {about.name}", round(1e3 * timing.median / GRADIENT_STEPS, 3))


def loop(run: Run, about: Subject) -> None:
    """The loop without graphs, which is bound by the host: by all ways, by none, and by PyTorch's own operations."""
    looped, work = as_loop(about.low), partial(purified, images=about.images)

    def in_pytorch(purifier: GuidedPurifier) -> Tensor:
        with ops.backend("reference"):
            return work(purifier)

    calls = {"loop, all on": taken(looped, ON, work), "loop, all off": taken(looped, OFF, work)}
    calls["loop, PyTorch's operations"] = taken(looped, OFF, in_pytorch)
    timings = timed(run, about, runnable(run, about, calls), "loop")
    for name, timing in timings.items():
        run.headline(f"{name}, ms a step, {about.name}", round(1e3 * timing.median / about.setting.steps, 2))


def as_loop(purifier: GuidedPurifier) -> GuidedPurifier:
    execution: Execution = "loop"
    return GuidedPurifier(purifier.denoiser, purifier.guide, purifier.config, execution=execution)


def differentiated(purifier: GuidedPurifier, images: Images, toward: Images) -> Images:
    """The gradient of a fixed linear function of the purified images."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        (grad,) = torch.autograd.grad((purified(purifier, leaf) * toward).sum(), leaf)
    return grad


def runnable(run: Run, about: Subject, calls: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """Those that run and give finite images. They are captured here, so that one that cannot be is a failed check and no more."""
    ready = {}
    for name, call in calls.items():
        try:
            finite = bool(call().isfinite().all())
        except torch.OutOfMemoryError:
            run.note(f"{about.label}: {name}", "not measured: out of memory")
        except Exception as fault:  # whatever a way does wrong is one line here, and the others are measured
            run.check(f"{about.label}: {name}", False, first_line(fault))
        else:
            if finite:
                ready[name] = call
            else:
                run.check(f"{about.label}: {name}", False, "the images are not finite")
    return ready


def timed(
    run: Run, about: Subject, calls: Mapping[str, Callable[[], Tensor]], kind: str, steps: int | None = None
) -> dict[str, Timing]:
    """Seconds of each call, in turn."""
    clock: Clock = CudaClock(cold=False) if run.device.type == "cuda" else wall_clock
    steps = steps or about.setting.steps
    timings = interleaved(calls, clock, seconds=0 if run.toy else SECONDS[kind], least=1 if run.toy else 5, warm_up=1)
    facts = {**about.facts, "steps": steps, "measure": kind}
    for name, timing in timings.items():
        text = f"{about.label:<46} {name:<28} {duration(timing.median / steps):>9} a step"
        run.figure(text, kind="switch", case=about.label, variant=name, **facts, **timing.record())
    return timings


def tidy(run: Run) -> None:
    """Give back the memory of graphs that are no longer used."""
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
