"""A purifier under ablation: variants become defences, attacked alike and scored on fresh draws."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.core.ablations import TERMS, TWO, Effort, Threat, Variant
from bench.subjects.two_guides import two_guides
from purify_engine.config import AttackConfig, GuidanceConfig, to_dict
from purify_engine.devices import in_float32
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import GUIDE_ALONE, PIXEL_RATIO, Defence
from purify_engine.evaluation.suite import CLEAN, TRANSFERRED
from purify_engine.models.own import AnyGuide, GuideNetwork
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Ids, Images, Labels

ADAPTIVE, FROM_GUIDE = "adaptive", "transfer from the guide"
LEVELS = {"clean": (), "transferred": (TRANSFERRED,), "adaptive": (TRANSFERRED, FROM_GUIDE, ADAPTIVE)}


class LeftOutError(Exception):
    """Why a row has no figures."""


class OutOfTimeError(Exception):
    """A cell that the time was not enough for."""


@dataclass
class Subject:
    """The purifier as the base row has it (its guidance aside), what is defended, and the networks that variants name."""

    purifier: GuidedPurifier
    classifier: nn.Module
    known: Images
    """Training images in [0, 1] that scales are calibrated on."""
    term: str
    ratio: float
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    _scales: dict[str, float] = field(default_factory=dict)

    def require(self, variant: Variant) -> None:
        """LeftOutError: the variant needs a network that was not given, or its settings do not go together."""
        named = [name for name in (variant.classifier, "second" if variant.guide == TWO else variant.guide) if name]
        for name in named:
            self._network(name)
        if variant.kind != "undefended" and self.purifier.guide is None:
            raise LeftOutError("the purifier has no guide to compare with")
        try:
            self.settings(variant)
        except ValueError as error:
            raise LeftOutError(str(error)) from None

    def takes_label(self, variant: Variant) -> bool:
        """Whether the guidance takes an argmax, which no gradient passes."""
        guidance = self._guidance(variant)
        return variant.kind == "ours" and self._ratio(variant) > 0 and guidance.pseudo_label == "pseudo"

    def defence(self, variant: Variant) -> Defence:
        """What is attacked. LeftOutError: as `require`, or where the networks do not suit the settings."""
        classifier = self._network(variant.classifier) if variant.classifier else self.classifier
        if variant.kind == "undefended":
            return Defence("undefended", classifier)
        guide = self.guide(variant)
        if variant.kind == GUIDE_ALONE:
            return Defence(GUIDE_ALONE, cast(nn.Module, guide), bare=classifier)
        try:
            purifier = self._purifier(variant, guide)
        except ValueError as error:
            raise LeftOutError(str(error)) from None
        return Defence(variant.kind, classifier, purifier, guide if variant.kind == "ours" else None)

    def guide(self, variant: Variant) -> AnyGuide:
        """The guide that the variant names, in float32; rows without one are compared with the purifier's own."""
        own, name = cast(AnyGuide, self.purifier.guide), variant.guide
        if name == TWO:
            return two_guides(in_float32(own), cast(GuideNetwork, self._network("second")), self.known)
        return cast(AnyGuide, self._network(name)) if name else in_float32(own)

    def settings(self, variant: Variant) -> dict[str, Any]:
        """What decides a variant's answers beside the weights, the same on every processor: r stands in place of the scale."""
        guided = variant.kind == "ours" and self._ratio(variant) > 0
        settings: dict[str, Any] = {"kind": variant.kind, "classifier": variant.classifier}
        if variant.kind == GUIDE_ALONE or guided:
            settings["guide"] = variant.guide
        if variant.kind in ("undefended", GUIDE_ALONE):
            return settings
        config = to_dict(dataclasses.replace(self.purifier.config, **variant.purifier))
        settings["purifier"] = {name: value for name, value in config.items() if name not in ("guidance", "gradient")}
        settings["kind"] = "ours" if guided else "GDMP" if variant.kind == "GDMP" else "DiffPure"
        if guided:
            guidance = to_dict(self._guidance(variant))
            settings |= {"ratio": self._ratio(variant), "guidance": {k: v for k, v in guidance.items() if k != "scale"}}
        return settings

    def _ratio(self, variant: Variant) -> float:
        return self.ratio if variant.ratio is None else variant.ratio

    def _guidance(self, variant: Variant) -> GuidanceConfig:
        own = dataclasses.replace(self.purifier.config.guidance, kind="adversarial", scale=1.0)
        return dataclasses.replace(own, **{**TERMS[variant.term or self.term], **variant.guidance})

    def _network(self, name: str) -> nn.Module:
        if name not in self.networks:
            raise LeftOutError(f"it needs --network {name}=PATH")
        return self.networks[name]

    def _purifier(self, variant: Variant, guide: AnyGuide) -> GuidedPurifier:
        ratio = self._ratio(variant)
        plain = self.purifier.configured(**variant.purifier, guidance=GuidanceConfig(kind="none"))
        if variant.kind == "DiffPure" or (variant.kind == "ours" and ratio == 0):
            return plain
        guidance = GuidanceConfig(kind="pixel", scale=1.0) if variant.kind == "GDMP" else self._guidance(variant)
        if variant.guide:
            plain = GuidedPurifier(plain.denoiser, guide, plain.config)
        unit = plain.configured(guidance=guidance)
        if guidance.normalised:
            return unit.configured(guidance=dataclasses.replace(guidance, scale=ratio))
        key = json.dumps({**self.settings(variant), "ratio": 1.0})  # the scale is proportional to r
        if key not in self._scales:
            self._scales[key] = unit.calibrate(self.known, 1.0)
        scale = self._scales[key] * (PIXEL_RATIO if variant.kind == "GDMP" else ratio)
        return unit.configured(guidance=dataclasses.replace(guidance, scale=scale))


def attacks(level: str, threat: Threat, effort: Effort, variant: Variant, *, takes_label: bool) -> list[AttackConfig]:
    """What is run on a variant under a threat model, by the names of the columns; the images as they are first.

    The adaptive attack differentiates the purifier; in place of an argmax, which hides flips of the label, it sees the soft
    label. A variant of the attack alone is attacked by nothing else.
    """
    gradient = "straight_through" if effort.gradient == "exact" and takes_label else effort.gradient
    deterministic = variant.kind in ("undefended", "the guide alone")  # no noise to average over, nor another gradient
    cheap = {"num_steps": 4 * effort.steps, "num_eot": 1}
    named: dict[str, dict[str, Any]] = {
        TRANSFERRED: {"gradient": "blind", **cheap},
        FROM_GUIDE: {"surface": "guide", **cheap},
        ADAPTIVE: {"gradient": "exact" if deterministic else gradient, **variant.attack},
    }
    if variant.kind != "ours":
        del named[FROM_GUIDE]
    if variant.attack:
        named = {ADAPTIVE: named[ADAPTIVE]}
    base, suffix = _within(threat, effort, variant.radius), "" if threat == "linf" else f", {threat.removeprefix('linf, ')}"
    clean = [] if variant.attack or variant.radius != 1 else [CLEAN]
    return clean + [dataclasses.replace(base, name=name + suffix, **named[name]) for name in LEVELS[level] if name in named]


def _within(threat: Threat, effort: Effort, radius: float) -> AttackConfig:
    how = {"num_steps": effort.steps, "num_eot": effort.eot}
    if threat == "l2":
        return AttackConfig(name=threat, norm="l2", epsilon=radius * effort.radii.l2, **how)
    if threat == "StAdv":
        return AttackConfig(name=threat, kind="stadv", norm="spatial", epsilon=radius * effort.radii.shift, **how)
    twice = 2 if threat == "linf, twice the radius" else 1
    return AttackConfig(name=threat, epsilon=twice * radius * effort.radii.linf, **how)


@dataclass(frozen=True)
class Scored:
    """One defence under one attack: what the draws said of each image."""

    scores: tuple[float, ...]
    selection: tuple[float, ...]
    """The same on as many other draws."""
    agreement: float
    """Share of verdicts, over images and draws, that are the guide's own of the same image."""
    guide_right: tuple[int, ...]
    """Whether the guide classifies each attacked image correctly."""
    seconds: float
    ms_an_image: float
    """One purification and its verdict, within the batches that were scored."""


def measured(
    defence: Defence, how: AttackConfig, images: Images, labels: Labels, ids: Ids, guide: nn.Module, *,
    draws: int, batch: int, ends: float = float("inf"),
) -> Scored:  # fmt: skip
    """Attack and score, batch by batch. OutOfTimeError: between two batches, once `ends` (of time.monotonic) has passed."""
    started, scoring = time.monotonic(), 0.0
    right, agrees, guide_right = [], [], []
    for rows in torch.arange(len(images), device="cpu").split(batch):
        if time.monotonic() > ends:
            raise OutOfTimeError
        x, y, keys = (values[rows.to(values.device)] for values in (images, labels, ids))
        adversarial = attack(defence, x, y, how, ids=keys)
        begun = time.monotonic()
        verdicts = _verdicts(defence, adversarial, keys, 2 * draws)
        scoring += time.monotonic() - begun
        with torch.no_grad():
            own = guide(adversarial).argmax(dim=1)
        right.append((verdicts == y).double())
        agrees.append((verdicts == own).double())
        guide_right.append(own == y)
    hits, asked = torch.cat(right, dim=1), len(right[0])
    halves = (hits, hits) if asked == 1 else (hits[:draws], hits[draws:])
    scores, selection = (tuple(round(v, 6) for v in half.mean(dim=0).tolist()) for half in halves)
    return Scored(
        scores, selection, float(torch.cat(agrees, dim=1).mean()), tuple(torch.cat(guide_right).int().tolist()),
        round(time.monotonic() - started, 2), 1e3 * scoring / (asked * len(images)),
    )  # fmt: skip


@torch.no_grad()
def _verdicts(defence: Defence, images: Images, ids: Ids, draws: int) -> Tensor:
    """The class that each draw gives each image, [draws, B]; [1, B] of a defence without noise."""
    numbers = range(FIRST_SCORING_DRAW, FIRST_SCORING_DRAW + (draws if defence.randomised else 1))
    return torch.stack([defence(images, ids, draw).argmax(dim=1) for draw in numbers])


def calls(defence: Defence) -> dict[str, int]:
    """How often one verdict runs each network."""
    purifier = defence.purifier
    if purifier is None:
        return {"unet": 0, "guide": 0}
    guided = purifier.config.guidance.kind == "adversarial" and purifier.config.guidance.scale > 0
    return {"unet": purifier.num_steps, "guide": purifier.num_steps + purifier.config.cycles if guided else 0}


def digest(*parts: Any) -> str:
    """Hash of tensors, networks and plain data."""
    made = hashlib.sha256()
    for part in parts:
        made.update(_bytes(part))
    return made.hexdigest()[:16]


def _bytes(part: Any) -> bytes:
    if isinstance(part, nn.Module):
        return _of_weights(part)
    if isinstance(part, Tensor):
        return part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return json.dumps(part, sort_keys=True).encode()


@cache
def _of_weights(network: nn.Module) -> bytes:
    return hashlib.sha256(b"".join(_bytes(value) for value in network.state_dict().values())).digest()
