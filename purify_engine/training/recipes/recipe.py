"""What a recipe says: which networks are trained how, and what becomes of them. Plain data; `run.py` follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    TradesTraining,
    UNetConfig,
)

Kind = Literal["unet", "guide", "classifier"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network of a recipe, and its training."""

    network: UNetConfig | ClassifierConfig
    training: DiffusionTraining | TradesTraining | ClassifierTraining
    share: float = 1.0
    """Of the seconds of a short training, beside the shares of the other parts."""

    @property
    def kind(self) -> Kind:
        """What it is in a purifier's folder."""
        if isinstance(self.training, DiffusionTraining):
            return "unet"
        return "guide" if isinstance(self.training, TradesTraining) else "classifier"


@dataclass(frozen=True, kw_only=True)
class NamedPreset:
    """One of the ways to purify that the recipe's purifier names, but for the scale, which is calibrated."""

    t_star: int
    num_steps: int | None
    about: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """From a data set to a purifier. The parts `unet`, `guide` and `classifier` are the purifier's; others are further guides,
    each of which gets a folder of its own with the same diffusion model."""

    name: str
    data: str
    """A sentence about the data set, for the cards."""
    classes: tuple[str, ...]
    """Names of the labels 0, 1, ..."""
    parts: Mapping[str, Part]
    """In the order of their training."""
    assembly: Assembly
    presets: Mapping[str, NamedPreset] = field(default_factory=dict)
    validation: int = 2000
    """Training images that are held out of the training, to choose by; 0: the data set's test split is measured instead."""
