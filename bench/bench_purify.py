"""Whole purifications under pytest-benchmark, for a quick look at one machine: `pytest bench/bench_purify.py`.

The embedded digits on the CPU; on a GPU also the CIFAR-10 network with random weights. The documents' figures come from
bench_loop.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from bench.bench_loop import Setting, engine, images_for
from purify_engine.benchmark.eager_baseline import BASELINES
from purify_engine.benchmark.networks import GUIDES, NETWORKS, random_purifier
from purify_engine.purifier import GuidedPurifier

GPU = torch.cuda.is_available()
SUBJECTS = ["digits", *(["ddpm-cifar10"] if GPU else [])]
VARIANTS = ["engine graph", "engine loop", *(name for name in BASELINES if GPU or "bf16" not in name)]


@cache
def subject(name: str) -> GuidedPurifier:
    """A purifier in float32, where it is measured."""
    if name == "digits":
        return GuidedPurifier.from_pretrained("digits").to("cuda" if GPU else "cpu")
    return random_purifier(NETWORKS[name], GUIDES["resnet18"], Setting(name, "resnet18", 1).config, device="cuda")


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SUBJECTS)
@torch.no_grad()
def test_purification(benchmark: Any, name: str, variant: str, batch: int) -> None:
    purifier = subject(name)
    ours = variant.removeprefix("engine ") if variant.startswith("engine") else None
    run = engine(purifier, execution=ours, low=GPU) if ours else BASELINES[variant](purifier)  # type: ignore[arg-type]
    images = images_for(purifier, batch)

    def purify() -> torch.Tensor:
        purified = run(images)
        if GPU:
            torch.cuda.synchronize()
        return purified

    purify()  # allocates, compiles, captures
    purified = benchmark(purify)
    assert purified.shape == images.shape and purified.min() >= 0 and purified.max() <= 1
