"""Low-frequency perturbations by optimised filters (after DiffBreak's LF: Kassis et al. 2024, arXiv 2411.16598)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_engine.config import AttackConfig
from purify_engine.evaluation.ascent import project, step_size
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.draws import Draws, Objective, expected_gradient

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images

BOX, KERNEL = 4, 5  # pixels a side of the boxes that share a filter, and of a filter
SHARPNESS = 8.0  # logits of the filter that an attack starts from: almost all weight on the pixel itself
FILTER_STEP = 0.2  # the first step of a filter's logits, a share of SHARPNESS; it falls to 0


def low_frequency(
    objective: Objective, images: Images, ids: Ids, config: AttackConfig, draws: Draws, chance: Chance
) -> Images:
    """Adversarial images inside the ball, made by filters and by a field that changes slowly over the image.

    Theirs: the image passes through filters whose weights are learned, a softmax for each box of pixels, and a modifier is
    learned beside them, all by signed steps; noise that is added to each pixel on its own does not drown what changes slowly, so
    it is scored by a majority vote over many draws. Ours: one filter of 5 × 5 for each box of 4 × 4 pixels, a field of one value
    a box and channel that is interpolated, and the projection into the norm's ball in place of a bound on LPIPS: comparable with
    other attacks.
    """
    batch, channels, height, width = images.shape
    grid = -(-height // BOX), -(-width // BOX)
    kernels = images.new_zeros(batch, KERNEL * KERNEL, *grid)
    kernels[:, KERNEL * KERNEL // 2] = SHARPNESS
    field = config.epsilon * chance.uniform(channels, *grid, dtype=images.dtype)
    for step in range(config.num_steps):
        grads = _gradients(objective, images, (kernels, field), ids, config, draws, step)
        fading = 1 - step / config.num_steps
        kernels = kernels + FILTER_STEP * SHARPNESS * fading * grads[0].sign()
        field = (field + _largest(config, images) * step_size(config, step) * grads[1].sign()).clamp(-1, 1)
    return _made(images, kernels, field, config)


def filtered(images: Images, kernels: Tensor) -> Images:
    """Each pixel a mean of those around it, weighted by the softmax of its box's `kernels` [B, 25, rows, columns]."""
    height, width = images.shape[2:]
    weights = kernels.softmax(dim=1).repeat_interleave(BOX, dim=2).repeat_interleave(BOX, dim=3)[..., :height, :width]
    padded = F.pad(images, [KERNEL // 2] * 4, mode="replicate")
    patches = padded.unfold(2, KERNEL, 1).unfold(3, KERNEL, 1).flatten(4)  # [B, C, H, W, 25]
    return torch.einsum("bchwk,bkhw->bchw", patches, weights)


def _made(images: Images, kernels: Tensor, field: Tensor, config: AttackConfig) -> Images:
    slow = F.interpolate(field, size=images.shape[2:], mode="bilinear", align_corners=False)
    return project(filtered(images, kernels) + slow, images, config)


def _gradients(
    objective: Objective,
    images: Images,
    learned: tuple[Tensor, Tensor],
    ids: Ids,
    config: AttackConfig,
    draws: Draws,
    step: int,
) -> tuple[Tensor, ...]:
    """Of the loss, summed over the draws of a step, in the filters and in the field: through the image that they make."""
    leaves = [part.detach().requires_grad_() for part in learned]
    with torch.enable_grad():
        made = _made(images, leaves[0], leaves[1], config)
    grad = expected_gradient(objective, made.detach(), ids, draws(step), draws.at_once)
    return torch.autograd.grad(made, leaves, grad)


def _largest(config: AttackConfig, images: Images) -> float:
    """How much larger than a step of the attack one of the field may be: for l_2 the step is of the whole image."""
    return 1.0 if config.norm == "linf" else images[0].numel() ** -0.5 * BOX
