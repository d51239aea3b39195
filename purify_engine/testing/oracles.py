"""A world where the answer is known: Gaussian images make a purification affine, to be written down (docs/math.md E16).

With prior N(m, v) the noised marginal has variance V = alpha_bar v + 1 - alpha_bar and the perfect noise prediction is
eps = sigma (x - sqrt(alpha_bar) m) / V. A quadratic guide pulls with g = -w (x - tau). One step then maps x to
k x - b sigma sqrt(alpha_bar) m / V + d w tau + c z with the gain k = a + b sigma / V - d w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purify_engine.types import Images, NoiseKey, Step


@dataclass(frozen=True)
class GaussianWorld:
    """Prior N(mean, var) in every pixel, and a quadratic guide towards `towards` of strength `pull`."""

    mean: float = 0.2
    var: float = 0.25
    pull: float = 0.0
    towards: float = 0.0

    def denoiser(self, x_net: Images, plan: Any, step: Step) -> Images:
        """The exact noise prediction."""
        signal, sigma = plan.marginal(step).to(x_net.dtype)
        return sigma * (x_net - signal * self.mean) / (signal**2 * self.var + sigma**2)

    reads_eps = False

    def target(self, x: Images) -> tuple[Tensor, ...]:
        return ()

    def grad(
        self, x_t: Images, eps: Images | None, target: tuple[Tensor, ...], plan: Any, step: Step, noise: NoiseKey
    ) -> Images:
        """The quadratic guide's gradient: a world is its own guide."""
        return -self.pull * (x_t - self.towards)

    def gains(self, plan: Any) -> tuple[Tensor, Tensor]:
        """(k, shift) of every step, float64 [N] each: x_j = k x_i + shift + c z."""
        a, b, d, _ = plan.rows.unbind(dim=1)
        signal, sigma = plan.marginals.unbind(dim=1)
        variance = signal**2 * self.var + sigma**2
        k = a + b * sigma / variance - d * self.pull
        return k, -b * sigma * signal * self.mean / variance + d * self.pull * self.towards

    def purified(self, x: Tensor | float, plan: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of the purified `x`, by the recursion over the plan's rows."""
        signal, sigma = plan.start
        mean, variance = signal * x, sigma**2
        for k, shift, c in zip(*self.gains(plan), plan.rows[:, 3], strict=True):
            mean, variance = k * mean + shift, k**2 * variance + c**2
        return mean, variance

    def correlation(self, plan: Any) -> Tensor:
        """rho = alpha_bar* v / V*: how much of an unguided image's deviation from the mean survives."""
        signal, sigma = plan.start
        return signal**2 * self.var / (signal**2 * self.var + sigma**2)


def smooth_denoiser(x_net: Images, plan: Any, step: Step) -> Images:
    """A nonlinear noise prediction with couplings between pixels, smooth to every order: for gradients without luck."""
    signal, sigma = plan.marginal(step).to(x_net.dtype)
    neighbours = x_net.roll(1, dims=-1) - 0.5 * x_net.roll(1, dims=-2)
    return sigma * torch.tanh(x_net + 0.3 * neighbours - 0.1 * signal) + 0.2 * sigma * neighbours.sin()
