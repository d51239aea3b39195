"""Compiles what the checks and the guided steps will launch in Triton, on all cores at once, into Triton's cache.

    python -m bench precompile [--processes 16] [--as-used]     appends to bench/results/checks-MACHINE.jsonl

One process finds out what is launched, by doing the work with launches noted instead of made; the others compile, and need no
GPU. Where there is none, it is for one of capability 9.0. The exit status is 1 if something does not compile.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

import torch

from bench.core.comparison import first_line
from bench.core.run import Run, begin, parser
from bench.subjects.checked_cases import wanted
from bench.subjects.compilation import capability_of, compile_for, compile_one
from bench.subjects.launches import Compiled, noted
from bench.subjects.op_case import OpCase
from bench.subjects.purification import PurificationSetting, engine
from purify_engine import ops
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.ops import OPS, switches
from purify_engine.ops.switches import SWITCHES
from purify_engine.purifier import GuidedPurifier

STEPS = 1  # enough to see every launch
MOST_IN_TOY = 2

# What `make gpu` runs, with the batches that choose other tiles; whether the gradient is taken as well.
SETTINGS = (
    (PurificationSetting("ddpm-cifar10", "resnet18", 64, STEPS), True),
    *((PurificationSetting("ddpm-cifar10", "resnet18", batch, STEPS), False) for batch in (256, 1)),
    (PurificationSetting("ddpm-cifar10", "wrn-28-10", 64, STEPS), False),
    (PurificationSetting("ddpmpp-cifar10", "resnet18", 64, STEPS), False),
    (PurificationSetting("adm-imagenet256", "resnet18", 8, STEPS), False),
)


def main(words: list[str]) -> int:
    options = parser("precompile", __doc__)
    options.add_argument("--processes", type=int, default=os.cpu_count(), help="that compile at once")
    options.add_argument("--as-used", action="store_true", help="only guided steps with the switches as they are, and no checks")
    run, chosen = begin("checks", options, words)
    os.environ.pop("TRITON_INTERPRET", None)  # for the processes that compile, and for the kernels that are imported from here on
    capability = capability_of(run.device)
    began = time.monotonic()
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1 if run.toy else chosen.processes, fresh, initializer=compile_for, initargs=(capability,)) as pool:
        found = dict[Compiled, Future[str]]()

        def note(launched: Compiled) -> None:
            if launched not in found and not (run.toy and len(found) >= MOST_IN_TOY):
                found[launched] = pool.submit(compile_one, launched)

        for name, work in everything(run, as_used=chosen.as_used):
            try:  # backward passes in this thread too: engines and switches are a thread's own
                with noted(run.device, note), torch.autograd.set_multithreading_enabled(False):
                    work()
            except Exception as fault:  # what it launched until then is compiled; the checks themselves say what is wrong
                run.note(f"precompile {name}", first_line(fault))
        told = time.monotonic() - began
        faults = [fault for future in as_completed(found.values()) if (fault := future.result())]
    seconds = time.monotonic() - began
    says = f"{len(found) - len(faults)} of {len(found)} compiled in {seconds:.1f} s, all of them known after {told:.1f} s"
    run.check("precompile", not faults, "; first ".join([says, *faults[:1]]), seconds=seconds)
    return run.close()


def everything(run: Run, *, as_used: bool = False) -> Iterator[tuple[str, Callable[[], object]]]:
    """What will launch kernels, by name: the networks first, whose kernels take longest to compile."""
    for setting, with_gradient in SETTINGS[: None if run.device.type == "cuda" else 1]:
        network, guide = (TOY_NETWORKS["toy-ddpm"], TOY_GUIDE) if run.toy else (NETWORKS[setting.network], GUIDES[setting.guide])
        batch = setting.batch if run.device.type == "cuda" else 2
        work = partial(by_every_state, run, network, guide, setting.config, batch)
        yield str(setting), partial(work, with_gradient=with_gradient and not as_used, as_used=as_used)
    if as_used:
        return
    for name, network in TOY_NETWORKS.items():
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            yield f"{name} {dtype}", partial(of_toy, run, network, dtype)
        if run.toy:
            return
    for name, op in OPS.items():
        if callable(op.engines["triton"]):
            yield name, partial(of_op, run, name)


def by_every_state(
    run: Run, network: Any, guide: Any, config: Any, batch: int, *, with_gradient: bool, as_used: bool = False
) -> None:
    """A purification by all ways, and unless `as_used` by none and by all but one."""
    on = {name: switch.default for name, switch in SWITCHES.items()}
    states = [on, dict.fromkeys(on, False), *({**on, name: not value} for name, value in on.items())]
    with ops.backend("reference"):
        purifier = engine(random_purifier(network, guide, config, device=run.device), "loop", low=True)
    purifier = as_loop(purifier)
    images = torch.rand(batch, network.in_channels, network.image_size, network.image_size, device=run.device)
    with _ways_of_a_gpu(run):
        for number, state in enumerate(states[: 1 if as_used else None]):
            with switches.switched(**state):
                purifier(images)
                if with_gradient and number < 2:
                    gradient(purifier, images)


def of_toy(run: Run, network: Any, dtype: torch.dtype) -> None:
    """A small network as the graph and gradient checks run it."""
    with ops.backend("reference"):
        purifier = random_purifier(network, TOY_GUIDE, device=run.device).configured(num_steps=STEPS)
    purifier = as_loop(purifier.to(dtype))
    if dtype == torch.bfloat16:
        purifier = purifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image_dtype = torch.promote_types(dtype, torch.float32)
    images = torch.rand(4, network.in_channels, network.image_size, network.image_size, device=run.device, dtype=image_dtype)
    purifier(images)
    gradient(purifier, images)


def of_op(run: Run, name: str) -> None:
    for case in wanted(name, "triton", run, few_kernels=True):
        with contextlib.suppress(Exception), torch.no_grad():
            OpCase(case, run.device).call("triton")


def as_loop(purifier: GuidedPurifier) -> GuidedPurifier:
    return GuidedPurifier(purifier.denoiser, purifier.guide, purifier.config, execution="loop")


def gradient(purifier: GuidedPurifier, images: torch.Tensor) -> None:
    leaf = images.clone().requires_grad_()
    purifier(leaf).sum().backward()


def _ways_of_a_gpu(run: Run) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if run.device.type == "cuda" else switches.anywhere()
