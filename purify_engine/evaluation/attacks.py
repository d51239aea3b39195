"""The attacks: (defence, images, labels, AttackConfig) -> adversarial images inside the ball and inside [0, 1].

Deterministic by `AttackConfig.seed` and the images' ids: random starts and proposals are numbers of their own for each image, the
purifier's noise comes from numbered draws, a distinct one for each (search, step, EOT index). So an image is attacked in the same
way whichever others are attacked with it. Re-scoring uses draws from `FIRST_SCORING_DRAW` on, which no attack has seen.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import AttackConfig
from purify_engine.engine.masking import masking_is_known
from purify_engine.evaluation.apgd import apgd
from purify_engine.evaluation.ascent import diffhammer, pgd
from purify_engine.evaluation.autoattack import autoattack
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.draws import Draws
from purify_engine.evaluation.losses import make_objective, required_guide
from purify_engine.evaluation.low_frequency import low_frequency
from purify_engine.evaluation.searches import Problem, likeliest_others, take_worst, wrongness
from purify_engine.evaluation.spatial import stadv
from purify_engine.evaluation.spsa import spsa
from purify_engine.evaluation.square import square
from purify_engine.reference.balls import lengths

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images, Labels

FIRST_SCORING_DRAW = 2**30  # attacks use draws below: 512 seeds of 2**20 draws each are 2**29


@masking_is_known()  # the suite attacks by other gradients too, and marks what is masked
def attack(
    defence: Defence,
    images: Images,
    labels: Labels,
    config: AttackConfig,
    *,
    ids: Ids | None = None,
    pool: tuple[Images, Labels] | None = None,
    batch_size: int | None = None,
) -> Images:
    """Adversarial images for `defence`, of the shape of `images` and within `config`'s budget of them, in [0, 1].

    images: clean ones, [B, C, H, W] in [0, 1]. labels: the true ones, int64 [B]. ids: int64 [B], key the purifier's noise and the
    attack's own; None: the places in the batch. Which draws the attack sees follows from `config.seed`; score on others.
    pool: images with their labels among which feature matching finds what to aim at; None: `images`.
    batch_size: how many images go through the networks at once. Fewer images than that are averaged over several noise draws at
    once; None: all images, one draw after another.
    """
    ids = torch.arange(len(images), device=images.device) if ids is None else ids
    if config.kind == "none" or config.epsilon == 0 or len(images) == 0:
        return images.clone()
    if config.kind == "autoattack":
        return autoattack(defence, images, labels, ids, config, batch_size)
    most = len(images) if batch_size is None else batch_size
    whole = Problem(defence, images, labels, ids, config, (images, labels) if pool is None else pool, batch_size)
    found = [_attacked(whole.part(first, most)) for first in range(0, len(images), most)]
    return found[0] if len(found) == 1 else torch.cat(found)


def needs_draws(defence: Defence, config: AttackConfig) -> bool:
    """Whether the attacked function is random; where it is not, one evaluation in each step is enough."""
    return (
        defence.randomised and config.surface == "defence" and config.loss != "features" and config.gradient != "blind"
    )


def _attacked(problem: Problem) -> Images:
    """The worst of all searches for each image, refined where it still stands."""
    config, searches = problem.config, problem.searches
    if len(searches) == 1 and not config.refine_steps:
        return _searched(problem, 0)
    ranked = likeliest_others(problem) if config.targets else None
    found = problem.images.clone()
    wrong = torch.full((len(found),), -torch.inf, device=found.device)
    for index, (rank, other) in enumerate(searches):
        rows = (wrong < 1).nonzero().flatten()
        if len(rows) > 0:
            part = problem.rows(rows)
            target = None if ranked is None or rank is None else ranked[rows, rank]
            tried = _searched(part, index, target=target, other=other)
            take_worst(found, wrong, rows, tried, wrongness(part, tried, index))
    return _refined(problem, found, wrong) if config.refine_steps else found


def _searched(problem: Problem, index: int, *, target: Tensor | None = None, other: int | None = None) -> Images:
    """What one search finds; `index` is its number, by which its noise draws and its own random numbers are told apart."""
    defence, images, labels, ids, config = problem.given
    averaged = needs_draws(defence, config)
    draws = Draws(config, averaged=averaged, first=index * config.draws_of_a_search, at_once=problem.draws_at_once)
    chance = Chance(config.seed, ids, index)
    objective = make_objective(
        defence, images, labels, config, target=target, pool=problem.pool, other=other, margins=config.kind == "apgd"
    )
    if config.kind == "square":
        return square(objective, images, ids, config, draws, chance)
    if config.kind == "stadv":
        return stadv(objective, images, ids, config, draws, chance)
    if config.kind == "spsa":
        return spsa(objective, images, ids, config, draws, chance)
    if config.kind == "low_frequency":
        return low_frequency(objective, images, ids, config, draws, chance)
    climb = {"pgd": pgd, "apgd": apgd, "diffhammer": diffhammer}[config.kind]
    return climb(objective, images, ids, config, draws, start_point(defence, images, labels, config, ids, chance))


def _refined(problem: Problem, found: Images, wrong: Tensor) -> Images:
    """`found`, with those images that still stand climbing on, each step averaged over more draws; the worse one is kept.

    Before and after are compared on the same draws, which neither has seen.
    """
    config = problem.config
    rows = (wrong < 1).nonzero().flatten()
    if len(rows) == 0:
        return found
    part, first = problem.rows(rows), config.draws_of_a_search * config.num_searches
    how = dataclasses.replace(
        config,
        kind="pgd",
        step_size=(config.step_size or 2.5 * config.epsilon / config.num_steps) / 2,
        num_steps=config.refine_steps,
        num_eot=config.refine_eot,
        restarts=1,
        targets=0,
    )
    draws = Draws(how, averaged=needs_draws(part.defence, config), first=first, at_once=part.draws_at_once)
    objective = make_objective(part.defence, part.images, part.labels, how, pool=part.pool)
    tried = pgd(objective, part.images, part.ids, how, draws, found[rows])
    last = first + config.refine_steps * config.refine_eot
    found, before = found.clone(), wrong.clone()
    before[rows] = wrongness(part, found[rows], first=last)
    take_worst(found, before, rows, tried, wrongness(part, tried, first=last))
    return found


def start_point(
    defence: Defence, images: Images, labels: Labels, config: AttackConfig, ids: Ids, chance: Chance
) -> Images:
    """Where ascent begins: the clean images, a random point of the ball, or an adversarial example that is cheaper to find."""
    if config.start in ("guide", "guide_worst"):
        required_guide(defence, f"start={config.start!r}")
        plain = dataclasses.replace(config, start="random", restarts=1, targets=0, refine_steps=0)
        simple = dataclasses.replace(plain, surface="guide", loss="cross_entropy")
        if config.start == "guide":
            return attack(defence, images, labels, simple, ids=ids)
        return worst_for_the_guide(defence, images, labels, simple, ids)
    if config.start == "preview":
        cheap = dataclasses.replace(config, gradient="preview", start="random", restarts=1, targets=0, refine_steps=0)
        return attack(defence, images, labels, cheap, ids=ids)
    if config.start == "clean":
        return images
    shape, dtype = images.shape[1:], images.dtype
    if config.norm == "linf":
        return images + config.epsilon * chance.uniform(*shape, dtype=dtype)
    noise = chance.normal(*shape, dtype=dtype)
    return images + config.epsilon * noise / lengths(noise)


def worst_for_the_guide(defence: Defence, images: Images, labels: Labels, simple: AttackConfig, ids: Ids) -> Images:
    """Of several attacks on the guide alone each image's worst: PGD by cross entropy, APGD by margin and by targeted margins."""
    problem = Problem(defence, images, labels, ids, simple, (images, labels), None)
    found, wrong = images.clone(), torch.full((len(images),), -torch.inf, device=images.device)
    rows = torch.arange(len(images), device=images.device)
    by_margin = dataclasses.replace(simple, kind="apgd", loss="margin", margin_cap=None)
    for how in (simple, by_margin, dataclasses.replace(by_margin, targets=3)):
        tried = attack(defence, images, labels, how, ids=ids)
        take_worst(found, wrong, rows, tried, wrongness(problem, tried))
    return found
