"""What an evaluation is held to: which images by which labels, and how large attacks may be."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from purify_engine.cli.defended import classes_of
from purify_engine.cli.labelled import DIGITS, Labelled, stratified
from purify_engine.cli.options import given, with_options
from purify_engine.config import AttackConfig, EvaluationConfig, Perturbation, from_dict, require, to_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from purify_engine.models.own import AnyGuide
    from purify_engine.types import Ids, Images, Labels

RADII = {"linf": "epsilon", "l2": "epsilon_l2", "spatial": "max_shift"}  # of each norm, the field of `EvaluationConfig`

AT_ONCE = 256  # images that the undefended classifier sees at once
FEW = 8  # of so many, a classifier that knows half answers one or none rightly once in thirty times; of fewer, more often

BY_THE_GUIDE = "as the guide was trained for"


@dataclass(frozen=True)
class Budget:
    """The settings of an evaluation, and where its radii came from."""

    config: EvaluationConfig
    origin: dict[str, str]
    """Of each radius that is known: its norm, and who says it."""
    unknown: tuple[str, ...] = field(default=())
    """Norms without a radius: their attacks are left out."""

    def known(self, attacks: list[AttackConfig], named: list[str] | None) -> list[AttackConfig]:
        """The attacks that there is a radius for. ValueError where one without was asked for by name."""
        without = [attack for attack in attacks if attack.kind != "none" and attack.norm in self.unknown]
        for attack in without:
            asked = attack.name in (named or ()) or attack.norm == "linf"
            unit = "pixels" if attack.norm == "spatial" else "[0, 1] units"
            wanted = f"given ({_option(attack.norm)}, in {unit}), as {attack.name} needs it and the purifier does not say it"
            require(not asked, RADII[attack.norm], wanted, None)
        return [attack for attack in attacks if attack not in without]

    def says_of(self, norm: str) -> bool:
        """Whether `epsilon` may be a radius in `norm`: as it was given, or found for l_inf."""
        return "linf" in self.origin and (norm == "linf" or self.origin["linf"] != BY_THE_GUIDE)

    def settings(self) -> dict[str, Any]:
        """As a record holds them: without the radii that are not known."""
        without = {RADII[norm] for norm in self.unknown}
        settings = {name: value for name, value in to_dict(self.config).items() if name not in without}
        return {**settings, "radii_from": self.origin, "left_out": list(self.unknown)}

    def said(self) -> str:
        """In a line: how large attacks are, and what was left out."""
        radii = [f"{norm} {getattr(self.config, RADII[norm]):.4g} ({who})" for norm, who in self.origin.items()]
        left = [f"{norm} attacks left out: no {_option(norm)} was given" for norm in self.unknown]
        return "; ".join(["attacks of " + ", ".join(radii), *left])


def budget(options: Any, source: str, guide: dict[str, Any] | None) -> Budget:
    """Radii as they were given, else as the guide was trained for (`guide`: its training), else, for the digits, the digits'."""
    config, asked = with_options(EvaluationConfig(), options), given(options)
    trained = None if not guide or "attack" not in guide else from_dict(Perturbation, guide["attack"])
    origin, radii = {}, {}
    for norm, name in RADII.items():
        if name in asked:
            origin[norm], radii[name] = _option(norm), asked[name]
        elif source == DIGITS:
            origin[norm], radii[name] = "the digits'", getattr(config, name)
        elif trained is not None and trained.norm == norm:
            origin[norm], radii[name] = BY_THE_GUIDE, trained.epsilon
    unknown = tuple(norm for norm in RADII if norm not in origin)
    return Budget(replace(config, **radii), origin, unknown)


def numbered(data: Labelled, classifier: nn.Module) -> tuple[Labels, str]:
    """The labels as `classifier` numbers its classes, and in words how that was found; ValueError where it cannot be told."""
    import torch

    from purify_engine.folders import differing_classes

    labels, names = data.required_labels(), data.classes
    count, known = classes_of(classifier)
    said = f"labels are the numbers in {data.name}"
    if names is not None and known is not None:
        differ = differing_classes(known, names)
        require(set(names) <= set(known), "source", f"of the classifier's classes: {differ}", data.name)
        _require_labels(labels, len(names), f"the classes of {data.name}")  # a negative one would count from the last
        labels = torch.tensor([known.index(name) for name in names], device=labels.device)[labels]
        unseen = differing_classes(known, names)
        said = f"labels by the classifier's names of its {count} classes" + (f" ({unseen})" if set(known) - set(names) else "")
    elif names is not None:
        wanted = f"{count} class folders, as many as the classifier's classes, whose names are not known"
        require(len(names) == count, "source", wanted, f"{len(names)} in {data.name}")
        said = f"the classifier names no classes: labels by sorted position, 0 {names[0]!r} to {count - 1} {names[-1]!r}"
    _require_labels(labels, count, "the classes of the classifier")
    require(len(labels) > 0, "source", "of one image at least", data.name)
    return labels, said


def _require_labels(labels: Labels, count: int, whose: str) -> None:
    outside = ((labels < 0) | (labels >= count)).nonzero().flatten().tolist()
    row = outside[0] if outside else 0
    require(not outside, f"labels[{row}]", f"in [0, {count}), {whose}", int(labels[row]) if outside else None)


class Chosen(NamedTuple):
    """Which images an evaluation is of."""

    images: Images
    labels: Labels
    ids: Ids
    told: str
    """How labels became the classifier's numbers."""
    doubt: str | None
    """That they probably do not fit."""


def chosen(data: Labelled, everyone: tuple[Labels, str], classifier: nn.Module, limit: int | None) -> Chosen:
    """`limit` images of `data`, `stratified` by their labels as `numbered` gives them, on the device of `data`.

    A doubt about the labels is printed at once: before hours of attacks.
    """
    import torch

    numbers, told = everyone
    rows = stratified(numbers, limit)
    images, ids = data.rows(rows), torch.tensor(rows, device=numbers.device)
    with torch.no_grad():
        doubt = doubts(torch.cat([classifier(part) for part in images.split(AT_ONCE)]), numbers[ids])
    if doubt:
        print(f"purify-engine: {doubt}", file=sys.stderr)
    return Chosen(images, numbers[ids], ids, told, doubt)


def with_labels(attacks: list[AttackConfig], labels: Labels, named: list[str] | None) -> tuple[list[AttackConfig], str | None]:
    """The attacks that these labels allow, and in words which are left out: feature matching needs images of two classes.

    ValueError where one of those was asked for by name.
    """
    if len(labels.unique()) > 1:
        return attacks, None
    without = [attack.name for attack in attacks if attack.loss == "features"]
    wanted = f"of two classes at least for {', '.join(without)}"
    require(not set(without) & set(named or ()), "labels", wanted, f"only {labels.unique().tolist()}")
    left = [attack for attack in attacks if attack.name not in without]
    return left, f"labels are of one class alone: {', '.join(without)} left out" if without else None


def doubts(logits: Tensor, labels: Labels) -> str | None:
    """That labels do not fit, where the undefended classifier answers clean images by them no better than chance; else None.

    logits: its own, [N, K]. labels: int64 [N]; of fewer than `FEW` nothing is said.
    """
    right, (count, classes) = int((logits.argmax(dim=1) == labels).sum()), logits.shape
    chance = 1 / classes
    if count < FEW or right > count * chance + (count * chance * (1 - chance)) ** 0.5:  # a standard deviation more
        return None
    answers = f"answers {right} of {count:,} clean images as labelled, no better than chance ({classes} classes)"
    return f"LABELS PROBABLY DO NOT FIT: the undefended classifier {answers}; are they in another order, or of other data?"


def require_same_classes(guide: AnyGuide | None, classifier: nn.Module) -> None:
    """Refuse a guide that numbers other classes than the classifier: attacks on it, and its own row, would mean nothing."""
    from purify_engine.folders import differing_classes

    count = getattr(guide.config, "num_classes", None) if guide is not None else None
    mine, known = classes_of(classifier)
    require(count in (None, mine), "classifier", f"one of {count} classes, as the guide", mine)
    names = getattr(guide, "class_names", None)
    same = None in (names, known) or names == known
    require(same, "classifier", f"one of the guide's classes: {differing_classes(names or (), known or ())}", known)


def _option(norm: str) -> str:
    return f"--{RADII[norm]}".replace("_", "-")
