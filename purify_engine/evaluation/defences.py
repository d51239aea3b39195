"""What is evaluated: a classifier, what stands before it, and what an attacker may differentiate."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from purify_engine.config import AttackGradient, GuidanceConfig, PurifierConfig, Sampler, require
from purify_engine.devices import in_float32, in_sixteen_bits, precision_of
from purify_engine.images import refuse_other_ranges

if TYPE_CHECKING:
    from purify_engine.models.own import AnyGuide
    from purify_engine.purifier import GuidedPurifier
    from purify_engine.types import Ids, Images, Logits

UNDEFENDED, DIFFPURE, GDMP, OURS, GUIDE_ALONE = "undefended", "DiffPure", "GDMP", "ours", "the guide alone"
LATENT, LABEL, BOTH, FIXED = "ours, latent", "ours, label", "ours, both", "ours, fixed noise"
CALIBRATED = (GDMP, LATENT, LABEL, BOTH)  # their scales are found on training images; that of ours is the purifier's own
BASELINES = (DIFFPURE, GDMP, UNDEFENDED, LATENT, LABEL, BOTH, GUIDE_ALONE)  # what ours is compared with, image by image
DDIM_STEPS = 20  # of a deterministic surrogate at most: close to the limit of ever smaller ones
PIXEL_RATIO, LATENT_RATIO, CALIBRATION_IMAGES = 1.0, 0.8, 256
# A setting that is not here is left out of a fingerprint at its default: cells that were finished without it are still found.
ALWAYS_NAMED = frozenset(
    "t_star sampler num_steps eta guidance schedule cycles seed noise gradient surrogate_steps".split()  # noqa: SIM905
)
LATENT_TERM = {"kind": "adversarial", "latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"}
LABEL_TERM = {"kind": "adversarial", "latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "pseudo"}
# The terms of each row, and the ratio at which they did best on training digits (bench/results/digits-guidance.jsonl).
TERMS: dict[str, tuple[dict[str, Any], float]] = {
    LATENT: (LATENT_TERM, LATENT_RATIO),
    LABEL: (LABEL_TERM, 0.2),
    BOTH: (LABEL_TERM | {"latent_weight": 0.15}, 0.4),
}
UNGUIDED = GuidanceConfig(kind="none", label_weight=1.0, latent_weight=1.0, pseudo_label="pseudo")  # as finished cells have it


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
    others: tuple[nn.Module, ...] = ()
    """Other classifiers of the same classes, whose adversarial examples are tried on this defence."""

    def __post_init__(self) -> None:
        for network in (self.classifier, self.bare, *self.others):
            if network is not None:
                refuse_training(network, self.name)

    def __call__(self, images: Images, ids: Ids, draw: int | Tensor) -> Logits:
        return self.classifier(self.purify(images, ids, draw))

    def purify(self, images: Images, ids: Ids, draw: int | Tensor) -> Images:
        """The images that the classifier sees, on a noise draw, or on one for each image, int64 [B]."""
        if self.purifier is None:
            return images
        refuse_other_ranges(self.purifier)
        return self.purifier(images, ids=ids, draw=draw) if self.randomised else self.purifier(images)

    @property
    def randomised(self) -> bool:
        """Whether the attacker does not know the noise that it is scored on: not with noise="fixed", which no draw changes."""
        return self.purifier is not None and self.purifier.config.noise != "fixed"

    def through(self, gradient: AttackGradient, *, queried: bool = False) -> Defence:
        """The same defence, differentiated by another gradient mode; `blind` sees the bare classifier.

        A purifier in 16 bits is differentiated through its own weights in float32, the stronger attack, unless the attacker only
        asks for its answers (`queried`).
        A surrogate of as many steps as the purifier walks would be the purifier, so it takes half of them at most.
        `preview` and `ddim` attack another purifier in the hope that this transfers (`previewed`, `deterministic`).
        """
        if gradient == "blind":
            return Defence(f"{self.name}, blind", self.bare or self.classifier)
        if self.purifier is None:
            return self
        purifier = self.purifier if queried else in_float32(self.purifier)
        if gradient in ("preview", "ddim"):
            other = previewed(purifier) if gradient == "preview" else deterministic(purifier)
            return dataclasses.replace(self, purifier=other)
        config = purifier.config
        shorter = min(config.surrogate_steps, max(1, config.fewest_steps // 2))
        return dataclasses.replace(self, purifier=purifier.configured(gradient=gradient, surrogate_steps=shorter))

    def describe(self) -> dict[str, Any]:
        """Everything but the weights that decides this defence's figures; the gradient mode belongs to the attack."""
        config: dict[str, Any] = {} if self.purifier is None else _decisive(self.purifier.config)
        config.pop("gradient", None)
        short = {} if self.purifier is None or not in_sixteen_bits(self.purifier) else {"precision": precision_of(self.purifier)}
        origin = getattr(self.classifier, "origin", None)
        own = {} if origin is None else {"classifier": origin}
        return {"name": self.name, "purifier": config or None, "guided": self.guide is not None, **short, **own}


def previewed(purifier: GuidedPurifier) -> GuidedPurifier:
    """The purifier that walks from t* to the end in one step, its exact gradient: the guided estimate of the clean image at t*.

    One network call where the purifier makes one a step, and as much less of a gradient.
    """
    return _simpler(purifier, "ddpm", 1)


def deterministic(purifier: GuidedPurifier) -> GuidedPurifier:
    """The purifier whose reverse process is DDIM's of eta 0, in as many steps but at most 20, its exact gradient.

    Only its start is noised, by the same draws.
    """
    return _simpler(purifier, "ddim", min(purifier.config.fewest_steps, DDIM_STEPS))


def _simpler(purifier: GuidedPurifier, sampler: Sampler, num_steps: int) -> GuidedPurifier:
    """Another sampler from the same t*, guided in the score form: in the mean, a last step and DDIM have no guidance."""
    plain: dict[str, Any] = {"timesteps": None, "landings": None, "time_labels": "index", "last_noise": False, "eta": 0.0}
    guidance = dataclasses.replace(purifier.config.guidance, form="score")
    return purifier.configured(gradient="exact", sampler=sampler, num_steps=num_steps, guidance=guidance, **plain)


def _decisive(config: PurifierConfig) -> dict[str, Any]:
    """The settings that finished cells are found by: those of `ALWAYS_NAMED`, and any other that is not at its default."""
    default, values = dataclasses.asdict(PurifierConfig()), dataclasses.asdict(config)
    values["seed"] = config.seed or 0  # attacks and scores name their noise
    if config.guidance.growth == default["guidance"]["growth"]:
        del values["guidance"]["growth"]  # the one setting of the guidance that is named where it is given
    return {name: value for name, value in values.items() if name in ALWAYS_NAMED or value != default[name]}


def refuse_training(network: nn.Module, name: str) -> None:
    """ValueError where a part of `network` is in training mode and answers otherwise there: a batch norm, dropout."""
    for path, part in network.named_modules():
        moves = isinstance(part, _NormBase) and part.track_running_stats
        if part.training and (moves or (isinstance(part, _DropoutNd) and part.p > 0)):
            mode = f"in evaluation mode, by classifier.eval(): its {type(part).__name__} {path!r} changes with the batch"
            require(False, f"classifier of {name!r}", mode, "one in training mode")


def defence_names(purifier: GuidedPurifier, presets: Mapping[str, PurifierConfig] | None = None) -> tuple[str, ...]:
    """The rows of every comparison with `purifier`; `presets`: its other configurations by name, each a row of its own."""
    others = tuple(f"{OURS}, {name}" for name, config in (presets or {}).items() if config != purifier.config)
    fixed = (FIXED,) if purifier.config.noise != "fixed" else ()
    unguided = (UNDEFENDED, DIFFPURE, GDMP, OURS)
    if purifier.guide is None:
        return (*unguided, *fixed, *others)
    terms = _terms(purifier.config.guidance)
    return (*unguided, *(name for name in TERMS if name != terms), *fixed, *others, GUIDE_ALONE)


def is_guided(name: str) -> bool:
    """Whether the guide takes part in this row, so that its answers are compared with labels."""
    return name == GUIDE_ALONE or name.split(", ")[0] == OURS


def _terms(guidance: GuidanceConfig) -> str | None:
    """Which row of `TERMS` guides by the same terms; None where nothing of them guides."""
    if guidance.kind != "adversarial" or guidance.scale == 0:
        return None
    label = guidance.label_weight > 0 and guidance.pseudo_label != "none"
    if not label:
        return LATENT if guidance.latent_weight > 0 else None
    return BOTH if guidance.latent_weight > 0 else LABEL


def standard_defences(
    purifier: GuidedPurifier,
    classifier: nn.Module,
    training_images: Images | None,
    names: Collection[str] | None = None,
    *,
    presets: Mapping[str, PurifierConfig] | None = None,
) -> tuple[Defence, ...]:
    """The rows of every comparison, in the order of `defence_names`.

    undefended. DiffPure: without guidance. GDMP: by the pixels of the input. ours: as `purifier` is configured. "ours, latent",
    "ours, label", "ours, both": by those terms of the guide, where ours is guided by others. "ours, fixed noise": the same noise
    in every call, which the attacker knows and which it is scored on. "ours, NAME": by a preset. "the guide alone": as the
    classifier.

    All purifiers but those of presets share the depth and the noise of `purifier`, so only the guidance differs. The scales of
    `CALIBRATED` are found on `training_images`, at the ratios at which they did best on training digits; None will do where no
    such row is wanted. A purifier in 16 bits is scored in them; its guide alone, and attacks on it, compute in float32.
    `names`: of the rows that are wanted; None: all. ValueError where `classifier` is in training mode.
    """
    guide = None if purifier.guide is None else in_float32(purifier.guide)
    known = None if training_images is None else training_images[:CALIBRATION_IMAGES]
    others = {f"{OURS}, {name}": config for name, config in (presets or {}).items()}
    rows: dict[str, Defence] = {}
    for name in defence_names(purifier, presets):
        if names and name not in names:
            continue
        if name == UNDEFENDED:
            rows[name] = Defence(name, classifier)
        elif name == GUIDE_ALONE:
            rows[name] = Defence(name, cast(nn.Module, guide), bare=classifier)
        else:
            before = purifier.configured(**vars(others[name])) if name in others else _purifier(name, purifier, known)
            rows[name] = Defence(name, classifier, before, guide if is_guided(name) else None)
    return tuple(rows.values())


def _purifier(name: str, purifier: GuidedPurifier, known: Images | None) -> GuidedPurifier:
    """What stands before the classifier in a row that is no preset's."""
    if name in TERMS:
        terms, ratio = TERMS[name]
        return calibrated(purifier, _required(known), ratio, **terms)
    if name == GDMP:
        return _pixel(purifier, _required(known))
    changes: dict[str, dict[str, Any]] = {DIFFPURE: {"guidance": UNGUIDED}, FIXED: {"noise": "fixed"}}
    return purifier.configured(**changes[name]) if name in changes else purifier


def _required(known: Images | None) -> Images:
    require(known is not None, "training_images", f"given, as {' and '.join(CALIBRATED)} are calibrated on them", known)
    return cast("Images", known)


def _pixel(purifier: GuidedPurifier, images: Images) -> GuidedPurifier:
    scale = calibrated(purifier, images, PIXEL_RATIO, kind="pixel").config.guidance.scale
    return purifier.configured(guidance=dataclasses.replace(UNGUIDED, kind="pixel", scale=scale))


def calibrated(purifier: GuidedPurifier, images: Tensor, ratio: float, **guidance: Any) -> GuidedPurifier:
    """A sibling with other `guidance` fields, its scale s calibrated on training `images` to the ratio r (docs/math.md E13)."""
    fields = {"scale": 1.0, **guidance}
    sibling = purifier.configured(guidance=dataclasses.replace(purifier.config.guidance, **fields))
    scale = sibling.calibrate(images, ratio)
    return purifier.configured(guidance=dataclasses.replace(sibling.config.guidance, scale=scale))
