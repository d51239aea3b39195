"""Images to look at: input, attacked, purified, and what purification changed, each with the classifier's verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.evaluation.defences import Defence
from purify_engine.pages import pictures

if TYPE_CHECKING:
    from purify_engine.types import Images, Labels


@dataclass(frozen=True)
class Picture:
    """One image as a PNG data URI; `verdict` is the classifier's, `right` whether it is true, None without one."""

    uri: str
    verdict: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Exhibit:
    """One row of the sheet."""

    label: str
    input: Picture
    attacked: Picture
    purified: Picture
    difference: Picture
    """Purified less attacked, in colours that tell the sign."""
    scale: float
    """What the colours of the difference reach to, both ways; the same for the whole sheet."""


@torch.no_grad()
def exhibits(defence: Defence, images: Images, attacked: Images, labels: Labels) -> list[Exhibit]:
    """The sheet for clean `images` and their `attacked` versions [B, C, H, W] in [0, 1], purified by noise draw 0."""
    purified = defence.purify(attacked, torch.arange(len(images), device=images.device), 0)
    stages = [_judged(defence, stage, labels) for stage in (images, attacked, purified)]
    changes = [change.float().cpu().numpy() for change in purified - attacked]
    scale = pictures.scale_of(changes)
    differences = [Picture(pictures.signed_uri(change, scale)) for change in changes]
    rows = zip(labels.tolist(), *stages, differences, strict=True)
    return [Exhibit(str(label), before, hit, after, change, scale) for label, before, hit, after, change in rows]


def _judged(defence: Defence, images: Images, labels: Labels) -> list[Picture]:
    verdicts = defence.classifier(images).argmax(dim=1)
    pairs = zip(images, verdicts.tolist(), labels.tolist(), strict=True)
    return [Picture(data_uri(image), str(verdict), verdict == label) for image, verdict, label in pairs]


def data_uri(image: Tensor) -> str:
    """One image [C, H, W] in [0, 1], grey or RGB, as a PNG in a data URI; values outside are clipped."""
    return pictures.data_uri(image.float().cpu().numpy())
