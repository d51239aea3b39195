"""What a defence says of images on numbered noise draws, and what that costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.memory import Peak

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images


@torch.no_grad()
def verdicts_of(defence: Defence, images: Images, ids: Ids, draws: Sequence[int]) -> Tensor:
    """The class that each draw gives each image, int64 [K, B] on the CPU; a defence without noise is asked once: [1, B]."""
    asked = draws if defence.randomised else draws[:1]
    return torch.stack([defence(images, ids, draw).argmax(dim=1) for draw in asked]).cpu()


@torch.no_grad()
def agreement(defence: Defence, images: Images, verdicts: Tensor) -> tuple[float, ...]:
    """Share of each image's `verdicts` [K, B] that are the guide's own answer to the same image; () where no guide takes part."""
    if defence.guide is None:
        return ()
    own = defence.guide(images).argmax(dim=1).cpu()
    return shares(verdicts == own)


def shares(hits: Tensor) -> tuple[float, ...]:
    """Mean over draws of [K, B] truths, to six digits."""
    return tuple(round(value, 6) for value in hits.double().mean(dim=0).tolist())


def counted(verdicts: Tensor) -> tuple[dict[str, int], ...]:
    """How often each class was said of each image."""
    return tuple({str(name): count for name, count in sorted(Counter(column).items())} for column in verdicts.T.tolist())


def calls(defence: Defence) -> dict[str, int]:
    """How often one verdict runs each network on an image: the U-Net, the guide forwards and backwards."""
    purifier = defence.purifier
    if purifier is None or not hasattr(purifier, "num_steps"):
        return {"unet": 0, "guide": 0, "guide_backward": 0}
    guidance, steps = purifier.config.guidance, int(purifier.num_steps)
    is_guided = guidance.kind == "adversarial" and guidance.scale > 0
    looks = purifier.config.cycles if is_guided else 0  # at the input, once a cycle
    return {"unet": steps, "guide": steps * is_guided + looks, "guide_backward": steps * is_guided}


class Stopwatch:
    """Seconds of what was run since it was made, once a GPU has done it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = self._now()

    @property
    def seconds(self) -> float:
        return self._now() - self.started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def cost(defence: Defence, seconds: float, verdicts: Tensor, peak: Peak) -> dict[str, Any]:
    """What a verdict took: milliseconds an image, network calls, and the most memory while the images were attacked."""
    return {"ms_an_image": round(1e3 * seconds / max(1, verdicts.numel()), 3), "calls": calls(defence), "peak_bytes": peak.bytes}
