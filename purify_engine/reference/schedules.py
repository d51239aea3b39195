"""Noise schedules: how fast an image drowns (docs/math.md E1 to E3, E28).

Tables are computed on the CPU: equal on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purify_engine.config import ScheduleConfig, require


def linear_betas(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """beta_i of the linear (variance preserving) schedule, float64 [T] (E1; Ho et al. 2020).

    At T = 1000 the defaults run from end to end of the VP-SDE's beta(t) = 0.1 + 19.9 t (`VPSDE`), times dt = 1/T.
    """
    return torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64, device="cpu")


def cosine_betas(num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """beta_i of the cosine schedule, float64 [T], each at most `max_beta` (E2; Nichol & Dhariwal 2021, equation 17)."""
    u = torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
    alpha_bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


def scaled_linear_betas(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """beta_i whose square roots are evenly spaced, float64 [T] (E28; latent diffusion, Rombach et al. 2022)."""
    return linear_betas(num_timesteps, beta_start**0.5, beta_end**0.5) ** 2


def sigmoid_betas(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """beta_i along a sigmoid between the two, float64 [T] (E28; GeoDiff, Xu et al. 2022)."""
    return beta_start + (beta_end - beta_start) * torch.sigmoid(linear_betas(num_timesteps, -6.0, 6.0))


@dataclass(frozen=True)
class VPSDE:
    """The continuous process whose grid of T steps a linear schedule is, t in [0, 1] (E1; Song et al. 2021, equation 11).

    beta(t) = T beta_start + T (beta_end - beta_start) t: at the defaults 0.1 + 19.9 t. Index i stands for t = (i + 1) / T.
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def time(self, index: Tensor) -> Tensor:
        """t of a timestep index, float64."""
        return (index.double() + 1) / self.num_timesteps

    def beta(self, t: Tensor) -> Tensor:
        """The rate at which noise comes in at t."""
        return self.num_timesteps * (self.beta_start + (self.beta_end - self.beta_start) * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at t: sigma^2 = 1 - exp(-(integral of beta up to t))."""
        rise = self.num_timesteps * (self.beta_end - self.beta_start)
        return (-torch.expm1(-rise / 2 * t**2 - self.num_timesteps * self.beta_start * t)).sqrt()


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables over the timestep index i = 0 … T - 1, float64 [T]. One schedule serves the forward and the reverse process."""

    betas: Tensor
    times: Tensor  # what the network is told at index i; i itself on the integer grid
    sde: VPSDE | None = None  # the process in continuous time; None where it is not written down, as for a cosine

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar_i, the signal's share of the variance at index i (E3)."""
        return torch.cumprod(1 - self.betas, dim=0)

    def refined(self, factor: int) -> NoiseSchedule:
        """The same noise in `factor` times as many, smaller steps: for studies of step size only.

        Every beta is spread evenly over its `factor` steps, and the network is told fractional times.
        """
        require(factor >= 1, "factor", "at least 1", factor)
        betas = (self.betas / factor).repeat_interleave(factor)
        times = (torch.arange(len(betas), dtype=torch.float64, device=betas.device) + 1) / factor - 1
        sde = self.sde and VPSDE(len(betas), self.sde.beta_start / factor, self.sde.beta_end / factor)
        return NoiseSchedule(betas, times, sde)


def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """The schedule that a configuration names."""
    times = torch.arange(config.num_timesteps, dtype=torch.float64, device="cpu")
    if config.kind == "cosine":
        return NoiseSchedule(cosine_betas(config.num_timesteps), times)
    numbers = config.num_timesteps, config.beta_start, config.beta_end
    if config.kind == "linear":
        return NoiseSchedule(linear_betas(*numbers), times, VPSDE(*numbers))
    return NoiseSchedule({"scaled_linear": scaled_linear_betas, "sigmoid": sigmoid_betas}[config.kind](*numbers), times)
