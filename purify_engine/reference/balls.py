"""The l_inf and l_2 balls that attacks stay in: lengths, steepest ascent, projection. Each image has a ball of its own."""

from __future__ import annotations

from torch import Tensor

from purify_engine.config import require

SMALLEST = 1e-12  # lengths are divided by: what is shorter counts as this long, so that zero stays zero


def lengths(x: Tensor) -> Tensor:
    """Euclidean length of each image of [B, C, H, W], as [B, 1, 1, 1]; at least `SMALLEST`."""
    return x.flatten(1).norm(dim=1).clamp(min=SMALLEST).view(-1, 1, 1, 1)


def steepest_ascent(gradient: Tensor, norm: str) -> Tensor:
    """The direction of length one, in `norm`, that a linear function of this gradient rises along most (Madry et al. 2018).

    `gradient` is [B, C, H, W]; its signs for l_inf, itself over its length for l_2. ValueError: another norm.
    """
    return gradient.sign() if _is_linf(norm) else gradient / lengths(gradient)


def projected(delta: Tensor, norm: str, epsilon: float) -> Tensor:
    """The point of the ball of radius `epsilon` around 0 that is nearest to `delta` [B, C, H, W], in Euclidean distance.

    ValueError: a norm that is neither linf nor l2.
    """
    return delta.clamp(-epsilon, epsilon) if _is_linf(norm) else delta * (epsilon / lengths(delta)).clamp(max=1)


def _is_linf(norm: str) -> bool:
    require(norm in ("linf", "l2"), "norm", "linf or l2", norm)
    return norm == "linf"
