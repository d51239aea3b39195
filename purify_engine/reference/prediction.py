"""Networks that put out something else than the noise: eps as a mixture of x_t and what they put out (docs/math.md E27)."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.config import Prediction

SIGMA_DATA = 0.5  # of EDM: the standard deviation that its images are taken to have


def mixture(prediction: Prediction, marginals: Tensor) -> Tensor:
    """(e_x, e_F, gain) of eps = e_x x_t + e_F F(gain x_t) at each marginal: float64 [N, 2] -> [N, 3]."""
    signal, sigma = marginals.unbind(dim=1)
    none, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    if prediction == "eps":
        columns = none, one, one
    elif prediction == "x0":
        columns = 1 / sigma, -signal / sigma, one
    elif prediction == "v":
        columns = sigma, signal, one
    else:
        spread = (sigma.square() + (SIGMA_DATA * signal).square()).sqrt()  # of x_t, where images have SIGMA_DATA
        columns = sigma / spread.square(), -SIGMA_DATA * signal / spread, 1 / spread
    return torch.stack(columns, dim=1)


def edm_label(marginals: Tensor) -> Tensor:
    """What an EDM network is told: ln(sigma / sqrt(alpha_bar)) / 4, EDM's c_noise, at each marginal; [N, 2] -> [N]."""
    signal, sigma = marginals.unbind(dim=1)
    return (sigma / signal).log() / 4
