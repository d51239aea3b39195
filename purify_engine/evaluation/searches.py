"""Several searches for one attack: what each is given, and which of their finds is the worst for an image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import DRAWS_PER_SEED, AttackConfig
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.draws import each_draw
from purify_engine.evaluation.losses import attacked_logits, margin, tiled

if TYPE_CHECKING:
    from purify_engine.evaluation.losses import LogitsOf
    from purify_engine.types import Ids, Images, Labels

TIE = 1e-3  # what the margin counts beside whole draws that are wrong


@dataclass(frozen=True)
class Problem:
    """An attack on some images."""

    defence: Defence
    images: Images
    labels: Labels
    ids: Ids
    config: AttackConfig
    pool: tuple[Images, Labels]
    batch_size: int | None
    """How many images go through the networks at once; None: these, one draw after another."""

    @property
    def given(self) -> tuple[Defence, Images, Labels, Ids, AttackConfig]:
        return self.defence, self.images, self.labels, self.ids, self.config

    @property
    def draws_at_once(self) -> int:
        """How many noise draws of all these images make one batch."""
        return 1 if self.batch_size is None else max(1, self.batch_size // max(1, len(self.images)))

    @property
    def searches(self) -> list[tuple[int | None, int | None]]:
        """The rank of the target, and which of other classifiers is attacked, of each search."""
        targets = range(self.config.targets) if self.config.targets else (None,)
        others: list[int | None] = [None]
        if self.config.surface == "others" and len(self.defence.others) > 1:
            others += range(len(self.defence.others))
        return [(target, other) for _ in range(self.config.restarts) for target in targets for other in others]

    def part(self, first: int, most: int) -> Problem:
        """`most` images from the `first` on."""
        if first == 0 and most >= len(self.images):
            return self
        return self.rows(torch.arange(first, min(first + most, len(self.images)), device=self.images.device))

    def rows(self, rows: Tensor) -> Problem:
        """Some of the images."""
        if len(rows) == len(self.images):
            return self
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows])


def wrongness(problem: Problem, x: Images, search: int = 0, *, first: int | None = None) -> Tensor:
    """The share of noise draws on which each image's verdict is wrong, [B]; margins decide between equals, below 1/1000.

    The verdict is the defence's, or where the attacker knows no more, that of the guide alone or of the bare classifier. The
    draws are the last ones of a search, or begin at `first`. 1 or more: wrong on all of them.
    """
    config = problem.config
    if first is None:
        first = (search + 1) * config.draws_of_a_search - config.refine_eot
    logits = each_draw(_verdict(problem), x, problem.ids, _draws(problem, first), problem.draws_at_once)
    margins = margin(logits.flatten(0, 1), tiled(problem.labels, logits.flatten(0, 1))).view(len(logits), -1)
    share = (margins > 0).float().mean(dim=0)  # at most 255/256 unless it is 1, so a margin does not make up for a draw
    return share + TIE * margins.float().mean(dim=0).tanh()


def likeliest_others(problem: Problem) -> Tensor:
    """The classes other than the label, the likeliest of the clean image first: int64 [B, targets]."""
    count = problem.config.targets
    logits = each_draw(_verdict(problem), problem.images, problem.ids, _draws(problem, 0)).log_softmax(dim=-1).mean(dim=0)
    classes = logits.scatter(1, problem.labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    last = logits.shape[1] - 2  # where there are fewer other classes than targets, the last one again
    return classes[:, torch.arange(count, device=classes.device).clamp(max=last)]


def take_worst(found: Images, wrong: Tensor, rows: Tensor, tried: Images, how_wrong: Tensor) -> None:
    """Put those of `tried` [rows] into `found` that are more wrong than what it holds, and their wrongness into `wrong`."""
    better = how_wrong > wrong[rows]
    found[rows[better]] = tried[better]
    wrong[rows[better]] = how_wrong[better]


def _verdict(problem: Problem) -> LogitsOf:
    config = problem.config
    if config.surface == "guide" or config.gradient == "blind":
        return attacked_logits(problem.defence, dataclasses.replace(config, kind="square"))
    return problem.defence


def _draws(problem: Problem, first: int) -> range:
    config = problem.config
    is_random = problem.defence.randomised and _verdict(problem) is problem.defence
    first += config.seed * DRAWS_PER_SEED
    return range(first, first + (config.refine_eot if is_random else 1))
