"""What a faster way does to the final images, and to a classifier's verdicts on them: what is promised where bits are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.core.comparison import compare, within
from bench.core.run import Run
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Images

SAME = 200.0  # decibels that are said of equal images


def compare_final_images(
    run: Run, label: str, single: GuidedPurifier, images: Images, calls: Mapping[str, Callable[[], Images]], **facts: Any
) -> None:
    """Hold the images by all ways to float32's: at most twice as far as by none; say how far, and whose verdicts agree.

    calls: "all on" and "all off", in low precision. single: the purifier in float32, whose guide gives the verdicts.
    """
    with no_tf32():
        truth = purified(single, images)
        expected = verdicts(single, truth)
    results = {name: call() for name, call in calls.items()}
    finding = compare(results["all on"], results["all off"], truth.double(), within(2))
    says = finding.fault or f"relative error {finding.error:.3g} to float32"
    run.check(f"{label}: final images by all ways", not finding.fault, says, error=finding.error)
    for name, result in results.items():
        with no_tf32():
            agreeing = int((verdicts(single, result) == expected).sum())
        decibels = psnr(result, truth)
        text = f"{label}: {name}: {decibels:.1f} dB to float32, {agreeing} of {len(expected)} verdicts the same"
        told = {"variant": name, "psnr": decibels, "agreeing": agreeing, "classes": int(expected.unique().numel())}
        run.figure(text, kind="images", case=label, **facts, **told)
    run.headline(f"PSNR of all on to all off, dB, {label}", round(psnr(results["all on"], results["all off"]), 1))


def purified(purifier: GuidedPurifier, images: Images) -> Images:
    """With the noise of ids 0, 1, …; differentiable where autograd records."""
    return purifier(images, ids=torch.arange(len(images), device=images.device))


@torch.no_grad()
def verdicts(purifier: GuidedPurifier, images: Images) -> Tensor:
    """The classes that the guide sees."""
    assert purifier.guide is not None
    return purifier.guide(images).argmax(1)


def psnr(one: Images, other: Images) -> float:
    """Decibels, of images in [0, 1]."""
    error = (one.double() - other.double()).square().mean()
    return SAME if error == 0 else -10 * float(error.log10())


@contextmanager
def no_tf32() -> Iterator[None]:
    """float32 that is float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
