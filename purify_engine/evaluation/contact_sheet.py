"""Images to look at: input, attacked, purified, and what purification changed, each with the classifier's verdict."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purify_engine.evaluation.defences import Defence

if TYPE_CHECKING:
    from purify_engine.types import Images, Labels

GAIN = 10  # of the difference, so that it can be seen


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


@torch.no_grad()
def exhibits(defence: Defence, images: Images, attacked: Images, labels: Labels) -> list[Exhibit]:
    """The sheet for clean `images` and their `attacked` versions [B, C, H, W] in [0, 1], purified by noise draw 0."""
    purified = defence.purify(attacked, torch.arange(len(images), device=images.device), 0)
    stages = [_judged(defence, stage, labels) for stage in (images, attacked, purified)]
    differences = [Picture(data_uri(image)) for image in (GAIN * (purified - attacked)).abs()]
    return [Exhibit(str(int(label)), *pictures) for label, *pictures in zip(labels, *stages, differences, strict=True)]


def _judged(defence: Defence, images: Images, labels: Labels) -> list[Picture]:
    verdicts = defence.classifier(images).argmax(dim=1)
    pairs = zip(images, verdicts.tolist(), labels.tolist(), strict=True)
    return [Picture(data_uri(image), str(verdict), verdict == label) for image, verdict, label in pairs]


def data_uri(image: Tensor) -> str:
    """One image [C, H, W] in [0, 1], grey or RGB, as a PNG in a data URI; values outside are clipped."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
