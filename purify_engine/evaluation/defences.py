"""What is evaluated: a classifier, what stands before it, and what an attacker may differentiate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from purify_engine.config import GradientMode, GuidanceConfig, PurifierConfig, require
from purify_engine.devices import in_float32, in_sixteen_bits, precision_of
from purify_engine.images import refuse_other_ranges

if TYPE_CHECKING:
    from purify_engine.models.own import AnyGuide
    from purify_engine.purifier import GuidedPurifier
    from purify_engine.types import Ids, Images, Logits

GDMP, OURS, LATENT, GUIDE_ALONE = "GDMP", "ours", "ours, latent", "the guide alone"
CALIBRATED = (GDMP, LATENT)  # their scales are found on training images; that of ours is the purifier's own
GUIDED = (OURS, LATENT, GUIDE_ALONE)  # the guide takes part: its answers are compared with labels
BASELINES = ("DiffPure", GDMP, "undefended", LATENT, GUIDE_ALONE)  # what ours is compared with, image by image
PIXEL_RATIO, LATENT_RATIO, CALIBRATION_IMAGES = 1.0, 0.8, 256
# A setting that is not here is left out of a fingerprint at its default: cells that were finished without it are still found.
ALWAYS_NAMED = frozenset(
    "t_star sampler num_steps eta guidance schedule cycles seed noise gradient surrogate_steps".split()  # noqa: SIM905
)
LATENT_TERM = {"kind": "adversarial", "latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"}


@dataclass(frozen=True)
class Defence:
    """A defended classifier. Calling it with images in [0, 1], their ids and the number of a noise draw gives logits."""

    name: str
    """Its row in every table."""
    classifier: nn.Module
    """Images [B, C, H, W] in [0, 1] to logits [B, K]."""
    purifier: GuidedPurifier | None = None
    """What stands before it; None: nothing."""
    guide: AnyGuide | None = None
    """What attacks on the guide may use; None where no guide takes part."""
    bare: nn.Module | None = None
    """The network that a blind attacker knows: the classifier itself unless given."""

    def __call__(self, images: Images, ids: Ids, draw: int) -> Logits:
        return self.classifier(self.purify(images, ids, draw))

    def purify(self, images: Images, ids: Ids, draw: int) -> Images:
        """The images that the classifier sees."""
        if self.purifier is None:
            return images
        refuse_other_ranges(self.purifier)
        return self.purifier(images, ids=ids, draw=draw)

    @property
    def randomised(self) -> bool:
        return self.purifier is not None

    def through(self, gradient: GradientMode, *, queried: bool = False) -> Defence:
        """The same defence, differentiated by another gradient mode; `blind` sees the bare classifier.

        A purifier in 16 bits is differentiated through its own weights in float32, the stronger attack, unless the attacker only
        asks for its answers (`queried`).
        A surrogate of as many steps as the purifier walks would be the purifier, so it takes half of them at most.
        """
        if gradient == "blind":
            return Defence(f"{self.name}, blind", self.bare or self.classifier)
        if self.purifier is None:
            return self
        purifier = self.purifier if queried else in_float32(self.purifier)
        config = purifier.config
        shorter = min(config.surrogate_steps, max(1, config.fewest_steps // 2))
        return dataclasses.replace(self, purifier=purifier.configured(gradient=gradient, surrogate_steps=shorter))

    def describe(self) -> dict[str, Any]:
        """Everything but the weights that decides this defence's figures; the gradient mode belongs to the attack."""
        config: dict[str, Any] = {} if self.purifier is None else _decisive(self.purifier.config)
        config.pop("gradient", None)
        short = {} if self.purifier is None or not in_sixteen_bits(self.purifier) else {"precision": precision_of(self.purifier)}
        return {"name": self.name, "purifier": config or None, "guided": self.guide is not None, **short}


def _decisive(config: PurifierConfig) -> dict[str, Any]:
    """The settings that finished cells are found by: those of `ALWAYS_NAMED`, and any other that is not at its default."""
    default, values = dataclasses.asdict(PurifierConfig()), dataclasses.asdict(config)
    values["seed"] = config.seed or 0  # attacks and scores name their noise
    if config.guidance.growth == default["guidance"]["growth"]:
        del values["guidance"]["growth"]  # the one setting of the guidance that is named where it is given
    return {name: value for name, value in values.items() if name in ALWAYS_NAMED or value != default[name]}


def defence_names(purifier: GuidedPurifier) -> tuple[str, ...]:
    """The rows of every comparison with `purifier`."""
    unguided = ("undefended", "DiffPure", GDMP, OURS)
    if purifier.guide is None:
        return unguided
    return (*unguided, *((LATENT,) if purifier.config.guidance.label_weight > 0 else ()), GUIDE_ALONE)


def standard_defences(
    purifier: GuidedPurifier, classifier: nn.Module, training_images: Images | None, names: Sequence[str] | None = None
) -> tuple[Defence, ...]:
    """The rows of every comparison: undefended, DiffPure, GDMP, ours, ours by the latent term alone, the guide alone.

    All purifiers share the sampler, the depth and the noise of `purifier`, so only the guidance differs. The baselines'
    scales are calibrated on `training_images`, to the ratios at which they did best on training digits; None will do where no
    row of `CALIBRATED` is wanted. A purifier in 16 bits is scored in them; its guide alone, and attacks on it, compute in
    float32. `names`: of the rows that are wanted; None: all.
    """
    guide = None if purifier.guide is None else in_float32(purifier.guide)
    known = None if training_images is None else training_images[:CALIBRATION_IMAGES]
    rows: dict[str, Callable[[], Defence]] = {
        "undefended": lambda: Defence("undefended", classifier),
        "DiffPure": lambda: Defence("DiffPure", classifier, purifier.configured(guidance=GuidanceConfig(kind="none"))),
        GDMP: lambda: Defence(GDMP, classifier, _pixel(purifier, _required(known))),
        OURS: lambda: Defence(OURS, classifier, purifier, guide),
        LATENT: lambda: Defence(LATENT, classifier, calibrated(purifier, _required(known), LATENT_RATIO, **LATENT_TERM), guide),
        GUIDE_ALONE: lambda: Defence(GUIDE_ALONE, cast(nn.Module, guide), bare=classifier),
    }
    return tuple(rows[name]() for name in defence_names(purifier) if not names or name in names)


def _required(known: Images | None) -> Images:
    require(known is not None, "training_images", f"given, as {' and '.join(CALIBRATED)} are calibrated on them", known)
    return cast("Images", known)


def _pixel(purifier: GuidedPurifier, images: Images) -> GuidedPurifier:
    scale = calibrated(purifier, images, PIXEL_RATIO, kind="pixel").config.guidance.scale
    return purifier.configured(guidance=GuidanceConfig(kind="pixel", scale=scale))


def calibrated(purifier: GuidedPurifier, images: Tensor, ratio: float, **guidance: Any) -> GuidedPurifier:
    """A sibling with other `guidance` fields, its scale s calibrated on training `images` to the ratio r (docs/math.md E13)."""
    fields = {"scale": 1.0, **guidance}
    sibling = purifier.configured(guidance=dataclasses.replace(purifier.config.guidance, **fields))
    scale = sibling.calibrate(images, ratio)
    return purifier.configured(guidance=dataclasses.replace(sibling.config.guidance, scale=scale))
