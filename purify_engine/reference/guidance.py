"""What the guidance maximises, and how strongly it pulls (docs/math.md E10 to E14)."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.types import Features, Images, Logits, Marginal


def label_objective(logits: Logits, label: Tensor) -> Tensor:
    """log p(y | r(x_t)) summed over the batch; `label` is a distribution [B, K], one-hot for a hard label (E10)."""
    return (label * logits.log_softmax(dim=1)).sum()


def latent_objective(features: Features, target: Features) -> Tensor:
    """-D: minus the squared distance of penultimate features, summed per sample and over the batch (E11).

    A sum, never a mean: an average over the batch would divide every image's guidance by the batch size.
    """
    return -(features - target).square().sum()


def pixel_gradient(x_t: Images, target_t: Images) -> Images:
    """Gradient of -||x_t - x'_t||^2, the distance to the equally noised input, by hand (E12; Wang et al. 2022, GDMP)."""
    return -2 * (x_t - target_t)


def tweedie(x_t: Images, eps: Images, marginal: Marginal) -> Images:
    """E[x_start | x_t] = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar) (E6)."""
    signal, sigma = marginal.to(x_t.dtype)
    return (x_t - sigma * eps) / signal


def normalise(grad: Images, marginal: Marginal, norm_eps: float) -> Images:
    """The gradient at the length sqrt(n) / sigma, so that the scale s is the ratio r itself (E14); n = dimensions of an image."""
    _, sigma = marginal.to(grad.dtype)
    length = grad.flatten(1).square().sum(dim=1).add(norm_eps**2).sqrt()
    reach = grad.shape[1:].numel() ** 0.5 / (sigma * length)
    return grad * reach.view(-1, 1, 1, 1)


def pull_ratio(grad: Images, marginal: Marginal, guidance_scale: float | Tensor) -> Tensor:
    """r = s ||grad G|| sigma / sqrt(n) of each image, [B]: guidance beside unit noise prediction (E13)."""
    _, sigma = marginal.to(grad.dtype)
    return guidance_scale * grad.flatten(1).norm(dim=1) * sigma / grad.shape[1:].numel() ** 0.5


def one_hot(labels: Tensor, like: Logits) -> Tensor:
    """Hard labels [B] as a distribution [B, K] in the logits' dtype."""
    return torch.nn.functional.one_hot(labels, like.shape[1]).to(like.dtype)
