"""Is the exact gradient right on this device? Against the CPU's in float64: float64 to nine digits, float32 by honest PyTorch.

The largest error of a few images is luck: some images are so sensitive that honest PyTorch itself errs by four times as much as
on others. So both sides are judged by medians over several draws, of every pixel and of every place in the batch: a fault of one
of them shows. The worst single error has a limit of its own.

    python -m bench check-gradient [--device cuda]     appends to bench/results/checks-MACHINE.jsonl; exit status 1 if it is not
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from bench.core.comparison import compare, nearer_than
from bench.core.run import begin, parser
from purify_engine import ops
from purify_engine.benchmark.networks import TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.config import PurifierConfig
from purify_engine.purifier import GuidedPurifier

BATCH, DRAWS = 4, 8
WORST = 10  # times honest PyTorch's largest error: what the most sensitive of 32 images may take, and no fault would
CENTRAL, SHARE = 1e-9, 0.05


def main(words: list[str]) -> int:
    run, _ = begin("checks", parser("check-gradient", __doc__), words)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name, network in list(TOY_NETWORKS.items())[: 1 if run.toy else None]:
        config = PurifierConfig(t_star=100, num_steps=4)
        single = strongly_guided(random_purifier(network, TOY_GUIDE, config, execution="auto"))
        double = copy.deepcopy(single).double()
        truth = gradient(double)
        plain = GuidedPurifier(*copy.deepcopy((single.denoiser, single.guide)), single.config, execution="loop")
        with ops.backend("reference"):
            honest = gradient(plain.to(run.device)).cpu()
        blind = gradient(double.configured(gradient="detached_guidance"))
        share = float((truth - blind).norm() / truth.norm())
        run.check(f"gradient {name}, the guide matters", share > SHARE, f"its path is {share:.3g} of the gradient")
        here, here_double = (gradient(copy.deepcopy(each).to(run.device)).cpu() for each in (single, double))
        for precision, got, judge in (
            ("float32", here, as_good_as_honest), ("float64", here_double, nearer_than(CENTRAL)),
        ):  # fmt: skip
            finding = compare(got, honest, truth, judge)
            run.check(f"gradient {name} {precision}", not finding.fault, finding.says, error=finding.error)
    return run.close()


def strongly_guided(purifier: GuidedPurifier) -> GuidedPurifier:
    """The purifier with so much guidance that a gradient which forgets it is plainly wrong."""
    guidance = purifier.config.guidance
    return purifier.configured(guidance=dataclasses.replace(guidance, scale=10 * guidance.scale))


def as_good_as_honest(got: Tensor, honest: Tensor, truth: Tensor, magnitude: Any = None) -> None:
    """A judge of stacked draws: typically at most twice as wrong as honest PyTorch, plus one rounding; nowhere `WORST` times.

    Of a pixel it is the median over all images that counts, of a place in the batch the median over draws of an image's norm: the
    largest of them is allowed twice honest PyTorch's largest. A NaN anywhere is a failure.
    """
    parts = [part.double().unflatten(0, (-1, BATCH)) for part in (got - truth, honest - truth, truth)]
    judged = ("a pixel", _of_pixels, 2), ("a place in the batch", _of_places, 2), ("an element", abs, WORST)
    for name, measured, times in judged:
        error, honest_error, size = (float(measured(part).max()) for part in parts)
        allowed = times * honest_error + torch.finfo(got.dtype).eps * size
        assert error <= allowed, f"error {error:.3g} of {name} is beyond {allowed:.3g} ({times} x honest PyTorch + one rounding)"


def _of_pixels(draws: Tensor) -> Tensor:
    """[draws, B, C, H, W] -> [C, H, W], what is typical of every pixel."""
    return draws.flatten(0, 1).abs().median(0).values


def _of_places(draws: Tensor) -> Tensor:
    """[draws, B, C, H, W] -> [B], what is typical of every place in the batch."""
    return draws.flatten(2).norm(dim=2).median(0).values


def gradient(purifier: GuidedPurifier) -> Tensor:
    """Of a fixed linear function of the purified images, in the images, with fixed noise: of `DRAWS` batches, stacked."""
    generator = torch.Generator().manual_seed(3)
    return torch.cat([_of_a_draw(purifier, generator) for _ in range(DRAWS)])


def _of_a_draw(purifier: GuidedPurifier, generator: torch.Generator) -> Tensor:
    parameter, network = next(purifier.parameters()), purifier.denoiser.unet.config
    shape = BATCH, network.in_channels, network.image_size, network.image_size
    # Mid-grey images: the final clamp to [0, 1] must not cut the gradient off.
    drawn, towards = (torch.rand(shape, generator=generator, dtype=torch.float64).to(parameter) for _ in range(2))
    images = (0.4 + 0.2 * drawn).requires_grad_()
    ids = torch.arange(BATCH, device=parameter.device)
    (grad,) = torch.autograd.grad((purifier(images, ids=ids) * towards).sum(), images)
    return grad
