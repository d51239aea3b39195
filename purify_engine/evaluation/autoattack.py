"""The official AutoAttack (Croce & Hein 2020) on a defence. Its package is its users' to install: it is on no package index.

AutoAttack attacks subsets of the images that it is given, and hands the defence tensors without names. So that noise stays a
function of (seed, image id, draw), each image that comes in is given the id of the clean image that is nearest to it in the
attack's norm: it lies inside that one's ball. Images nearer to one another than twice epsilon may be confused where one is
attacked; then they meet each other's noise, which is as good as their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_engine.config import DRAWS_PER_SEED, AttackConfig
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.losses import attacked_logits
from purify_engine.foreign import imported

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images, Labels, Logits

SOURCE = "git+https://github.com/fra31/auto-attack"
NORMS = {"linf": "Linf", "l2": "L2"}


def official() -> Any:
    """AutoAttack's module; NotInstalledError, with the command that installs it, where it is missing."""
    return imported("autoattack", "AutoAttack", source=SOURCE)


def autoattack(
    defence: Defence, images: Images, labels: Labels, ids: Ids, config: AttackConfig, batch_size: int | None = None
) -> Images:
    """What AutoAttack's version `config.version` finds, in `config.norm` within `config.epsilon`; where it fails, the clean
    image.

    Steps, draws, losses and restarts are its own: version rand is APGD by cross entropy and by DLR with 20 draws a step, standard
    is APGD, targeted APGD, targeted FAB and Square. Of ours `gradient`, `surface` and `seed` count. Each call of the defence is
    its next draw.
    """
    module = official()
    named = Named(attacked_logits(defence, config), images, ids, config)
    settings: dict[str, Any] = {"norm": NORMS[config.norm], "eps": config.epsilon, "seed": config.seed, "verbose": False}
    adversary = module.AutoAttack(named, version=config.version, device=str(images.device), **settings)
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):  # it seeds the global generator
        found = adversary.run_standard_evaluation(images, labels, bs=batch_size or len(images))
    return found.to(images)


class Named(nn.Module):
    """A defence as a module from images to logits: it finds each image's id, and takes another draw in every call."""

    def __init__(self, logits: Any, images: Images, ids: Ids, config: AttackConfig) -> None:
        super().__init__()
        self._logits, self._norm = logits, config.norm
        self._known, self._ids = images.flatten(1), ids
        self._first, self._calls = config.seed * DRAWS_PER_SEED, 0

    def forward(self, x: Images) -> Logits:
        draw = self._first + self._calls % DRAWS_PER_SEED
        self._calls += 1
        return self._logits(x, self._ids[self.nearest(x)], draw)

    def nearest(self, x: Images) -> Tensor:
        """The row of the known image nearest to each of `x`, int64."""
        power = float("inf") if self._norm == "linf" else 2.0
        return torch.cdist(x.detach().flatten(1).float(), self._known.float(), p=power).argmin(dim=1)
