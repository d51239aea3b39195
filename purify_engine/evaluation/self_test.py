"""Is the gradient that attacks climb the real one? Run before every evaluation and printed in its report.

The purifier is copied to float64 and its noise fixed by draw, so it is a plain function of its input: central
differences along random directions must equal the exact gradient. A purifier whose guide is detached on purpose must
fail the same comparison, or else the comparison cannot tell a wrong gradient. It can only fail where the guide has a share of the
gradient, so that share is measured first.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_engine.engine.masking import masking_is_known
from purify_engine.evaluation.differences import central_differences, errors_along, normal
from purify_engine.images import refuse_other_ranges

if TYPE_CHECKING:
    from purify_engine.purifier import GuidedPurifier
    from purify_engine.types import Images

TOLERANCE = 1e-6  # relative; the median over images and directions, because kinks (ReLU, clamp) spoil single differences
DIFFERENCE_STEP = 1e-6  # small, so that few kinks lie within it; float64 rounding is then near 1e-9
RELEVANT_SHARE = 0.05  # below it a detached guide changes too little to be caught


@dataclass(frozen=True)
class SelfTest:
    """What the self-test saw. Errors are medians over images and directions, relative to the directional derivative."""

    exact_error: float
    detached_error: float
    guide_share: float  # |exact - detached| / |exact|
    guide_matters: bool
    detached_caught: bool  # meaningful only where the guide matters
    passed: bool
    num_images: int
    num_directions: int
    tolerance: float = TOLERANCE


def gradient_self_test(purifier: GuidedPurifier, images: Images, *, num_directions: int = 20, seed: int = 0) -> dict[str, Any]:
    """Is the exact gradient of `purifier` right? Against finite differences in float64, and is a guide cut out of it noticed?

    images: [B, C, H, W] in [0, 1]; eight are plenty. num_directions: random ones along which it is differentiated. seed: of them.
    Gives the fields of `SelfTest`, `passed` and `exact_error` among them.
    """
    refuse_other_ranges(purifier)
    double = copy.deepcopy(purifier).double()
    images = images.double().clamp(0.01, 0.99)  # differences must not leave [0, 1]
    generator = torch.Generator().manual_seed(seed)
    weights, along = (normal(shape, generator, images.device) for shape in (images.shape, (num_directions, *images.shape)))
    exact, detached = (_gradient(double.configured(gradient=mode), images, weights) for mode in ("exact", "detached_guidance"))
    differences = central_differences(partial(_functional, double, weights=weights), images, along, DIFFERENCE_STEP)
    exact_error, detached_error = (float(errors_along(grad, along, differences).median()) for grad in (exact, detached))
    share = float((exact - detached).norm() / exact.norm().clamp(min=1e-300))
    matters = share >= RELEVANT_SHARE
    caught = detached_error > 100 * TOLERANCE
    return asdict(
        SelfTest(
            exact_error=exact_error,
            detached_error=detached_error,
            guide_share=share,
            guide_matters=matters,
            detached_caught=caught,
            passed=exact_error <= TOLERANCE and (caught or not matters),
            num_images=len(images),
            num_directions=num_directions,
        )
    )


def _functional(purifier: GuidedPurifier, images: Images, weights: Tensor) -> Tensor:
    """A random linear functional of each purified image, its noise fixed by draw 0 and its place: [..., B]."""
    ids = torch.arange(len(weights), device=images.device).expand(images.shape[:-3])
    purified = purifier(images.flatten(0, -4), ids=ids.flatten(), draw=0).view(images.shape)
    return (weights * purified).flatten(-3).sum(dim=-1)


@masking_is_known()
def _gradient(purifier: GuidedPurifier, images: Images, weights: Tensor) -> Tensor:
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(_functional(purifier, leaf, weights).sum(), leaf)[0]
