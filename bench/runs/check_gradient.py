"""Is the exact gradient right on this device? Against the CPU's: float32 by the yardstick, float64 to nine digits.

    python -m bench check-gradient [--device cuda]     appends to bench/results/checks-MACHINE.jsonl; exit status 1 if it is not
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from bench.core.comparison import compare, nearer_than
from bench.core.run import begin, parser
from purify_engine.benchmark.networks import TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.config import PurifierConfig
from purify_engine.purifier import GuidedPurifier
from purify_engine.testing.yardstick import assert_within_yardstick

BATCH = 4
CENTRAL, SHARE = 1e-9, 0.05


def main(words: list[str]) -> int:
    run, _ = begin("checks", parser("check-gradient", __doc__), words)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name, network in list(TOY_NETWORKS.items())[: 1 if run.toy else None]:
        config = PurifierConfig(t_star=100, num_steps=4)
        single = strongly_guided(random_purifier(network, TOY_GUIDE, config, execution="auto"))
        double = copy.deepcopy(single).double()
        truth, honest = gradient(double), gradient(single)
        blind = gradient(double.configured(gradient="detached_guidance"))
        share = float((truth - blind).norm() / truth.norm())
        run.check(f"gradient {name}, the guide matters", share > SHARE, f"its path is {share:.3g} of the gradient")
        here, here_double = (gradient(copy.deepcopy(each).to(run.device)).cpu() for each in (single, double))
        for precision, got, judge in (
            ("float32", here, assert_within_yardstick), ("float64", here_double, nearer_than(CENTRAL)),
        ):  # fmt: skip
            finding = compare(got, honest, truth, judge)
            run.check(f"gradient {name} {precision}", not finding.fault, finding.says, error=finding.error)
    return run.close()


def strongly_guided(purifier: GuidedPurifier) -> GuidedPurifier:
    """The purifier with so much guidance that a gradient which forgets it is plainly wrong."""
    guidance = purifier.config.guidance
    return purifier.configured(guidance=dataclasses.replace(guidance, scale=10 * guidance.scale))


def gradient(purifier: GuidedPurifier) -> Tensor:
    """Of a fixed linear function of the purified images, in the images; fixed noise."""
    parameter, network = next(purifier.parameters()), purifier.denoiser.unet.config
    shape = BATCH, network.in_channels, network.image_size, network.image_size
    generator = torch.Generator().manual_seed(3)
    # Mid-grey images: the final clamp to [0, 1] must not cut the gradient off.
    drawn, towards = (torch.rand(shape, generator=generator, dtype=torch.float64).to(parameter) for _ in range(2))
    images = (0.4 + 0.2 * drawn).requires_grad_()
    ids = torch.arange(BATCH, device=parameter.device)
    (grad,) = torch.autograd.grad((purifier(images, ids=ids) * towards).sum(), images)
    return grad
