"""The two-minute demonstration: five defences, a transferred attack, a light adaptive one, and a report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from purify_engine.config import AttackConfig, DemoConfig
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.contact_sheet import Exhibit, exhibits
from purify_engine.evaluation.defences import DIFFPURE, GDMP, GUIDE_ALONE, OURS, UNDEFENDED, Defence, standard_defences
from purify_engine.evaluation.protocol import score
from purify_engine.evaluation.row_self_test import SELF_TESTED, row_self_tests
from purify_engine.evaluation.statistics import Scores, mcnemar, paired_difference, wilson
from purify_engine.evaluation.suite import CLEAN, TRANSFERRED, fitted
from purify_engine.evaluation.summary import Comparison, Row
from purify_engine.evaluation.verdict import ADAPTIVE

if TYPE_CHECKING:
    from purify_engine.purifier import GuidedPurifier
    from purify_engine.types import Images, Labels

ROWS = (UNDEFENDED, DIFFPURE, GDMP, OURS, GUIDE_ALONE)  # further ones are of the full evaluation: each takes as long as ours
NOTES = (
    f"{TRANSFERRED}: PGD on the bare classifier, which does not know of the purifier.",
    f"{ADAPTIVE}: each image's minimum over PGD on the purifier's exact gradient (a hard pseudo-label relaxed to a soft one), "
    "averaged over noise, and, where there is a guide, PGD on the guide alone.",
    "A figure is the expected accuracy of a single noise draw; in parentheses its 95 % Wilson interval over images.",
    "The adaptive attack here is light. The committed full evaluation runs every attack of the protocol on every held-out digit.",
)


@dataclass(frozen=True)
class Demo:
    """The results of the demonstration, ready for a table and for the report."""

    rows: list[Row]
    sheet: list[Exhibit]
    self_test: dict[str, Any]
    config: DemoConfig
    seconds: float
    comparisons: list[Comparison] = field(default_factory=list)
    """Ours with every other defence under the adaptive attack, image by image."""


def run_demo(
    purifier: GuidedPurifier,
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    budget: DemoConfig | None = None,
    *,
    training_images: Images,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Demo:
    """Attack `classifier` on held-out `images` [N, C, H, W] in [0, 1] with `labels`, purify, and compare the defences.

    training_images: what the baselines are calibrated on. on_stage: called with the name of what is about to run.
    """
    budget, started = budget or DemoConfig(), time.perf_counter()
    on_stage("gradient self-test")
    defences = standard_defences(purifier, classifier, training_images, ROWS)
    self_test = row_self_tests(defences, images[:SELF_TESTED], labels[:SELF_TESTED], seed=budget.seed)
    rows, adaptive = [], {}
    for defence in defences:
        on_stage(defence.name)
        row, adaptive[defence.name] = _row(defence, images, labels, budget)
        rows.append(row)
    on_stage("contact sheet")
    few = slice(0, budget.num_exhibits)
    ours = Defence(OURS, classifier, purifier, purifier.guide)
    attacked = attack(ours, images[few], labels[few], _transferred(budget))
    sheet = exhibits(ours, images[few], attacked, labels[few])
    return Demo(rows, sheet, self_test, budget, time.perf_counter() - started, _comparisons(adaptive, budget.confidence))


def _comparisons(adaptive: dict[str, Scores], confidence: float) -> list[Comparison]:
    ours = adaptive[OURS]
    return [
        Comparison(OURS, name, paired_difference(ours, scores, confidence), None, mcnemar(ours, scores))
        for name, scores in adaptive.items()
        if name != OURS
    ]


def _row(defence: Defence, images: Images, labels: Labels, budget: DemoConfig) -> tuple[Row, Scores]:
    """The defence's row, and its score on each image under the adaptive attack."""
    started = time.perf_counter()
    with torch.no_grad():
        defence(images, torch.arange(len(images), device=images.device), 0)
    speed = len(images) / (time.perf_counter() - started)
    generator = torch.Generator().manual_seed(budget.seed)
    chosen = torch.randperm(len(images), generator=generator, device="cpu")[: budget.num_adaptive].to(images.device)
    everything = torch.arange(len(images), device=images.device)
    scores = {
        CLEAN.name: _scores(defence, (CLEAN,), images, labels, everything, budget),
        TRANSFERRED: _scores(defence, (_transferred(budget),), images, labels, everything, budget),
        ADAPTIVE: _scores(defence, _adaptive(budget, defence), images, labels, chosen, budget),
    }
    columns = {name: wilson(each, budget.confidence) for name, each in scores.items()}
    return Row(defence.name, columns, speed), scores[ADAPTIVE]


def _scores(
    defence: Defence,
    attacks: Sequence[AttackConfig],
    images: Images,
    labels: Labels,
    ids: torch.Tensor,
    budget: DemoConfig,
) -> Scores:
    images, labels = images[ids], labels[ids]
    draws = range(FIRST_SCORING_DRAW, FIRST_SCORING_DRAW + budget.num_draws)
    adversarial = (attack(defence, images, labels, fitted(each, defence) or each, ids=ids) for each in attacks)
    scores = [score(defence, attacked, labels, ids, draws) for attacked in adversarial]
    return tuple(map(min, zip(*scores, strict=True)))


def _transferred(budget: DemoConfig) -> AttackConfig:
    return AttackConfig(
        name=TRANSFERRED,
        epsilon=budget.epsilon,
        num_steps=budget.transfer_steps,
        num_eot=1,
        gradient="blind",
        seed=budget.seed,
    )


def _adaptive(budget: DemoConfig, defence: Defence) -> tuple[AttackConfig, ...]:
    ascent = AttackConfig(
        name=ADAPTIVE,
        epsilon=budget.epsilon,
        num_steps=budget.adaptive_steps,
        num_eot=budget.num_eot,
        gradient="straight_through",
        seed=budget.seed,
    )
    from_guide = dataclasses.replace(ascent, surface="guide", num_steps=budget.transfer_steps)
    return (ascent, from_guide) if defence.guide is not None else (ascent,)
