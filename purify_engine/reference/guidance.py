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


def objective_gradient(
    features: Features, logits: Logits, target: Features, label: Tensor | None, weight: Tensor, weights: tuple[float, float]
) -> Features:
    """The gradient of w_y E10 + w_d E11 to the features [B, F], by hand; `weights` = (w_y, w_d), `weight` [K, F] the logits'.

    w_y (label - p) weight - 2 w_d (features - target), `label` a distribution or None. A probability near 1 is subtracted from a
    label in float32 at least: in 16 bits nothing would be left.
    """
    of_label, of_features = weights
    apart = features - target
    if label is None:
        return -2 * of_features * apart
    wide = torch.promote_types(logits.dtype, torch.float32)
    to_logits = (label - logits.to(wide).softmax(dim=1)).to(logits.dtype)
    return torch.addmm(apart, to_logits, weight, beta=-2 * of_features, alpha=of_label)


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
