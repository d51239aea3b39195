"""The losses that attacks maximise: one number for each image, larger is more wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_engine.config import AttackConfig, require
from purify_engine.devices import in_float32
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.draws import Objective

if TYPE_CHECKING:
    from purify_engine.models.own import AnyGuide
    from purify_engine.types import Features, Ids, Images, Labels, Logits

    LogitsOf = Callable[[Images, Ids, "int | Tensor"], Logits]


def cross_entropy(logits: Logits, labels: Labels, target: Labels | None = None) -> Tensor:
    """-log p(label) [B]; with a `target` log p(target)."""
    loss = F.cross_entropy(logits, labels if target is None else target, reduction="none")
    return loss if target is None else -loss


def margin(logits: Logits, labels: Labels, target: Labels | None = None) -> Tensor:
    """Largest other logit minus the label's [B] (Carlini & Wagner 2017); positive means misclassified. With a `target`, its logit
    minus the label's."""
    own = logits.gather(1, labels[:, None])
    if target is not None:
        return (logits.gather(1, target[:, None]) - own)[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own[:, 0]


def dlr(logits: Logits, labels: Labels, target: Labels | None = None) -> Tensor:
    """The margin over the gap between first and third logit [B] (Croce & Hein 2020): blind to the logits' scale. With a `target`
    over the gap between the first and the mean of third and fourth, their targeted DLR."""
    least = 3 if target is None else 4
    require(logits.shape[1] >= least, "loss", f"cross_entropy or margin where there are fewer than {least} classes", "dlr")
    ordered = logits.sort(dim=1, descending=True).values
    last = ordered[:, 2] if target is None else (ordered[:, 2] + ordered[:, 3]) / 2
    return margin(logits, labels, target) / (ordered[:, 0] - last + 1e-12)


_ON_LOGITS = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def make_objective(
    defence: Defence,
    images: Images,
    labels: Labels,
    config: AttackConfig,
    *,
    target: Labels | None = None,
    pool: tuple[Images, Labels] | None = None,
    other: int | None = None,
    margins: bool = False,
) -> Objective:
    """The loss that `config` maximises on this defence, for these images; `images` are clean.

    target: int64 [B], the classes to attack towards; None: away from the labels. pool: images and labels among which feature
    matching finds what to aim at; None: `images`. other: of other classifiers, which to attack; None: all of them together.
    margins: give the margin of the verdict beside the loss, where the loss is one of logits.
    """
    if config.loss == "features":
        return feature_matching(required_guide(defence, "features"), images, labels, pool)
    logits = attacked_logits(defence, config, other)
    if config.loss == "joint":
        return partial(_joint, logits, required_guide(defence, "joint"), labels, target)
    return partial(_of_logits, logits, config, labels, target, margins)


def attacked_logits(defence: Defence, config: AttackConfig, other: int | None = None) -> LogitsOf:
    """What the attack differentiates: the defence by a gradient mode, its guide alone, or other classifiers."""
    if config.surface == "guide":
        guide = required_guide(defence, "surface='guide'")
        return lambda x, ids, draw: guide(x)
    if config.surface == "others":
        require(bool(defence.others), "defence", "given other classifiers for surface='others'", defence.name)
        chosen = defence.others if other is None else defence.others[other : other + 1]
        return lambda x, ids, draw: torch.stack([network(x).log_softmax(dim=1) for network in chosen]).mean(dim=0)
    return defence.through(config.gradient, queried=config.kind in ("square", "spsa"))


def _of_logits(
    logits: LogitsOf,
    config: AttackConfig,
    labels: Labels,
    target: Labels | None,
    margins: bool,
    x: Images,
    ids: Ids,
    draw: int | Tensor,
) -> Tensor:
    found, own = logits(x, ids, draw), tiled(labels, x)
    loss = _ON_LOGITS[config.loss](found, own, None if target is None else tiled(target, x))
    if config.margin_cap is not None and config.loss == "margin":
        loss = loss.clamp(max=config.margin_cap)
    return torch.stack([loss, margin(found.detach(), own)], dim=1) if margins else loss


def _joint(
    logits: LogitsOf, guide: AnyGuide, labels: Labels, target: Labels | None, x: Images, ids: Ids, draw: int | Tensor
) -> Tensor:
    labels, target = tiled(labels, x), None if target is None else tiled(target, x)
    return cross_entropy(logits(x, ids, draw), labels, target) + cross_entropy(guide(x), labels, target)


def tiled(rows: Tensor, x: Tensor) -> Tensor:
    """`rows` [B, ...] as often as `x` [n * B, ...] holds the batch, draw by draw."""
    return rows if len(rows) == len(x) else rows.repeat(len(x) // len(rows), *(1 for _ in rows.shape[1:]))


def feature_matching(
    guide: AnyGuide, images: Images, labels: Labels, pool: tuple[Images, Labels] | None = None
) -> Objective:
    """Minus the squared distance of the guide's features to those of the nearest image of another class, out of `pool`.

    Latent guidance pulls towards the features of its input: where these are another class's, it pulls to that class. Where the
    pool has no image of another class than an image's, it is the squared distance to the image's own clean features.
    """
    others, classes = (images, labels) if pool is None else pool
    with torch.no_grad():
        own, known = guide.features_and_logits(images)[0], guide.features_and_logits(others)[0]
        has_other = (labels[:, None] != classes[None, :]).any(dim=1)
        aim, sign = own.clone(), torch.where(has_other, -1.0, 1.0)
        if bool(has_other.any()):
            nearest = nearest_of_another_class(own[has_other], labels[has_other], known, classes)
            aim[has_other] = known[nearest]

    def objective(x: Images, ids: Ids, draw: int | Tensor) -> Tensor:
        distance = (guide.features_and_logits(x)[0] - tiled(aim, x)).square().flatten(1).sum(dim=1)
        return tiled(sign, x) * distance

    return objective


def nearest_of_another_class(
    features: Features, labels: Labels, known: Features | None = None, classes: Labels | None = None
) -> Tensor:
    """Index [B] of the closest of the `known` features whose label, of `classes`, differs; None: among `features` themselves."""
    known, classes = (features, labels) if known is None or classes is None else (known, classes)
    differs = labels[:, None] != classes[None, :]
    allowed = "of at least two classes for feature matching"
    require(bool(differs.any(dim=1).all()), "labels", allowed, classes.unique().tolist())
    distance = torch.cdist(features.flatten(1), known.flatten(1))
    return distance.masked_fill(~differs, torch.inf).argmin(dim=1)


def required_guide(defence: Defence, feature: str) -> AnyGuide:
    """The defence's guide, or an error that names what asked for it."""
    require(defence.guide is not None, "defence", f"guided for {feature}", defence.name)
    assert defence.guide is not None
    return in_float32(defence.guide)
