"""Where a guided step's time goes: kernels by groups, launches and milliseconds a step, as the profiler sees replays of graphs.

    python -m bench profile     appends to bench/results/profile-MACHINE.jsonl, and every kernel's name to profile-MACHINE.txt

A step is the difference of a long call and a short one over the steps between them: what a call does once is not in it. The times
are busy times; where the two networks run side by side their sum is more than a step takes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from bench.core.comparison import first_line
from bench.core.run import Run, begin, parser
from bench.subjects.kernel_groups import group_of
from bench.subjects.photographs import photographs
from bench.subjects.purification import PurificationSetting, engine
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.purifier import GuidedPurifier

LONG, SHORT = 12, 2  # steps
NAMES = 40  # the most that are listed of a setting

GPU_SETTINGS = tuple(
    PurificationSetting(network, guide, batch, LONG)
    for network, guide, batch in (
        ("ddpm-cifar10", "resnet18", 256), ("ddpm-cifar10", "resnet18", 64), ("ddpm-cifar10", "resnet18", 1),
        ("ddpm-cifar10", "wrn-28-10", 64), ("adm-imagenet256", "resnet18", 8),
    )
)  # fmt: skip


class Busy(NamedTuple):
    """Launches and seconds by the name of a kernel."""

    count: Counter[str]
    seconds: Counter[str]


def main(words: list[str]) -> int:
    run, _ = begin("profile", parser("profile", __doc__), words)
    for setting in GPU_SETTINGS[: 1 if run.toy else None]:
        if run.seconds_left < 5:
            run.note(str(setting), "not profiled: no time left")
            continue
        try:
            told(run, setting, a_step(run, setting))
        except (RuntimeError, torch.OutOfMemoryError) as fault:
            run.check(f"profile {setting}", False, first_line(fault))
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    return run.close()


def a_step(run: Run, setting: PurificationSetting) -> Busy:
    """What one step of the engine as it is used launches, and for how long."""
    network, guide = (TOY_NETWORKS["toy-ddpm"], TOY_GUIDE) if run.toy else (NETWORKS[setting.network], GUIDES[setting.guide])
    gpu = run.device.type == "cuda"
    long = engine(random_purifier(network, guide, setting.config, device=run.device), "graph" if gpu else "loop", low=gpu)
    batch = 2 if run.toy else setting.batch
    images = photographs(batch, network.image_size)[0].to(run.device)
    short = long.configured(num_steps=SHORT)
    more, fewer = (_busy(purifier, images, gpu=gpu) for purifier in (long, short))
    steps = LONG - SHORT
    count = Counter({name: round((number - fewer.count[name]) / steps, 1) for name, number in more.count.items()})
    seconds = Counter({name: (taken - fewer.seconds[name]) / steps for name, taken in more.seconds.items()})
    return Busy(count, seconds)


@torch.no_grad()
def _busy(purifier: GuidedPurifier, images: torch.Tensor, *, gpu: bool) -> Busy:
    for _ in range(2):  # captures, then replays once
        purifier(images)
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        purifier(images)
        if gpu:
            torch.cuda.synchronize()
    count, seconds = Counter[str](), Counter[str]()
    for event in seen.events() or ():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == gpu:
            count[event.name] += 1
            seconds[event.name] += 1e-6 * (event.time_range.elapsed_us() if gpu else event.self_cpu_time_total)
    return Busy(count, seconds)


def told(run: Run, setting: PurificationSetting, busy: Busy) -> None:
    """A line a group, the longest first, and a table of kernels for people."""
    groups: dict[str, list[Any]] = {}
    for name, seconds in busy.seconds.items():
        group = groups.setdefault(group_of(name), [0.0, 0.0])
        group[0], group[1] = group[0] + busy.count[name], group[1] + seconds
    facts = {"network": setting.network, "guide": setting.guide, "batch": setting.batch}
    total = sum(busy.seconds.values())
    for group, (launches, seconds) in sorted(groups.items(), key=lambda item: -item[1][1]):
        text = f"{setting}: {group:<28} {launches:6.1f} launches {1e3 * seconds:8.4f} ms a step, {100 * seconds / total:3.0f} %"
        run.figure(text, kind="profile", group=group, launches=launches, seconds=seconds, **facts)
    launches = sum(busy.count.values())
    text = f"{setting}: {launches:.0f} launches, busy for {1e3 * total:.4g} ms a step"
    run.figure(text, kind="profile", group="all", launches=launches, seconds=total, **facts)
    if run.device.type == "cuda":
        name = f"{setting.network}+{setting.guide} B={setting.batch}"
        run.headline(f"launches a step, {name}", round(launches))
        run.headline(f"busy ms a step, {name}", round(1e3 * total, 3))
    with run.records.path.with_suffix(".txt").open("a") as file:
        file.write(f"\n{setting}, run {run.records.common['run']}\nlaunches       µs  group, kernel\n")
        for name, seconds in busy.seconds.most_common(NAMES):
            file.write(f"{busy.count[name]:8.1f} {1e6 * seconds:8.1f}  {group_of(name)}: {name[:300]}\n")
