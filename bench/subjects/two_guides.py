"""Two guides as one: what either sees of an image, side by side."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from purify_engine.models.own import GuideNetwork, OwnGuide
from purify_engine.types import Images, Logits


class _Together(nn.Module):
    """Both networks in one; `features` passes both feature vectors on, each of mean square 1 over known images."""

    def __init__(self, guides: tuple[GuideNetwork, GuideNetwork], sizes: list[float]) -> None:
        super().__init__()
        self.guides, self.sizes, self.features = nn.ModuleList(cast(list[nn.Module], [*guides])), sizes, nn.Identity()

    def forward(self, images: Images) -> Logits:
        seen = [cast(GuideNetwork, guide).features_and_logits(images) for guide in self.guides]
        parts = [features.flatten(1) / size for (features, _), size in zip(seen, self.sizes, strict=True)]
        self.features(torch.cat(parts, dim=1))
        return torch.stack([logits.log_softmax(dim=1) for _, logits in seen]).mean(dim=0)


@torch.no_grad()
def two_guides(first: GuideNetwork, second: GuideNetwork, known: Images) -> OwnGuide:
    """A guide that sees what either sees: their features on one scale, and the geometric mean of their probabilities.

    known: training images [B, C, H, W] in [0, 1], which the scale of the features is taken from.
    """
    sizes = [float(guide.features_and_logits(known)[0].square().mean().sqrt()) for guide in (first, second)]
    return OwnGuide(_Together((first, second), sizes), features="features")
