"""The losses that attacks maximise: one number for each image, larger is more wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_engine.config import AttackConfig, require
from purify_engine.devices import in_float32
from purify_engine.evaluation.defences import Defence

if TYPE_CHECKING:
    from purify_engine.models.own import AnyGuide
    from purify_engine.types import Features, Ids, Images, Labels, Logits

Objective = Callable[["Images", "Ids", int], Tensor]  # (images, ids, draw) -> loss [B]


def cross_entropy(logits: Logits, labels: Labels) -> Tensor:
    """-log p(label) [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Logits, labels: Labels) -> Tensor:
    """Largest other logit minus the label's [B] (Carlini & Wagner 2017); positive means misclassified."""
    own = logits.gather(1, labels[:, None])
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own[:, 0]


def dlr(logits: Logits, labels: Labels) -> Tensor:
    """The margin over the gap between first and third logit [B] (Croce & Hein 2020): blind to the logits' scale."""
    require(logits.shape[1] >= 3, "loss", "cross_entropy or margin where there are fewer than 3 classes", "dlr")
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


_ON_LOGITS = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def make_objective(defence: Defence, images: Images, labels: Labels, config: AttackConfig) -> Objective:
    """The loss that `config` maximises on this defence, for these images; `images` are clean."""
    if config.loss == "features":
        return feature_matching(required_guide(defence, "features"), images, labels)
    if config.surface == "guide":
        guide, loss = required_guide(defence, "surface='guide'"), _ON_LOGITS[config.loss]
        return lambda x, ids, draw: loss(guide(x), labels)
    attacked = defence.through(config.gradient, queried=config.kind == "square")
    if config.loss == "joint":
        guide = required_guide(defence, "joint")
        return lambda x, ids, draw: cross_entropy(attacked(x, ids, draw), labels) + cross_entropy(guide(x), labels)
    loss = _ON_LOGITS[config.loss]
    return lambda x, ids, draw: loss(attacked(x, ids, draw), labels)


def feature_matching(guide: AnyGuide, images: Images, labels: Labels) -> Objective:
    """Minus the squared distance of the guide's features to those of the nearest image of another class.

    Latent guidance pulls towards the features of its input: where these are another class's, it pulls to that class.
    """
    with torch.no_grad():
        features = guide.features_and_logits(images)[0]
        target = features[nearest_of_another_class(features, labels)]
    return lambda x, ids, draw: -(guide.features_and_logits(x)[0] - target).square().flatten(1).sum(dim=1)


def nearest_of_another_class(features: Features, labels: Labels) -> Tensor:
    """Index [B] of the closest row whose label differs."""
    require(
        labels.unique().numel() > 1, "labels", "of at least two classes for feature matching", labels.unique().tolist()
    )
    distance = torch.cdist(features.flatten(1), features.flatten(1))
    return distance.masked_fill(labels[:, None] == labels[None, :], torch.inf).argmin(dim=1)


def required_guide(defence: Defence, feature: str) -> AnyGuide:
    """The defence's guide, or an error that names what asked for it."""
    require(defence.guide is not None, "defence", f"guided for {feature}", defence.name)
    assert defence.guide is not None
    return in_float32(defence.guide)
