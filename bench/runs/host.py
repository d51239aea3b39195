"""The host's time for a guided step of the loop without graphs, beside eager PyTorch's: what a call pays that cannot be captured.

No GPU is needed, and none is used (`bench/subjects/host_time.py`). Figures of one run may be compared with one another only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.core.run import Run, begin, parser
from bench.subjects.host_time import no_device
from purify_engine.benchmark.eager_baseline import EagerPurifier
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS
from purify_engine.config import GuidanceConfig, PurifierConfig
from purify_engine.devices import place
from purify_engine.models import Classifier, Denoiser, UNet
from purify_engine.purifier import GuidedPurifier

ENGINE, EAGER = "engine, loop", "eager bf16 channels_last"
STEPS, ROUNDS = 10, 15


def main(words: Sequence[str]) -> int:
    """Measure, and say."""
    options = parser("host", __doc__)
    options.set_defaults(device="cpu")
    run, _ = begin("host", options, words)
    for batch in (1,) if run.toy else (1, 64):
        measure(run, batch)
    return run.close()


def measure(run: Run, batch: int) -> None:
    """Lines for one batch size."""
    works = variants(batch, toy=run.toy)
    with no_device(lambda: [work() for work in works.values()]) as counts:
        taken: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(1 if run.toy else ROUNDS):
            for name, work in works.items():
                counts.seconds, started = 0.0, time.thread_time()
                work()
                taken[name].append((time.thread_time() - started - counts.seconds) / STEPS)
        for name, work in works.items():
            counts.kernels = counts.operations = 0
            work()
            launches, operations = counts.kernels / STEPS, counts.operations / STEPS
            median, least = statistics.median(taken[name]), min(taken[name])
            run.figure(
                f"{name}, batch {batch}: {1000 * median:.2f} ms a step; asks for {launches:.0f} kernels in Triton and "
                f"{operations:.0f} operations of PyTorch's",
                kind="host", variant=name, batch=batch, median=median, min=least, triton=launches, operations=operations,
            )  # fmt: skip


def variants(batch: int, *, toy: bool = False) -> dict[str, Callable[[], Any]]:
    """A purification of `STEPS` steps on the meta device by the engine's loop, and by eager PyTorch."""
    network, guide = (TOY_NETWORKS["toy-ddpm"], TOY_GUIDE) if toy else (NETWORKS["ddpm-cifar10"], GUIDES["resnet18"])
    with torch.device("meta"):
        denoiser, classifier = Denoiser(UNet(network)), Classifier(guide)
        images = torch.empty(batch, network.in_channels, network.image_size, network.image_size)
    config = PurifierConfig(t_star=100, num_steps=STEPS, guidance=GuidanceConfig(scale=1.0))
    purifier = place(GuidedPurifier(denoiser, classifier, config, execution="loop"), "meta", "bf16")
    works = {ENGINE: purifier, EAGER: EagerPurifier(purifier, torch.bfloat16, channels_last=True)}
    return {name: torch.no_grad()(lambda work=work: work(images)) for name, work in works.items()}
